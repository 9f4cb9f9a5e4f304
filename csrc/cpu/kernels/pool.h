// What the kernels of squeeze_pool and mask_pool share.
#pragma once

#include "simd.h"

namespace skelops::SKELOPS_LEVEL {

// One element of a bool tensor, 0 or 1.
struct Bool {
  uint8_t value;
};

typedef uint8_t ByteVec __attribute__((vector_size(kLanes)));

inline Vec load_first(const Bool* p, int64_t n) {
  ByteVec bytes{};
  __builtin_memcpy(&bytes, p, n);
  return __builtin_convertvector(__builtin_convertvector(bytes, IntVec), Vec);
}

inline Vec load(const Bool* p) { return load_first(p, kLanes); }

// The vector at p, whose lanes past the row are of no interest: they may hold the start of the next row, and a store may
// spoil what will be written there. Memory past the end is not touched. A partial access, which this avoids, is several
// times slower below AVX-512.
template <typename T>
inline Vec load_within(const T* p, const T* end) {
  return load_some(p, end - p);
}

// load_within that asks for memory 4 KB ahead: the hardware does so too late for these kernels (by up to a half of their
// time), most of all where they read several rows in turns.
template <typename T>
inline Vec load_ahead(const T* p, const T* end) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + 4096);
  return load_within(p, end);
}

template <typename T>
inline void store_within(T* p, Vec x, const T* end) {
  store_some(p, x, end - p);
}

// n is a multiple of kLanes.
inline void clear(float* p, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) store(p + i, Vec{});
}

inline void add(float* p, Vec x) { store(p, load(p) + x); }

// All bits of the first n lanes.
inline IntVec first_lanes(int64_t n) {
  IntVec lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return lane < static_cast<int32_t>(n);
}

inline Vec select(IntVec lanes, Vec x) { return reinterpret_cast<Vec>(lanes & reinterpret_cast<IntVec>(x)); }

// Lane i of the result is the sum of rows[i], which are spoilt: half the shuffles of a transpose.
template <int Step = kLanes / 2>
inline Vec row_sums(Vec* rows) {
  exchange<Step>(rows);
  for (int i = 0; i < Step; ++i) rows[i] += rows[i + Step];
  if constexpr (Step > 1)
    return row_sums<Step / 2>(rows);
  else
    return rows[0];
}

}  // namespace skelops::SKELOPS_LEVEL
