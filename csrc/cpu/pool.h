// What the bindings of squeeze_pool and mask_pool share: how the work is cut.
#pragma once

#include <algorithm>

#include "tensors.h"

namespace skelops {

// The least number of pieces of so many elements that is worth waking a thread for.
inline int64_t grain(int64_t elements) { return std::max<int64_t>(32768 / std::max<int64_t>(elements, 1), 1); }

// How much of n one piece of work takes, if it must be cut for every thread to get one: all of it where there are enough
// rows, else a multiple of the widest vector. Elements of a row do not mix here, so that results do not depend on it.
inline int64_t piece(int64_t rows, int64_t n) {
  constexpr int64_t widest = 16;
  const int64_t threads = torch::stable::get_num_threads();
  if (rows >= threads || rows == 0 || n <= widest) return std::max<int64_t>(n, 1);
  const int64_t pieces = (threads + rows - 1) / rows;
  return std::min(((n + pieces - 1) / pieces + widest - 1) / widest * widest, n);
}

inline int64_t pieces(int64_t n, int64_t piece) { return (n + piece - 1) / piece; }

inline Tensor dense(const Tensor& x) { return dense(x, x.scalar_type()); }

}  // namespace skelops
