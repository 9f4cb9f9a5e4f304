// Kernels of aggregate; see aggregate.cpp beside this file.
#pragma once

#include "map.h"

namespace skelops {

// The contraction of x (B, Cx, T, V) with an adjacency (B or 1, K, C or 1, T or 1, sources, targets).
struct AggregateShape {
  int64_t B, K, C, T, V;  // C channels per subset
  int64_t sources, targets;
  bool per_subset, sum_subsets, frames;
  bool per_sample, per_channel, per_frame;  // axes that the adjacency has

  int64_t x_channels() const { return per_subset ? K * C : C; }
  int64_t y_channels() const { return sum_subsets ? C : K * C; }
  int64_t x_rows() const { return T * V; }
  int64_t y_rows() const { return frames ? targets * V : T * targets; }
  // Whether rows of joints share an adjacency, and multiply it as they lie in contiguous maps.
  bool has_groups() const { return !frames && !(per_channel && per_frame); }
};

// Elements between neighbours along each axis; the last two axes are dense, be it transposed.
struct EdgeStrides {
  int64_t b, k, c, t, v, w;
};

struct Aggregate {
  AggregateShape shape;
  Dtype dtype;
  MapData x, y;  // y is the gradient of the output where the adjacency's is asked for
  const void* adjacency;
  EdgeStrides strides;
};

// Items are blocks of channels of a sample.
SKELOPS_KERNEL(aggregate, (const Aggregate& p, int64_t begin, int64_t end))
// Items are subsets of a sample. grad is dense; where samples share the adjacency, sums (K, sources, targets) take it instead.
SKELOPS_KERNEL(aggregate_backward_adjacency, (const Aggregate& p, int64_t begin, int64_t end, void* grad, double* sums))
// The same for contiguous maps and a shape that has groups.
SKELOPS_KERNEL(aggregate_rows, (const Aggregate& p, int64_t begin, int64_t end))
SKELOPS_KERNEL(aggregate_rows_backward_adjacency, (const Aggregate& p, int64_t begin, int64_t end, void* grad, double* sums))

}  // namespace skelops
