// Kernel of linear; see linear.cpp beside this file.
#pragma once

#include "level.h"

namespace skelops {

// C (M, N) = [bias +] A (M, K) B (K, N). A and B have any strides, but those of B are 1 along one axis; C lies by rows.
struct MatrixProduct {
  int64_t M, N, K;
  const float* a;
  int64_t am, ak;
  const float* b;
  int64_t bk, bn;
  float* c;
  const float* bias;  // (N), or null

  // A part of B stays in the L2 cache while it meets the rows of an item, which are many enough to be worth its copy,
  // and whole blocks of the 6 rows that a product takes at once with AVX-512.
  static constexpr int64_t kRows = 516, kColumns = 64, kDepth = 512;
  int64_t row_blocks() const { return (M + kRows - 1) / kRows; }
  int64_t items() const { return row_blocks() * ((N + kColumns - 1) / kColumns); }  // the unit of work: a block of C
};

SKELOPS_KERNEL(matrix_product, (const MatrixProduct& p, int64_t begin, int64_t end))

}  // namespace skelops
