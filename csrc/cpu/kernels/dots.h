// Dot products between all pairs of positions (joints, or frames) of two maps, over channels and the other axis.
#pragma once

#include "operands.h"

namespace skelops::SKELOPS_LEVEL {

// Vectors of N elements by position and step.
template <typename T>
struct Rows {
  const T* data;
  int64_t position, step;  // distances, in elements
};

// sums (P, P) += dot products of the rows of x and h over all steps: sums[v,w] += sum_t x[t,v,:] . h[t,w,:]
template <typename T>
void add_dots(const Rows<T>& x, const Rows<T>& h, int64_t P, int64_t steps, int64_t N, float* sums) {
  constexpr int64_t stride = kLanes * kTermsPerStep<T>;
  for (int64_t v = 0; v < P; v += kSide)
    for (int64_t w = 0; w < P; w += kSide) {
      // Positions past the last one repeat it and are not kept.
      Vec acc[kSide][kSide] = {};
      const T *a[kSide], *b[kSide];
      for (int i = 0; i < kSide; ++i) {
        a[i] = x.data + smaller(v + i, P - 1) * x.position;
        b[i] = h.data + smaller(w + i, P - 1) * h.position;
      }
      const auto add = [&](int64_t t, int64_t n, auto read) __attribute__((always_inline)) {
        decltype(read(b[0])) row[kSide];
        for (int j = 0; j < kSide; ++j) row[j] = read(b[j] + t * h.step + n);
        for (int i = 0; i < kSide; ++i) {
          const auto value = read(a[i] + t * x.step + n);
          for (int j = 0; j < kSide; ++j) acc[i][j] = multiply_add(acc[i][j], value, row[j]);
        }
      };
      for (int64_t t = 0; t < steps; ++t) {
        int64_t n = 0;
        for (; n + stride <= N; n += stride) add(t, n, [](const T* p) { return vector_of(p); });
        for (; n < N; n += kLanes) add(t, n, [](const T* p) { return load(p); });
      }
      for (int i = 0; i < smaller(kSide, P - v); ++i)
        for (int j = 0; j < smaller(kSide, P - w); ++j) sums[(v + i) * P + w + j] += sum(acc[i][j]);
    }
}

}  // namespace skelops::SKELOPS_LEVEL
