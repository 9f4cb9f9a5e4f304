// Kernels of squeeze_pool; see squeeze_pool.cpp beside this file.
#pragma once

#include "level.h"

namespace skelops {

struct SqueezePool {
  const void* x;           // (N * bodies, C, T, V), contiguous or channels_last
  const int64_t* lengths;  // (N * bodies) or null
  void *frames, *joints, *mean;
  int64_t N, bodies, C, T, V;
  int64_t width;  // channels of one piece of channels_last work
  Dtype dtype;
};

struct SqueezePoolBackward {
  const void *frames, *joints, *mean;  // (N, C, T), (N, C, V), (N, C), contiguous
  const int64_t* lengths;
  void* x;  // the gradient, (N * bodies, C, T, V)
  int64_t N, bodies, C, T, V;
  Dtype dtype;
};

// Pieces begin..end of one call: (clip, channel) of a contiguous map, (clip, block of channels) of a channels_last one.
SKELOPS_KERNEL(squeeze_pool, (const SqueezePool& p, int64_t begin, int64_t end))
SKELOPS_KERNEL(squeeze_pool_channels_last, (const SqueezePool& p, int64_t begin, int64_t end))
// (row, channel) of a contiguous gradient, (row, frame) of a channels_last one: both in the order of memory.
SKELOPS_KERNEL(squeeze_pool_backward, (const SqueezePoolBackward& p, int64_t begin, int64_t end))
SKELOPS_KERNEL(squeeze_pool_backward_channels_last, (const SqueezePoolBackward& p, int64_t begin, int64_t end))

}  // namespace skelops
