// Kernels of temporal_max_pool; see temporal_max_pool.cpp beside this file.
#pragma once

#include "map.h"

namespace skelops {

struct TemporalMaxPool {
  int64_t C, T, V, stride;
  Dtype dtype;
  MapData x, y;  // y, or its gradient
  const float *scale, *shift;  // padded
  StatsGradient stats;
  MapData grad_x;

  int64_t out_frames() const { return (T + stride - 1) / stride; }
};

// Samples begin..end; stats (2, C) takes sums and sums of squares, or is null.
SKELOPS_KERNEL(temporal_max_pool, (const TemporalMaxPool& p, int64_t begin, int64_t end, double* stats))
// sums (2, C) takes the gradients of scale and shift.
SKELOPS_KERNEL(temporal_max_pool_backward, (const TemporalMaxPool& p, int64_t begin, int64_t end, double* sums))

}  // namespace skelops
