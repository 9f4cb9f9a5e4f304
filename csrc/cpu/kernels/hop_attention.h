// Kernels of hop_attention; see hop_attention.cpp beside this file.
#pragma once

#include "map.h"

namespace skelops {

// Frames of an item of work, whatever the instruction set: a vector of the widest.
constexpr int64_t kItemFrames = 16;

struct HopAttention {
  // B samples of T frames; where every map is channels_last, all frames count as those of one sample.
  int64_t B, T, V, G, heads, width, n_hops;  // width: channels of a head
  int64_t together;                          // heads of an item, a divisor of all
  Dtype dtype;
  MapData qkv, group_key;   // (query, key, value) of all heads, one after another
  const float* hop_key;     // (heads, n_hops, width)
  const float* group_bias;  // (heads, width)
  const float* static_part; // (heads, V, V)
  const int32_t* hops;      // (V, V), targets before sources
  const int32_t* groups;    // (V,)
  float alpha, scale;

  int64_t blocks() const { return (T + kItemFrames - 1) / kItemFrames; }
  int64_t items() const { return B * blocks() * (heads / together); }  // the unit of work: some frames of one sample, some heads
  int64_t columns() const { return together * width; }
};

// Maps whose data is null are not asked for.
struct HopGradients {
  MapData upstream, qkv, group_key;
};

// What one chunk of items adds up; chunks are merged in their order, so that results repeat bit for bit.
struct HopSums {
  float* hop_key;      // (heads, n_hops, width)
  float* group_bias;   // (heads, width)
  float* static_part;  // (heads, V, V), targets before sources; null where not asked for
  double alpha;
};

SKELOPS_KERNEL(hop_attention, (const HopAttention& p, const MapData& y, int64_t begin, int64_t end))
SKELOPS_KERNEL(hop_attention_backward, (const HopAttention& p, const HopGradients& g, int64_t begin, int64_t end, HopSums& sums))

}  // namespace skelops
