// Kernels of channel_graph_conv; see channel_graph_conv.cpp beside this file.
#pragma once

#include "map.h"

namespace skelops {

struct ChannelGraphConvShape {
  int64_t B, K, C, R, T, V;
  int64_t blocks;  // of channels of a subset; a block of a sample is the unit of work

  int64_t items() const { return B * blocks; }
  int64_t edges() const { return V * V; }
};

struct ChannelGraphConv {
  ChannelGraphConvShape shape;
  Dtype dtype;
  MapData x, y;
  const float *query, *key;  // (B, K, R, V)
  const float* adjacency;    // (K, V, V)
  const float* weight;       // packed (K, blocks, R + 2, kBlock): alpha * weight, alpha * bias and one
};

struct ChannelGraphConvBackward {
  ChannelGraphConv forward;  // y is read where grad_square_sum is there
  MapData grad_y, grad_x;    // grad_x.data is null where not asked for
  const float *grad_sum, *grad_square_sum;  // (blocks * kBlock) or null
  const float* weight;       // packed (K, blocks * kBlock, padded(R)): alpha * weight
  bool needs_topology;
};

// What one chunk of items adds up; chunks are merged in their order, so that results repeat bit for bit.
struct ChannelGraphConvSums {
  double* weight;            // (K, R + 1, blocks * kBlock), without alpha; the last row is the bias
  double* adjacency;         // (K, V, V)
  float *query, *key;        // (B, K, R, V), shared by the chunks: each writes the samples that begin in it
  float *head_query, *head_key;  // (K, R, V): the sample that an earlier chunk began
};

SKELOPS_KERNEL(channel_graph_conv, (const ChannelGraphConv& p, int64_t begin, int64_t end, double* stats))
SKELOPS_KERNEL(channel_graph_conv_backward, (const ChannelGraphConvBackward& p, int64_t begin, int64_t end, const ChannelGraphConvSums& sums))

}  // namespace skelops
