// Vectors of kLanes floats in the compiler's own vector type (+, *, comparisons and scalar operands come with it), and
// what that type lacks: loads of several storage types, partial loads, reductions, exp, tanh and a register transpose.
#pragma once

#include "level.h"

#if SKELOPS_X86
#include <immintrin.h>
#endif

namespace skelops::SKELOPS_LEVEL {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kSide = kLanes == 16 ? 5 : 3;  // kSide^2 accumulators fit the registers; 5 divides 25 and 20 joints

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));
typedef uint32_t UintVec __attribute__((vector_size(4 * kLanes)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * kLanes)));
// The same vectors at any address: a plain Vec access promises alignment to its full size.
typedef float LooseVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint16_t LooseHalfVec __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

inline Vec splat(float value) { return Vec{} + value; }

inline Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }

inline Vec load(const bf16* p) {
  const HalfVec bits = *reinterpret_cast<const LooseHalfVec*>(p);
  return reinterpret_cast<Vec>(__builtin_convertvector(bits, UintVec) << 16);
}

inline void store(float* p, Vec x) { *reinterpret_cast<LooseVec*>(p) = x; }

// Round to nearest even; a NaN stays a NaN (rounding could carry its mantissa into infinity).
inline HalfVec to_bf16(Vec x) {
#if defined(__AVX512BF16__)
  return (HalfVec)_mm512_cvtneps_pbh(reinterpret_cast<__m512>(x));
#else
  const UintVec bits = reinterpret_cast<UintVec>(x);
  const UintVec rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const UintVec nan = reinterpret_cast<UintVec>(x != x);
  const UintVec chosen = (nan & ((bits >> 16) | 0x40u)) | (~nan & (rounded >> 16));
  return __builtin_convertvector(chosen, HalfVec);
#endif
}

inline void store(bf16* p, Vec x) { *reinterpret_cast<LooseHalfVec*>(p) = to_bf16(x); }

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

inline HalfVec load_bf16(const bf16* p) { return *reinterpret_cast<const LooseHalfVec*>(p); }
inline HalfVec load_bf16(const float* p) { return to_bf16(load(p)); }

inline void put(float* p, float x) { *p = x; }
inline void put(bf16* p, float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  const uint32_t rounded = x != x ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  p->bits = static_cast<uint16_t>(rounded);
}

// The first n <= kLanes elements; the other lanes are zero. Never touches memory past them.
inline Vec load_first(const float* p, int64_t n) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p));
#else
  Vec x{};
  __builtin_memcpy(&x, p, 4 * n);
  return x;
#endif
}

inline Vec load_first(const bf16* p, int64_t n) {
  HalfVec bits{};
#if defined(__AVX512F__)
  bits = reinterpret_cast<HalfVec>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p));
#else
  __builtin_memcpy(&bits, p, 2 * n);
#endif
  return reinterpret_cast<Vec>(__builtin_convertvector(bits, UintVec) << 16);
}

inline void store_first(float* p, Vec x, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), reinterpret_cast<__m512>(x));
#else
  __builtin_memcpy(p, &x, 4 * n);
#endif
}

inline void store_first(bf16* p, Vec x, int64_t n) {
#if defined(__AVX512F__)
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1), reinterpret_cast<__m256i>(to_bf16(x)));
#else
  const HalfVec bits = to_bf16(x);
  __builtin_memcpy(p, &bits, 2 * n);
#endif
}

inline float sum(Vec x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(x));
#else
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
#endif
}

inline Vec maximum(Vec a, Vec b) { return a > b ? a : b; }

inline float maximum(Vec x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(reinterpret_cast<__m512>(x));
#else
  float most = x[0];
  for (int i = 1; i < kLanes; ++i) most = most > x[i] ? most : x[i];
  return most;
#endif
}

// exp(x) to about one unit in the last place: 2^n * p(r), r = x - n ln 2 in [-ln2/2, ln2/2], p the Taylor polynomial of degree 7.
// Below -87.3 the result is 0 (no subnormals); above 88.7 it is infinity; NaN stays NaN.
inline Vec exp(Vec x) {
  const Vec clamped = x < -87.3f ? splat(-87.3f) : (x > 88.7f ? splat(88.7f) : x);
  const Vec shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum rounds to an integer
  const Vec n = shifted - 12582912.0f;
  const Vec r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  Vec p = splat(1.98412698e-4f);
  p = p * r + 1.38888889e-3f;
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // Scaled in two steps: 2^128 alone is past the largest float.
  const IntVec exponent = __builtin_convertvector(n, IntVec);
  const IntVec half = exponent >> 1;
  const Vec low = reinterpret_cast<Vec>((half + 127) << 23);
  const Vec high = reinterpret_cast<Vec>((exponent - half + 127) << 23);
  const Vec value = p * low * high;
  const Vec bounded = x < -87.3f ? splat(0.0f) : (x > 88.7f ? splat(__builtin_inff()) : value);
  return x != x ? x : bounded;
}

// tanh(x) to about two units in the last place: 1 - 2 / (e^2|x| + 1), and near zero, where that cancels, an odd minimax
// polynomial (that of the Cephes library). NaN stays NaN.
inline Vec tanh(Vec x) {
  const Vec size = x < 0.0f ? -x : x;
  const Vec far = 1.0f - 2.0f / (exp(size + size) + 1.0f);
  const Vec square = x * x;
  Vec p = splat(-5.70498872745e-3f);
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const Vec near = p * square * x + x;
  return size < 0.625f ? near : x < 0.0f ? -far : far;
}

