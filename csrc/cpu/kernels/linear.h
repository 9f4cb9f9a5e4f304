// Kernels of linear; see linear.cpp beside this file.
#pragma once

#include "level.h"

namespace skelops {

// C (M, N) = [bias +] A (M, K) B (K, N). A is a matrix by rows (ak 1), the transpose of one (am 1) or a constant (0, 0), B a
// matrix or its transpose; C lies by rows. Either all are float; or, at the level that multiplies bf16, A is bf16, and B float
// where C is bf16, or bf16 by rows where C is float. Then K is even where A lies by rows.
struct MatrixProduct {
  int64_t M, N, K;
  const void* a;
  int64_t am, ak;
  const void* b;
  int64_t bk, bn;
  void* c;
  const float* bias;  // (N), or null
  Dtype a_type, c_type;

  // A part of B stays in the L2 cache while it meets the rows of an item, which are many enough to be worth its copy,
  // and whole blocks of the 6 rows that a product takes at once with AVX-512.
  static constexpr int64_t kRows = 516, kColumns = 64, kDepth = 512;
  int64_t row_blocks() const { return (M + kRows - 1) / kRows; }
  int64_t items() const { return row_blocks() * ((N + kColumns - 1) / kColumns); }  // the unit of work: a block of C
};

SKELOPS_KERNEL(matrix_product, (const MatrixProduct& p, int64_t begin, int64_t end))

}  // namespace skelops
