// Weights for products of bf16 pairs; see kernels/operands.h.
#pragma once

#include "kernels/pair_terms.h"
#include "tensors.h"

namespace skelops {

// Whether products of such maps take pairs.
inline bool multiplies_pairs(const Tensor& x) { return level() == Level::avx512_bf16 && dtype_of(x) == Dtype::bf16; }

// Packed weights of count matrices (terms, width) become pairs of terms.
inline void pair_weights(float* packed, int64_t count, int64_t terms, int64_t width) {
  const auto kernel = pair_terms_at_level();
  parallel_for(0, width / kChannelPad, 1, [&](int64_t begin, int64_t end) { kernel(packed, count, terms, width, begin * kChannelPad, end * kChannelPad); });
}

}  // namespace skelops