// rows[i] becomes column i: log2(kLanes) rounds of pairwise exchange.
template <int Step>
inline void exchange(Vec* rows) {
  constexpr auto low = [](int i) { return (i / Step) % 2 ? kLanes + i - Step : i; };
  constexpr auto high = [](int i) { return (i / Step) % 2 ? kLanes + i : i + Step; };
  for (int i = 0; i < kLanes; ++i) {
    if ((i / Step) % 2) continue;
    const Vec a = rows[i], b = rows[i + Step];
#if defined(__AVX512F__)
    rows[i] = __builtin_shufflevector(a, b, low(0), low(1), low(2), low(3), low(4), low(5), low(6), low(7), low(8), low(9),
                                      low(10), low(11), low(12), low(13), low(14), low(15));
    rows[i + Step] = __builtin_shufflevector(a, b, high(0), high(1), high(2), high(3), high(4), high(5), high(6), high(7), high(8),
                                             high(9), high(10), high(11), high(12), high(13), high(14), high(15));
#elif defined(__AVX2__)
    rows[i] = __builtin_shufflevector(a, b, low(0), low(1), low(2), low(3), low(4), low(5), low(6), low(7));
    rows[i + Step] = __builtin_shufflevector(a, b, high(0), high(1), high(2), high(3), high(4), high(5), high(6), high(7));
#else
    rows[i] = __builtin_shufflevector(a, b, low(0), low(1), low(2), low(3));
    rows[i + Step] = __builtin_shufflevector(a, b, high(0), high(1), high(2), high(3));
#endif
  }
}

inline void transpose(Vec* rows) {
#if defined(__AVX512F__)
  exchange<8>(rows);
#endif
#if defined(__AVX512F__) || defined(__AVX2__)
  exchange<4>(rows);
#endif
  exchange<2>(rows);
  exchange<1>(rows);
}

// sums[i] += the sum of the lanes of x[i], for n vectors: cheaper together than one by one.
inline void add_lane_sums(const Vec* x, int64_t n, float* sums) {
  Vec block[kLanes];
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t count = smaller(kLanes, n - i);
    for (int64_t j = 0; j < kLanes; ++j) block[j] = j < count ? x[i + j] : Vec{};
    transpose(block);
    Vec total{};
    for (int64_t j = 0; j < kLanes; ++j) total += block[j];
    if (count == kLanes)
      store(sums + i, load(sums + i) + total);
    else
      store_first(sums + i, load_first(sums + i, count) + total, count);
  }
}

// The vector at p, of whose row n elements are left; the other lanes are zero.
template <typename T>
inline Vec load_some(const T* p, int64_t n) {
  return n >= kLanes ? load(p) : load_first(p, n);
}

template <typename T>
inline HalfVec load_bf16(const T* p, int64_t n) {
  return n >= kLanes ? load_bf16(p) : to_bf16(load_first(p, n));
}

template <typename T>
inline void store_some(T* p, Vec x, int64_t n) {
  n >= kLanes ? store(p, x) : store_first(p, x, n);
}

// Where the block of kLanes that is due at i begins in n elements: the last one early enough to be whole, as it can be where n
// is large enough. From memory that is not cached, loads of a part of a vector take far longer than doing a few elements twice.
inline int64_t block_start(int64_t i, int64_t n) { return n < kLanes ? i : smaller(i, n - kLanes); }

// Calls body(i, n) for blocks of n elements from i on that cover `count`, every block whole where there are enough of them.
template <typename Body>
inline void for_blocks(int64_t count, const Body& body) {
  for (int64_t i = 0; i < count; i += kLanes) body(block_start(i, count), smaller(kLanes, count));
}

// out[c][r] = in[r][c] for a (rows, columns) matrix; out rows are padded with zeros up to a multiple of kLanes columns.
// ldin and ldout count elements between rows; In and Out are any of float and bf16.
template <typename In, typename Out>
inline void transpose_tile(const In* in, int64_t ldin, int64_t rows, int64_t columns, Out* out, int64_t ldout, bool pad) {
  Vec block[kLanes];
  for (int64_t first_r = 0; first_r < rows; first_r += kLanes) {
    const int64_t r = pad ? first_r : block_start(first_r, rows), nr = smaller(kLanes, rows - r);
    for (int64_t first_c = 0; first_c < columns; first_c += kLanes) {
      const int64_t c = block_start(first_c, columns), nc = smaller(kLanes, columns - c);
      // Unrolled whole, the block stays in registers; as a loop, the stores became a copy of memory that waits for the loads.
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i)
        block[i] = i >= nr ? Vec{} : nc == kLanes ? load(in + (r + i) * ldin + c) : load_first(in + (r + i) * ldin + c, nc);
      transpose(block);
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) {
        if (i >= nc) break;
        Out* row = out + (c + i) * ldout + r;
        if (nr == kLanes || pad)
          store(row, block[i]);
        else
          store_first(row, block[i], nr);
      }
    }
  }
}

}  // namespace skelops::SKELOPS_LEVEL
