// BatchNorm as a scale and a shift per channel, and the gradient of both to the sums that they are made of.
#include "batch_norm_affine.h"

#include "simd.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

struct Moments {
  double mean, variance, inverse;
};

inline Moments moments(const BatchNormAffine& p, int64_t c) {
  const double n = p.count > 1 ? p.count : 1, mean = p.sum[c] / n, variance = p.square_sum[c] / n - mean * mean;
  const double positive = variance < 0 ? 0 : variance;
  return {mean, positive, 1 / __builtin_sqrt(positive + p.eps)};
}

}  // namespace

void batch_norm_affine(const BatchNormAffine& p, float* scale, float* shift, float* mean, float* variance) {
  const double unbiased = p.count > 1 ? p.count / (p.count - 1) : 1;
  for (int64_t c = 0; c < p.C; ++c) {
    const Moments m = moments(p, c);
    const double factor = p.weight ? p.weight[c] * m.inverse : m.inverse;
    scale[c] = static_cast<float>(factor);
    shift[c] = static_cast<float>((p.bias ? p.bias[c] : 0) - m.mean * factor);
    mean[c] = static_cast<float>(m.mean);
    variance[c] = static_cast<float>(m.variance * unbiased);
  }
}

// shift = bias - mean scale, scale = weight inverse, inverse = (E[x^2] - E[x]^2 + eps)^-1/2
void batch_norm_affine_backward(const BatchNormAffine& p, const BatchNormAffineBackward& gradients) {
  const double n = p.count > 1 ? p.count : 1;
  for (int64_t c = 0; c < p.C; ++c) {
    const Moments m = moments(p, c);
    const double weight = p.weight ? p.weight[c] : 1, grad_shift = gradients.grad_shift[c];
    const double total = gradients.grad_scale[c] - m.mean * grad_shift;
    const double grad_square = -0.5 * total * weight * m.inverse * m.inverse * m.inverse;
    gradients.grad_sum[c] = (-weight * m.inverse * grad_shift - 2 * m.mean * grad_square) / n;
    gradients.grad_square_sum[c] = grad_square / n;
    if (gradients.grad_weight) gradients.grad_weight[c] = static_cast<float>(total * m.inverse);
  }
}

}  // namespace skelops::SKELOPS_LEVEL
