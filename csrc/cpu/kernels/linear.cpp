// Matrix products of which an operand is large: B is copied in parts of (kDepth, kColumns), its columns along the vector lanes; for
// products of bf16 as pairs of terms (see operands.h).
#include "linear.h"

#include "gemm.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

constexpr int64_t kWidth = MatrixProduct::kColumns;

// (depth, columns) of B, its strides bk and bn, as rows kWidth apart; the columns are padded to whole vectors.
void load_part(const float* b, int64_t bk, int64_t bn, int64_t depth, int64_t columns, float* part) {
  if (bn != 1) return transpose_tile(b, bn, columns, depth, part, kWidth, true);
  for (int64_t i = 0; i < depth; ++i, b += bk, part += kWidth)
    for (int64_t c = 0; c < columns; c += kLanes) store(part + c, load_some(b + c, columns - c));
}

// (depth, R) of a transposed A as rows ld apart: where they lie, a step may be a whole number of pages from the next, and all
// steps then share one set of the L1 cache.
void load_steps(const float* a, int64_t ak, int64_t depth, int64_t R, float* steps, int64_t ld) {
  for (int64_t k = 0; k < depth; ++k, a += ak, steps += ld)
    for (int64_t r = 0; r < R; r += kLanes) store_some(steps + r, load_some(a + r, R - r), R - r);
}

#if defined(__AVX512BF16__)
// n > 0 terms of a row as kLanes pairs of neighbours; past the row they are zero.
Vec load_pairs(const float* p, int64_t n) {
  const Vec low = load_some(p, n), high = n > kLanes ? load_some(p + kLanes, n - kLanes) : Vec{};
  return reinterpret_cast<Vec>(_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high), reinterpret_cast<__m512>(low)));
}

template <typename T>
void load_part(const T* b, int64_t bk, int64_t bn, int64_t depth, int64_t columns, bf16* part) {
  if constexpr (sizeof(T) == sizeof(float))
    if (bn != 1) {
      Vec block[kLanes];
      for (int64_t n = 0; n < columns; n += kLanes)
        for (int64_t k = 0; k < depth; k += 2 * kLanes) {
#pragma GCC unroll 16
          for (int64_t i = 0; i < kLanes; ++i) block[i] = n + i < columns ? load_pairs(b + (n + i) * bn + k, depth - k) : Vec{};
          transpose(block);
          const int64_t steps = smaller(kLanes, steps_of<bf16>(depth - k));
          for (int64_t i = 0; i < steps; ++i) store(reinterpret_cast<float*>(part) + (k / 2 + i) * kWidth + n, block[i]);
        }
      return;
    }
  pair_rows(b, 2 * bk, bk, steps_of<bf16>(depth), depth / 2, columns, part, 2 * kWidth);
}

void load_steps(const bf16* a, int64_t ak, int64_t depth, int64_t R, bf16* steps, int64_t ld) {
  pair_rows(a, 2 * ak, ak, steps_of<bf16>(depth), depth / 2, R, steps, 2 * ld);
}
#endif

// T is the operands' type in products and that of A, B and C those of the matrices.
template <typename T, typename B, typename C>
void multiply(const MatrixProduct& p, int64_t begin, int64_t end) {
  constexpr int64_t rows = MatrixProduct::kRows, terms = kTermsPerStep<T>, most = MatrixProduct::kDepth * terms;
  constexpr int64_t apart = rows + kLanes;  // of the steps of A
  constexpr bool in_place = sizeof(C) == sizeof(float);
  const bool transposed = p.am == 1 && p.ak > 1;
  const int64_t am = transposed ? terms : p.am, ak = terms * (transposed ? apart : p.ak);
  const B* b = static_cast<const B*>(p.b);
  T* part = scratch_of<T>(0, MatrixProduct::kDepth * kWidth);
  float* sums = in_place ? nullptr : scratch(1, rows * kWidth);  // (rows, kWidth)
  T* steps = transposed ? scratch_of<T>(2, MatrixProduct::kDepth * apart) : nullptr;
  const int64_t down = p.row_blocks(), across = p.items() / down;
  int64_t loaded = -1;  // where the rows of `steps` begin that serve the next item, too
  for (int64_t item = begin; item < end; ++item) {
    // Of a copied A the same rows meet all columns in turn, else the same columns, of a large B, all rows.
    const int64_t m = (transposed ? item / across : item % down) * rows, n = (transposed ? item % across : item / down) * kWidth;
    const int64_t R = smaller(rows, p.M - m), columns = smaller(kWidth, p.N - n), width = round_up(columns, kLanes);
    C* out = static_cast<C*>(p.c) + m * p.N + n;
    float* c = in_place ? reinterpret_cast<float*>(out) : sums;
    const int64_t ld = in_place ? p.N : kWidth;
    int64_t k = 0;
    do {
      const int64_t depth = smaller(most, p.K - k);
      const T* a = static_cast<const T*>(p.a) + m * p.am + k * p.ak;
      load_part(b + k * p.bk + n * p.bn, p.bk, p.bn, depth, columns, part);
      if (transposed && loaded != m) load_steps(a, p.ak, depth, R, steps, apart);
      if (p.K <= most) loaded = m;
      const float* add = k ? c : p.bias ? p.bias + n : nullptr;
      gemm<T, float>({transposed ? steps : a, am, ak, 0, part, terms * kWidth, 0, add, k ? ld : 0, c, ld, steps_of<T>(depth), 1,
                      columns - (width - kLanes)},
                     R, width);
    } while ((k += most) < p.K);
    if constexpr (!in_place)
      for (int64_t r = 0; r < R; ++r)
        for (int64_t i = 0; i < columns; i += kLanes) store_some(out + r * p.N + i, load(c + r * kWidth + i), columns - i);
  }
}

}  // namespace

void matrix_product(const MatrixProduct& p, int64_t begin, int64_t end) {
#if defined(__AVX512BF16__)
  if (p.a_type == Dtype::bf16) return p.c_type == Dtype::bf16 ? multiply<bf16, float, bf16>(p, begin, end) : multiply<bf16, bf16, float>(p, begin, end);
#endif
  multiply<float, float, float>(p, begin, end);
}

}  // namespace skelops::SKELOPS_LEVEL
