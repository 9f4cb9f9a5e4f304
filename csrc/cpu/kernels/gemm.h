// A register-blocked matrix product for operands that already lie in cache: C (M, N) (+)= A (M, K) B (K, N).
// A is read by scalars with any two strides (so A or its transpose), B and C by rows; N is a multiple of kLanes.
#pragma once

#include "simd.h"

namespace skelops::SKELOPS_LEVEL {

constexpr int kRegisters = kLanes == 16 ? 24 : 12;  // accumulators; the rest hold B and the scalar of A

template <int M, int N>
inline __attribute__((always_inline)) void gemm_block(const float* a, int64_t am, int64_t ak, const float* b, int64_t ldb, float* c, int64_t ldc,
                                                      int64_t K, bool accumulate) {
  Vec acc[M][N] = {};
  for (int64_t k = 0; k < K; ++k, a += ak, b += ldb) {
    Vec row[N];
    for (int n = 0; n < N; ++n) row[n] = load(b + n * kLanes);
    for (int m = 0; m < M; ++m) {
      const float scalar = a[m * am];
      for (int n = 0; n < N; ++n) acc[m][n] += scalar * row[n];
    }
  }
  // What is there is added last: a long sum then is one of short sums, and rounds less.
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) {
      float* to = c + m * ldc + n * kLanes;
      store(to, accumulate ? load(to) + acc[m][n] : acc[m][n]);
    }
}

// M rows of C, N vectors wide; the rows left over run in blocks of 2 and 1.
template <int N>
void gemm_columns(const float* a, int64_t am, int64_t ak, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t M, int64_t K, bool accumulate) {
  constexpr int rows = kRegisters / N;
  int64_t m = 0;
  for (; m + rows <= M; m += rows) gemm_block<rows, N>(a + m * am, am, ak, b, ldb, c + m * ldc, ldc, K, accumulate);
  for (; m + 2 <= M; m += 2) gemm_block<2, N>(a + m * am, am, ak, b, ldb, c + m * ldc, ldc, K, accumulate);
  for (; m < M; ++m) gemm_block<1, N>(a + m * am, am, ak, b, ldb, c + m * ldc, ldc, K, accumulate);
}

inline void gemm(const float* a, int64_t am, int64_t ak, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t M, int64_t N, int64_t K,
                 bool accumulate) {
  constexpr int widest = kLanes == 16 ? 4 : 3;
  for (int64_t left = N / kLanes; left > 0;) {
    // A remainder of one vector is the slowest block (a load of A per product): 5 is done as 3 + 2.
    const int64_t n = left == widest + 1 ? (left + 1) / 2 : smaller(left, widest);
    const auto columns = n == widest ? gemm_columns<widest> : n == 3 ? gemm_columns<3> : n == 2 ? gemm_columns<2> : gemm_columns<1>;
    columns(a, am, ak, b, ldb, c, ldc, M, K, accumulate);
    b += n * kLanes, c += n * kLanes, left -= n;
  }
}

}  // namespace skelops::SKELOPS_LEVEL
