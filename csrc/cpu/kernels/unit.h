// Vectors at unit length, as torch.nn.functional.normalize brings them there.
#pragma once

#include "simd.h"

namespace skelops::SKELOPS_LEVEL {

constexpr float kSmallest = 1e-12f;  // a shorter vector is divided by this

inline float divisor(float length) { return length < kSmallest ? kSmallest : length; }

// unit (D) = x / divisor(|x|); returns |x|.
template <typename T>
float to_unit(const T* x, int64_t D, float* unit) {
  Vec squares{};
  for (int64_t d = 0; d < D; d += kLanes) {
    const Vec some = load_some(x + d, D - d);
    squares += some * some;
  }
  const float length = __builtin_sqrtf(sum(squares)), by = divisor(length);
  for (int64_t d = 0; d < D; d += kLanes) store_some(unit + d, load_some(x + d, D - d) / by, D - d);
  return length;
}

}  // namespace skelops::SKELOPS_LEVEL
