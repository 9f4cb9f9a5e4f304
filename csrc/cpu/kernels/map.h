// A feature map as kernels see it.
#pragma once

#include "level.h"

namespace skelops {

// Channels are padded to this multiple in packed weights and tiles, whatever the instruction set.
constexpr int64_t kChannelPad = 16;
inline int64_t padded(int64_t channels) { return (channels + kChannelPad - 1) / kChannelPad * kChannelPad; }

// The distance of rows of n floats. An odd number of cache lines between rows keeps a column of them from falling into a few
// sets of the cache.
inline int64_t odd_pitch(int64_t n) { return (padded(n) / kChannelPad | 1) * kChannelPad; }

// Contiguous (B, C, T, V), or channels_last (B, T, V, C); the next sample lies pitch * T * V elements on. The pitch is C,
// or the channels of the wider map that this is a slice of; in a channels_last map, it is also how far apart the rows
// (b, t, v) are.
struct MapData {
  void* data;
  bool channels_last;
  int64_t pitch;
};

// What the gradients of a map's channel sums add to its own: offset[c] + slope[c] * y, zero in the padding of the channels.
struct StatsGradient {
  MapData y;  // data is null where only the sum was used
  const float *offset, *slope;  // (padded(channels)); null where no sum was used
};

}  // namespace skelops
