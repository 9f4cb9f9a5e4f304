// Kernels of norm_act; see norm_act.cpp beside this file.
#pragma once

#include "lines.h"

namespace skelops {

struct Dropout {
  float factor;  // of what is kept; 1 without dropout
  uint32_t threshold, keys[2];
};

struct NormAct {
  Lines lines;
  Dtype dtype;
  LineData x, residual, y;     // residual may be null
  const float *scale, *shift;  // tables of coefficients
  const float *residual_scale, *residual_shift;  // or null
  float negative_slope;
  const Dropout* dropout;  // or null
};

struct NormActBackward {
  Lines lines;
  Dtype dtype;
  LineData grad, x, y, residual;    // y is null without activation, residual where its values do not matter
  LineData grad_x, grad_residual;   // null where not asked for
  const float *scale, *residual_scale;
  float negative_slope;
  const Dropout* dropout;
};

// Lines begin..end.
SKELOPS_KERNEL(norm_act, (const NormAct& p, int64_t begin, int64_t end))
// Adds to sums (C) of the gradients of scale and shift, and of residual_scale and residual_shift where these are given.
SKELOPS_KERNEL(norm_act_backward, (const NormActBackward& p, int64_t begin, int64_t end, double* sums))

}  // namespace skelops
