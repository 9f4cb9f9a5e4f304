// Matrix products of which an operand is large: B is copied in parts of (kDepth, kColumns), its columns along the vector lanes.
#include "linear.h"

#include "gemm.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

// Rows k .. k + depth and columns n .. n + columns of B, kColumns apart; the columns are padded to whole vectors.
void load_part(const MatrixProduct& p, int64_t k, int64_t depth, int64_t n, int64_t columns, float* part) {
  const float* b = p.b + k * p.bk + n * p.bn;
  if (p.bn != 1) return transpose_tile(b, p.bn, columns, depth, part, MatrixProduct::kColumns, true);
  for (int64_t i = 0; i < depth; ++i, b += p.bk, part += MatrixProduct::kColumns)
    for (int64_t c = 0; c < columns; c += kLanes) store(part + c, load_some(b + c, columns - c));
}

}  // namespace

void matrix_product(const MatrixProduct& p, int64_t begin, int64_t end) {
  constexpr int64_t rows = MatrixProduct::kRows, width = MatrixProduct::kColumns, most = MatrixProduct::kDepth;
  float* part = scratch(0, most * width);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t m = item % p.row_blocks() * rows, n = item / p.row_blocks() * width;
    const int64_t R = smaller(rows, p.M - m), columns = smaller(width, p.N - n), padded = round_up(columns, kLanes);
    float* c = p.c + m * p.N + n;
    int64_t k = 0;
    do {
      const int64_t depth = smaller(most, p.K - k);
      load_part(p, k, depth, n, columns, part);
      const float* add = k ? c : p.bias ? p.bias + n : nullptr;
      gemm<float, float>({p.a + m * p.am + k * p.ak, p.am, p.ak, 0, part, width, 0, add, k ? p.N : 0, c, p.N, depth, 1, columns - (padded - kLanes)},
                         R, padded);
    } while ((k += most) < p.K);
  }
}

}  // namespace skelops::SKELOPS_LEVEL
