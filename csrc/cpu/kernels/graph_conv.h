// Kernels of graph_conv; see graph_conv.cpp beside this file.
#pragma once

#include "map.h"

namespace skelops {

struct GraphConvShape {
  int64_t B, C, T, V, O, K;
  bool per_sample;  // adjacency (B, K, V, V) instead of (K, V, V)
  bool bias_after;  // bias (O,) is added to the output, instead of (K, O) before the aggregation
  int64_t tile_frames;

  int64_t tiles() const { return (T + tile_frames - 1) / tile_frames; }
  int64_t items() const { return B * tiles(); }  // the unit of work: a tile of frames of one sample
  int64_t samples() const { return per_sample ? B : 1; }
  int64_t sample_of(int64_t item) const { return per_sample ? item / tiles() : 0; }
};

struct GraphConv {
  GraphConvShape shape;
  Dtype dtype;
  MapData x, y;
  const float* weight;     // packed (K, Cp, Op); of bf16 maps in pairs of rows, where products take them (pair_terms.h)
  const float* adjacency;  // (samples, K, V, V)
  const float* bias;       // (K, O) or (O,), or null
};

struct GraphConvBackward {
  GraphConvShape shape;
  Dtype dtype;
  MapData x, grad_y, grad_x;  // grad_x.data is null where not asked for
  StatsGradient stats;
  const float* weight;        // packed (O, K * Cp), in pairs as above
  const float* adjacency;
  const float* bias;
  bool needs_weight, needs_adjacency, needs_bias;
};

// What one chunk of items adds up; chunks are merged in their order, so that results repeat bit for bit.
struct GraphConvSums {
  float* weight;     // (O, K * Cp)
  float* bias;       // (K, O), of which the first O serve a bias (O,)
  float* adjacency;  // (samples, K, V, V), shared by the chunks: each writes the samples that begin in it
  float* head;       // (K, V, V): the sample that an earlier chunk began
};

// Rows of one subset: weight (O, C) -> packed (Cp, Op), transposed, the padding zero.
SKELOPS_KERNEL(graph_conv_pack, (const float* weight, int64_t O, int64_t C, float* packed))
SKELOPS_KERNEL(graph_conv, (const GraphConv& p, int64_t begin, int64_t end, double* stats))
SKELOPS_KERNEL(graph_conv_backward, (const GraphConvBackward& p, int64_t begin, int64_t end, const GraphConvSums& sums))

}  // namespace skelops
