// Dot products between all pairs of positions (joints, or frames) of two maps, over channels and the other axis.
#pragma once

#include "simd.h"

namespace skelops::SKELOPS_LEVEL {

// Vectors of N floats by position and step.
struct Rows {
  const float* data;
  int64_t position, step;  // distances, in floats
};

// sums (P, P) += dot products of the rows of x and h over all steps: sums[v,w] += sum_t x[t,v,:] . h[t,w,:]
inline void add_dots(const Rows& x, const Rows& h, int64_t P, int64_t steps, int64_t N, float* sums) {
  constexpr int side = kLanes == 16 ? 5 : 3;  // side^2 accumulators fit the registers; 5 divides 25 and 20 joints
  for (int64_t v = 0; v < P; v += side)
    for (int64_t w = 0; w < P; w += side) {
      // Positions past the last one repeat it and are not kept.
      Vec acc[side][side] = {};
      const float *a[side], *b[side];
      for (int i = 0; i < side; ++i) {
        a[i] = x.data + smaller(v + i, P - 1) * x.position;
        b[i] = h.data + smaller(w + i, P - 1) * h.position;
      }
      for (int64_t t = 0; t < steps; ++t) {
        for (int64_t n = 0; n < N; n += kLanes) {
          Vec row[side];
          for (int j = 0; j < side; ++j) row[j] = load(b[j] + t * h.step + n);
          for (int i = 0; i < side; ++i) {
            const Vec value = load(a[i] + t * x.step + n);
            for (int j = 0; j < side; ++j) acc[i][j] += value * row[j];
          }
        }
      }
      for (int i = 0; i < smaller(side, P - v); ++i)
        for (int j = 0; j < smaller(side, P - w); ++j) sums[(v + i) * P + w + j] += sum(acc[i][j]);
    }
}

}  // namespace skelops::SKELOPS_LEVEL
