// relu(scale * x + shift) on tiles in cache, its gradient, and sums of channels: what ops do while they load and store.
#pragma once

#include "simd.h"

namespace skelops::SKELOPS_LEVEL {

struct Affine {
  const float *scale, *shift;  // padded; null for none
};

constexpr int64_t kFloatRows = 64;  // that are summed as floats, before the sum goes into a double
typedef double DoubleVec __attribute__((vector_size(8 * kLanes)));

// out = relu(scale * in + shift)
template <typename In, typename Out>
inline void activate(const In* in, int64_t ld_in, Out* out, int64_t ld_out, int64_t R, int64_t channels, const Affine& affine) {
  for (int64_t r = 0; r < R; ++r)
    for (int64_t c = 0; c < channels; c += kLanes) {
      const Vec z = load(affine.scale + c) * load(in + r * ld_in + c) + load(affine.shift + c);
      store(out + r * ld_out + c, z < 0.0f ? Vec{} : z);
    }
}

template <int N, typename T>
inline void add_sums_of(const T* y, int64_t ld, int64_t R, int64_t channels, double* sums, double* squares) {
  DoubleVec all[N] = {}, all_squares[N] = {};
  for (int64_t begin = 0; begin < R; begin += kFloatRows) {
    Vec total[N] = {}, square[N] = {};
    for (int64_t r = begin; r < smaller(begin + kFloatRows, R); ++r)
      for (int n = 0; n < N; ++n) {
        const Vec value = load(y + r * ld + n * kLanes);
        total[n] += value;
        square[n] += value * value;
      }
    for (int n = 0; n < N; ++n) {
      all[n] += __builtin_convertvector(total[n], DoubleVec);
      all_squares[n] += __builtin_convertvector(square[n], DoubleVec);
    }
  }
  for (int64_t i = 0; i < smaller(N * kLanes, channels); ++i) {
    sums[i] += all[i / kLanes][i % kLanes];
    if (squares) squares[i] += all_squares[i / kLanes][i % kLanes];
  }
}

// sums[c] += sum of the rows, squares[c] (or null) += sum of their squares
template <typename T>
inline void add_sums(const T* y, int64_t ld, int64_t R, int64_t channels, double* sums, double* squares) {
  for (int64_t c = 0; c < channels;) {
    const bool wide = channels - c >= 4 * kLanes;
    (wide ? add_sums_of<4, T> : add_sums_of<1, T>)(y + c, ld, R, channels - c, sums + c, squares ? squares + c : nullptr);
    c += wide ? 4 * kLanes : kLanes;
  }
}

template <int N, typename T>
inline void through_affine_of(const T* x, int64_t ldx, const T* a, int64_t lda, float* grad, int64_t ld, int64_t R, int64_t channels,
                              const float* scale, double* of_scale, double* of_shift) {
  DoubleVec all_products[N] = {}, all[N] = {};
  for (int64_t begin = 0; begin < R; begin += kFloatRows) {
    Vec products[N] = {}, total[N] = {};
    for (int64_t r = begin; r < smaller(begin + kFloatRows, R); ++r)
      for (int n = 0; n < N; ++n) {
        const Vec whole = load(grad + r * ld + n * kLanes);
        const Vec value = load(a + r * lda + n * kLanes) <= 0.0f ? Vec{} : whole;
        products[n] += value * load(x + r * ldx + n * kLanes);
        total[n] += value;
        store(grad + r * ld + n * kLanes, value * load(scale + n * kLanes));
      }
    for (int n = 0; n < N; ++n) {
      all_products[n] += __builtin_convertvector(products[n], DoubleVec);
      all[n] += __builtin_convertvector(total[n], DoubleVec);
    }
  }
  for (int64_t i = 0; of_scale && i < smaller(N * kLanes, channels); ++i) {
    of_scale[i] += all_products[i / kLanes][i % kLanes];
    of_shift[i] += all[i / kLanes][i % kLanes];
  }
}

// grad of a = relu(scale * x + shift) becomes that of x; of_scale, of_shift (or null) += the sums for scale and shift
template <typename T>
inline void through_affine(const T* x, int64_t ldx, const T* a, int64_t lda, float* grad, int64_t ld, int64_t R, int64_t channels,
                           const float* scale, double* of_scale, double* of_shift) {
  for (int64_t c = 0; c < channels;) {
    const bool wide = channels - c >= 4 * kLanes;
    (wide ? through_affine_of<4, T> : through_affine_of<1, T>)(x + c, ldx, a + c, lda, grad + c, ld, R, channels - c, scale + c,
                                                         of_scale ? of_scale + c : nullptr, of_shift ? of_shift + c : nullptr);
    c += wide ? 4 * kLanes : kLanes;
  }
}

}  // namespace skelops::SKELOPS_LEVEL
