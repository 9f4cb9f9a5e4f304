// Kernels of batch_norm_affine; see batch_norm_affine.cpp beside this file.
#pragma once

#include "level.h"

namespace skelops {

struct BatchNormAffine {
  const double *sum, *square_sum;
  double count, eps;
  const float *weight, *bias;  // or null
  int64_t C;
};

struct BatchNormAffineBackward {
  const float *grad_scale, *grad_shift;
  double *grad_sum, *grad_square_sum;
  float* grad_weight;  // or null
};

// mean and variance (unbiased) are for the running statistics.
SKELOPS_KERNEL(batch_norm_affine, (const BatchNormAffine& p, float* scale, float* shift, float* mean, float* variance))
SKELOPS_KERNEL(batch_norm_affine_backward, (const BatchNormAffine& p, const BatchNormAffineBackward& gradients))

}  // namespace skelops
