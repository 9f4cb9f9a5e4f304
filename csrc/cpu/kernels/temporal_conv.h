// Kernels of temporal_conv; see temporal_conv.cpp beside this file.
#pragma once

#include "map.h"
#include "minimal_shape.h"

namespace skelops {

struct TemporalConvShape {
  int64_t B, C, T, V, O, k, stride, dilation, groups;
  int64_t tile_frames;  // output frames of a tile
  bool pairs;           // products take bf16 pairs (see operands.h); the packed weights are such pairs of input channels, or of output
                        // channels in the backward pass, and fill the first half of what a tap has in float
  bool is_minimal;      // filtered minimally (see minimal_shape.h), with as many transformed matrices as that takes after those of the taps

  MinimalShape minimal() const { return {k, stride}; }
  int64_t matrices() const { return groups * k + (is_minimal ? minimal().matrices() : 0); }

  int64_t out_frames() const { return (T + stride - 1) / stride; }
  int64_t frames_of(int64_t phase) const { return (T - phase + stride - 1) / stride; }  // every stride-th input frame from there on
  int64_t tiles() const { return (out_frames() + tile_frames - 1) / tile_frames; }
  int64_t items() const { return B * tiles(); }  // the unit of work: a tile of one sample
  int64_t group_in() const { return C / groups; }
  int64_t group_out() const { return O / groups; }
  // Distance between the rows of a tile: blocks of kLanes channels that begin with the last group must fit.
  int64_t width_in() const { return padded(C - group_in() + padded(group_in())); }
  int64_t width_out() const { return padded(O - group_out() + padded(group_out())); }
  // An output frame t reads frames t - halo() to t + halo() of every phase, where a phase is every stride-th input frame.
  int64_t halo() const { return (k / 2 * dilation + stride - 1) / stride; }
  // The gradient of the weight is summed as (input, output) channels where that pads less than (output, input).
  bool sums_by_input() const { return group_in() * padded(group_out()) < group_out() * padded(group_in()); }
  int64_t sums_rows() const { return sums_by_input() ? group_in() : group_out(); }
  int64_t sums_width() const { return padded(sums_by_input() ? group_out() : group_in()); }
  int64_t sums_size() const { return matrices() * sums_rows() * sums_width(); }
  int64_t packed_size() const { return matrices() * group_in() * padded(group_out()); }
  int64_t packed_backward_size() const { return matrices() * group_out() * padded(group_in()); }
};

struct TemporalConv {
  TemporalConvShape shape;
  Dtype dtype;
  MapData x, y;
  const float* weight;          // packed (matrices, C / groups, padded(O / groups)), float or pairs; of taps by groups
  const float* bias;            // padded to (groups, padded(O / groups)), or null
  const float *scale, *shift;   // padded(C), or null
};

struct TemporalConvBackward {
  TemporalConvShape shape;
  Dtype dtype;
  MapData grad, x, grad_x;      // grad_x.data is null where not asked for
  StatsGradient stats;
  const float* weight;          // packed (matrices, O / groups, padded(C / groups)), float or pairs; null where neither it nor the next is asked for
  const float *scale, *shift;   // padded(C), or null
};

// What one chunk of items adds up; chunks are merged in their order, so that results repeat bit for bit. Null: not asked for.
struct TemporalConvSums {
  float* weight;           // (matrices, sums_rows, sums_width)
  double *bias;            // (O)
  double *scale, *shift;   // (C)
};

// Output channels begin .. end of every group, as multiples of kChannelPad: weight (O, C / groups, k) -> packed, padding zero.
SKELOPS_KERNEL(temporal_conv_pack, (const float* weight, const TemporalConvShape& s, int64_t begin, int64_t end, float* packed))
// Output channels begin .. end, for the backward pass; with minimal filtering, the last tap comes first.
SKELOPS_KERNEL(temporal_conv_pack_backward, (const float* weight, const TemporalConvShape& s, int64_t begin, int64_t end, float* packed))
// The gradient of output channels begin .. end: sums -> weight (O, C / groups, k).
SKELOPS_KERNEL(temporal_conv_unpack, (const float* sums, const TemporalConvShape& s, int64_t begin, int64_t end, float* weight))
SKELOPS_KERNEL(temporal_conv, (const TemporalConv& p, int64_t begin, int64_t end, double* stats))
SKELOPS_KERNEL(temporal_conv_backward, (const TemporalConvBackward& p, int64_t begin, int64_t end, const TemporalConvSums& sums))
// The same with minimal filtering. Elements begin .. end of each matrix: packed weights of the taps are transformed to those after
// them, and the sums after those of the taps are added to these.
SKELOPS_KERNEL(temporal_conv_minimal, (const TemporalConv& p, int64_t begin, int64_t end, double* stats))
SKELOPS_KERNEL(temporal_conv_minimal_backward, (const TemporalConvBackward& p, int64_t begin, int64_t end, const TemporalConvSums& sums))
SKELOPS_KERNEL(temporal_conv_minimal_weights, (const TemporalConvShape& s, int64_t size, int64_t begin, int64_t end, float* packed))
SKELOPS_KERNEL(temporal_conv_minimal_gradients, (const TemporalConvShape& s, int64_t size, int64_t begin, int64_t end, float* sums))

}  // namespace skelops
