// Operands of matrix products: float, or bf16 where the CPU multiplies that. Of bf16, a step of a sum takes a pair of terms
// that lie side by side, so that a scalar is a pair and a vector holds the pairs of kLanes columns; the sum stays float.
#pragma once

#include "simd.h"

namespace skelops::SKELOPS_LEVEL {

#if defined(__AVX512BF16__)
using Bf16Operand = bf16;
#else
using Bf16Operand = float;
#endif

template <typename T>
constexpr int64_t kTermsPerStep = sizeof(float) / sizeof(T);

template <typename T>
constexpr int64_t steps_of(int64_t terms) {
  return (terms + kTermsPerStep<T> - 1) / kTermsPerStep<T>;
}

inline float scalar_of(const float* p) { return *p; }
inline Vec vector_of(const float* p) { return load(p); }

template <typename Scalar>
inline Vec multiply_add(Vec sum, Scalar a, Vec b) {
  return sum + a * b;
}

#if defined(__AVX512BF16__)
inline int32_t scalar_of(const bf16* p) {
  int32_t pair;
  __builtin_memcpy(&pair, p, sizeof(pair));
  return pair;
}

inline IntVec vector_of(const bf16* p) { return reinterpret_cast<IntVec>(load(reinterpret_cast<const float*>(p))); }

inline Vec multiply_add(Vec sum, IntVec a, IntVec b) {
  return reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), (__m512bh)a, (__m512bh)b));
}

inline Vec multiply_add(Vec sum, int32_t a, IntVec b) { return multiply_add(sum, reinterpret_cast<IntVec>(_mm512_set1_epi32(a)), b); }
#endif

// out[r] = pairs of the rows in[r * ld] and in[r * ld + second], width of them, by whole vectors that end with zeros; past the first
// seconds rows, the second is zero. in and out may be the same memory where ld is at least ld_out.
template <typename T>
void pair_rows(const T* in, int64_t ld, int64_t second, int64_t rows, int64_t seconds, int64_t width, bf16* out, int64_t ld_out) {
  for (int64_t r = 0; r < rows; ++r, in += ld, out += ld_out)
    for (int64_t c = 0; c < width; c += kLanes) {
      const UintVec low = __builtin_convertvector(load_bf16(in + c, width - c), UintVec);
      const UintVec high = r < seconds ? __builtin_convertvector(load_bf16(in + second + c, width - c), UintVec) : UintVec{};
      store(reinterpret_cast<float*>(out + 2 * c), reinterpret_cast<Vec>(low | high << 16));
    }
}

// A tile as an operand of products that sum over its rows.
template <typename T>
struct Summed {
  const T* data;
  int64_t ld;

  const T* at(int64_t row, int64_t channel) const { return data + row * ld + channel * kTermsPerStep<T>; }
};

// Rows first .. end of a tile, so that a sum over rows 0 .. 2 * half takes half steps, wherever it begins: a pair is rows r and
// r + half. end - half rows at least are there; what would lie past the end counts as zero. Pairs go to memory.
inline Summed<float> summed(const float* tile, int64_t ld, int64_t, int64_t, int64_t, int64_t, float*) { return {tile, ld}; }
inline Summed<bf16> summed(const bf16* tile, int64_t ld, int64_t first, int64_t end, int64_t half, int64_t width, float* memory) {
  bf16* pairs = reinterpret_cast<bf16*>(memory);
  const int64_t rows = half - 2 * first;
  pair_rows(tile + first * ld, ld, half * ld, rows, smaller(rows, end - first - half), width, pairs, 2 * width);
  return {pairs - first * 2 * width, 2 * width};
}

template <typename T>
T* scratch_of(int slot, int64_t n) {
  return reinterpret_cast<T*>(scratch(slot, n));
}

}  // namespace skelops::SKELOPS_LEVEL
