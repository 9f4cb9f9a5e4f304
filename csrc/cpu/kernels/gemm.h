// A register-blocked matrix product for operands that already lie in cache: C (M, N) = [add +] A (M, K) B (K, N).
// A is read by scalars with any strides (so A or its transpose), B and C by rows; N is a multiple of kLanes. The sum may
// run over several taps: parts of A and B that lie at equal distances.
// Operands are float or bf16 (see operands.h), C is either, too, but for one that is added to.
#pragma once

#include "operands.h"

namespace skelops::SKELOPS_LEVEL {

constexpr int kRegisters = kLanes == 16 ? 24 : 12;  // accumulators; the rest hold B and the scalar of A

template <typename T, typename Out = float>
struct Product {
  const T* a;  // A[m, (tap, k)] = a[m * am + tap * at + k * ak]
  int64_t am, ak, at;
  const T* b;  // B[(tap, k), n] = b[tap * bt + k * bk + n * kTermsPerStep]
  int64_t bk, bt;
  const float* add;  // added to row m: add + m * addm, which may be C itself or a bias (addm 0); or null
  int64_t addm;
  Out* c;
  int64_t cm;
  int64_t K, taps;  // the sum has taps * K steps
  int64_t last = kLanes;  // columns of the last vector of a row; what lies after them is neither read nor written
};

// The M rows of C at p.c, N vectors wide.
template <int M, int N, typename T, typename Out>
inline __attribute__((always_inline)) void gemm_block(const Product<T, Out>& p) {
  Vec acc[M][N] = {};
  // Sums that do not fit the cache arrive while the products run.
  if (p.add && p.addm) {
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) __builtin_prefetch(p.add + m * p.addm + n * kLanes, 1);
  }
  const T *a_tap = p.a, *b_tap = p.b;
  int64_t taps = p.taps;
  do {
    const T *a = a_tap, *b = b_tap;
    for (int64_t k = 0; k < p.K; ++k, a += p.ak, b += p.bk) {
      decltype(vector_of(b)) row[N];
      for (int n = 0; n < N; ++n) row[n] = vector_of(b + n * kLanes * kTermsPerStep<T>);
      for (int m = 0; m < M; ++m) {
        const auto scalar = scalar_of(a + m * p.am);
        for (int n = 0; n < N; ++n) acc[m][n] = multiply_add(acc[m][n], scalar, row[n]);
      }
    }
    a_tap += p.at, b_tap += p.bt;
  } while (--taps > 0);
  const auto whole = [&](int n) { return n < N - 1 || p.last == kLanes; };
  // What is there is added last: a long sum then is one of short sums, and rounds less.
  if (p.add) {
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const float* add = p.add + m * p.addm + n * kLanes;
        acc[m][n] += whole(n) ? load(add) : load_first(add, p.last);
      }
  }
#pragma GCC unroll 24
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      Out* c = p.c + m * p.cm + n * kLanes;
      whole(n) ? store(c, acc[m][n]) : store_first(c, acc[m][n], p.last);
    }
}

// Blocks of M rows as long as they fit; p moves on to the rows left over.
template <int M, int N, typename T, typename Out>
inline __attribute__((always_inline)) void gemm_rows(Product<T, Out>& p, int64_t& left) {
  for (; left >= M; left -= M) {
    gemm_block<M, N>(p);
    p.a += M * p.am, p.c += M * p.cm;
    if (p.add) p.add += M * p.addm;
  }
}

// N vectors wide; the rows left over run in blocks of 4, 2 and 1.
template <int N, typename T, typename Out>
void gemm_columns(Product<T, Out> p, int64_t M) {
  // One vector alone needs a load of A per product, with as many addresses: more than 8 do not fit the registers.
  gemm_rows<N == 1 ? 8 : kRegisters / N, N>(p, M);
  gemm_rows<4, N>(p, M);
  gemm_rows<2, N>(p, M);
  gemm_rows<1, N>(p, M);
}

template <typename T, typename Out>
void gemm(Product<T, Out> p, int64_t M, int64_t N) {
  constexpr int widest = kLanes == 16 ? 4 : 3;
  for (int64_t left = N / kLanes; left > 0;) {
    // A remainder of one vector is the slowest block (a load of A per product): 5 is done as 3 + 2.
    const int64_t n = left == widest + 1 ? (left + 1) / 2 : smaller(left, widest);
    const auto columns = n == widest ? gemm_columns<widest, T, Out> : n == 3 ? gemm_columns<3, T, Out> : n == 2 ? gemm_columns<2, T, Out> : gemm_columns<1, T, Out>;
    Product<T, Out> chunk = p;
    if (left > n) chunk.last = kLanes;
    columns(chunk, M);
    p.b += n * kLanes * kTermsPerStep<T>, p.c += n * kLanes, left -= n;
    if (p.add) p.add += n * kLanes;
  }
}

// C (M, N) [+]= A B with rows of B and C at ldb and ldc; accumulate takes a C of float.
template <typename T, typename Out>
Product<T, Out> product(const T* a, int64_t am, int64_t ak, const T* b, int64_t ldb, Out* c, int64_t ldc, int64_t K, bool accumulate) {
  return {a, am, ak, 0, b, ldb, 0, accumulate ? reinterpret_cast<const float*>(c) : nullptr, ldc, c, ldc, K, 1};
}

template <int M, int N>
inline __attribute__((always_inline)) void gemm_block(const float* a, int64_t am, int64_t ak, const float* b, int64_t ldb, float* c, int64_t ldc,
                                                      int64_t K, bool accumulate) {
  gemm_block<M, N>(product(a, am, ak, b, ldb, c, ldc, K, accumulate));
}

template <typename T, typename Out>
void gemm(const T* a, int64_t am, int64_t ak, const T* b, int64_t ldb, Out* c, int64_t ldc, int64_t M, int64_t N, int64_t K, bool accumulate) {
  gemm(product(a, am, ak, b, ldb, c, ldc, K, accumulate), M, N);
}

// sum (M, N) [+]= a^T g over the rows of both tiles, or g^T a: the gradient of a weight by input or by output channels.
template <typename T>
void weight_gradient(const Summed<T>& a, const Summed<T>& g, bool by_input, float* sum, int64_t M, int64_t N, int64_t steps, bool accumulate) {
  const Summed<T>&first = by_input ? a : g, &second = by_input ? g : a;
  gemm(first.data, kTermsPerStep<T>, first.ld, second.data, second.ld, sum, N, M, N, steps, accumulate);
}

}  // namespace skelops::SKELOPS_LEVEL
