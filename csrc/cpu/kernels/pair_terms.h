// Packed weights for products of bf16 pairs; see operands.h.
#pragma once

#include "level.h"

namespace skelops {

// Columns begin .. end (multiples of kChannelPad) of each of count matrices (K, N), one after the other: two neighbouring rows
// become one row of pairs, in place, so that a matrix fills the first half of its memory. An odd last row is paired with zeros.
SKELOPS_KERNEL(pair_terms, (float* matrices, int64_t count, int64_t K, int64_t N, int64_t begin, int64_t end))

}  // namespace skelops
