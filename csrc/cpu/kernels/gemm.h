// A register-blocked matrix product for operands that already lie in cache: C (M, N) = [add +] A (M, K) B (K, N).
// A is read by scalars with any strides (so A or its transpose), B and C by rows; N is a multiple of kLanes. The sum may
// run over several taps: parts of A and B that lie at equal distances.
//
// Operands are float, or bf16 where the CPU multiplies that (Bf16Operand): a step of the sum then takes two terms, which
// lie side by side in A and B, so that a scalar of A is a pair and a row of B is N pairs. The sum stays float.
#pragma once

#include "simd.h"

namespace skelops::SKELOPS_LEVEL {

constexpr int kRegisters = kLanes == 16 ? 24 : 12;  // accumulators; the rest hold B and the scalar of A

#if defined(__AVX512BF16__)
using Bf16Operand = bf16;
#else
using Bf16Operand = float;
#endif

template <typename T>
constexpr int64_t kTermsPerStep = sizeof(float) / sizeof(T);

inline float scalar_of(const float* a) { return *a; }
inline Vec multiply_add(Vec sum, float a, Vec b) { return sum + a * b; }

#if defined(__AVX512BF16__)
inline int32_t scalar_of(const bf16* a) {
  int32_t pair;
  __builtin_memcpy(&pair, a, 4);
  return pair;
}

inline Vec multiply_add(Vec sum, int32_t a, Vec b) {
  return reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), (__m512bh)_mm512_set1_epi32(a), (__m512bh)b));
}
#endif

template <typename T>
struct Product {
  const T* a;  // A[m, (tap, k)] = a[m * am + tap * at + k * ak]
  int64_t am, ak, at;
  const T* b;  // B[(tap, k), n] = b[tap * bt + k * bk + n * kTermsPerStep]
  int64_t bk, bt;
  const float* add;  // added to row m: add + m * addm, which may be C itself or a bias (addm 0); or null
  int64_t addm;
  float* c;
  int64_t cm;
  int64_t K, taps;  // the sum has taps * K steps
};

// The M rows of C at p.c, N vectors wide.
template <int M, int N, typename T>
inline __attribute__((always_inline)) void gemm_block(const Product<T>& p) {
  Vec acc[M][N] = {};
  const T *a_tap = p.a, *b_tap = p.b;
  int64_t taps = p.taps;
  do {
    const T *a = a_tap, *b = b_tap;
    for (int64_t k = 0; k < p.K; ++k, a += p.ak, b += p.bk) {
      Vec row[N];
      for (int n = 0; n < N; ++n) row[n] = load(reinterpret_cast<const float*>(b) + n * kLanes);
      for (int m = 0; m < M; ++m) {
        const auto scalar = scalar_of(a + m * p.am);
        for (int n = 0; n < N; ++n) acc[m][n] = multiply_add(acc[m][n], scalar, row[n]);
      }
    }
    a_tap += p.at, b_tap += p.bt;
  } while (--taps > 0);
  // What is there is added last: a long sum then is one of short sums, and rounds less.
  if (p.add) {
#pragma GCC unroll 24
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[m][n] += load(p.add + m * p.addm + n * kLanes);
  }
#pragma GCC unroll 24
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) store(p.c + m * p.cm + n * kLanes, acc[m][n]);
}

// Blocks of M rows as long as they fit; p moves on to the rows left over.
template <int M, int N, typename T>
inline __attribute__((always_inline)) void gemm_rows(Product<T>& p, int64_t& left) {
  for (; left >= M; left -= M) {
    gemm_block<M, N>(p);
    p.a += M * p.am, p.c += M * p.cm;
    if (p.add) p.add += M * p.addm;
  }
}

// N vectors wide; the rows left over run in blocks of 4, 2 and 1.
template <int N, typename T>
void gemm_columns(Product<T> p, int64_t M) {
  // One vector alone needs a load of A per product, with as many addresses: more than 8 do not fit the registers.
  gemm_rows<N == 1 ? 8 : kRegisters / N, N>(p, M);
  gemm_rows<4, N>(p, M);
  gemm_rows<2, N>(p, M);
  gemm_rows<1, N>(p, M);
}

template <typename T>
void gemm(Product<T> p, int64_t M, int64_t N) {
  constexpr int widest = kLanes == 16 ? 4 : 3;
  for (int64_t left = N / kLanes; left > 0;) {
    // A remainder of one vector is the slowest block (a load of A per product): 5 is done as 3 + 2.
    const int64_t n = left == widest + 1 ? (left + 1) / 2 : smaller(left, widest);
    const auto columns = n == widest ? gemm_columns<widest, T> : n == 3 ? gemm_columns<3, T> : n == 2 ? gemm_columns<2, T> : gemm_columns<1, T>;
    columns(p, M);
    p.b += n * kLanes * kTermsPerStep<T>, p.c += n * kLanes, left -= n;
    if (p.add) p.add += n * kLanes;
  }
}

// C (M, N) [+]= A B with rows of B and C at ldb and ldc.
template <typename T>
Product<T> product(const T* a, int64_t am, int64_t ak, const T* b, int64_t ldb, float* c, int64_t ldc, int64_t K, bool accumulate) {
  return {a, am, ak, 0, b, ldb, 0, accumulate ? c : nullptr, ldc, c, ldc, K, 1};
}

template <int M, int N>
inline __attribute__((always_inline)) void gemm_block(const float* a, int64_t am, int64_t ak, const float* b, int64_t ldb, float* c, int64_t ldc,
                                                      int64_t K, bool accumulate) {
  gemm_block<M, N>(product(a, am, ak, b, ldb, c, ldc, K, accumulate));
}

template <typename T>
void gemm(const T* a, int64_t am, int64_t ak, const T* b, int64_t ldb, float* c, int64_t ldc, int64_t M, int64_t N, int64_t K, bool accumulate) {
  gemm(product(a, am, ak, b, ldb, c, ldc, K, accumulate), M, N);
}

// out[r] = pairs of the rows in[r * ld] and in[r * ld + second], width of them; past the first seconds rows, the second is zero.
// in and out may be the same memory where ld is at least ld_out.
template <typename T>
void pair_rows(const T* in, int64_t ld, int64_t second, int64_t rows, int64_t seconds, int64_t width, bf16* out, int64_t ld_out) {
  for (int64_t r = 0; r < rows; ++r, in += ld, out += ld_out)
    for (int64_t c = 0; c < width; c += kLanes) {
      const UintVec low = __builtin_convertvector(load_bf16(in + c), UintVec);
      const UintVec high = r < seconds ? __builtin_convertvector(load_bf16(in + second + c), UintVec) : UintVec{};
      store(reinterpret_cast<float*>(out + 2 * c), reinterpret_cast<Vec>(low | high << 16));
    }
}

}  // namespace skelops::SKELOPS_LEVEL
