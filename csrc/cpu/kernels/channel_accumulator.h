// N sums per channel along the lines of a map: float over a few hundred elements, then double.
#pragma once

#include "lines.h"
#include "simd.h"

namespace skelops::SKELOPS_LEVEL {

// Lines of a channels_last map that are run along side by side: they share the coefficients and the sums of a column.
constexpr int kTogether = 4;
// Additions in float.
constexpr int kDepth = 128;

// The vector at p, of whose line n elements are left; the other lanes are zero. Asks for memory 2 KB ahead.
template <typename T>
inline Vec load_ahead(const T* p, int64_t n) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + 2048);
  return load_some(p, n);
}

// The coefficients of the vector at element i of a line.
template <bool Last>
inline Vec coefficients(const float* table, int64_t i) {
  return Last ? load(table + i) : splat(*table);
}

// Calls vectors(i, n) for elements first..last of a line: n is kLanes, or less at the end.
template <typename Body>
__attribute__((always_inline)) inline void along(int64_t first, int64_t last, const Body& vectors) {
  int64_t i = first;
  for (; i + kLanes <= last; i += kLanes) vectors(i, kLanes);
  if (i < last) vectors(i, last - i);
}

// Calls body.operator()<K>(line) for lines begin..end, K = kTogether at a time where these are whole and channels_last.
template <bool Last, typename Body>
inline void side_by_side(const Lines& lines, int64_t begin, int64_t end, const Body& body) {
  int64_t line = begin;
  if constexpr (Last)
    for (const int64_t whole = smaller(end, lines.total / lines.width); line + kTogether <= whole; line += kTogether)
      body.template operator()<kTogether>(line);
  for (; line < end; ++line) body.template operator()<1>(line);
}

// Adds up what `rows` yield over lines begin..end: rows.operator()<K>(line, first, last, columns, ld, plane) adds sum n of
// elements first..last of K lines to columns + n * ld + i where the map is channels_last, and to plane[n] where it is not.
// sums (N, C) take the result.
template <bool Last, int N, typename Rows>
inline void accumulate(const Lines& lines, int64_t begin, int64_t end, double* sums, const Rows& rows) {
  const int64_t C = lines.C, ld = round_up(lines.width, kLanes);
  float* columns = Last ? scratch(0, N * ld) : nullptr;
  for (int64_t i = 0; Last && i < N * ld; i += kLanes) store(columns + i, Vec{});
  int depth = 0;
  const auto flush = [&] {
    for (int n = 0; n < N; ++n)
      for (int64_t i = 0; i < lines.width; i += C) {
        float* column = columns + n * ld + i;
        for (int64_t c = 0; c < C; ++c) {
          sums[n * C + c] += column[c];
          column[c] = 0;
        }
      }
    depth = 0;
  };
  side_by_side<Last>(lines, begin, end, [&]<int K>(int64_t line) {
    const int64_t length = lines.length(line), block = Last ? lines.width : kDepth * kLanes;
    for (int64_t first = 0; first < length; first += block) {
      Vec plane[N] = {};
      rows.template operator()<K>(line, first, smaller(first + block, length), columns, ld, plane);
      for (int n = 0; !Last && n < N; ++n) sums[n * C + line % C] += sum(plane[n]);
    }
    if (Last && ++depth == kDepth) flush();
  });
  if constexpr (Last) flush();
}

// Adds x to one of the sums of `accumulate`.
template <bool Last>
inline void add_to(float* column, Vec& plane, Vec x) {
  if constexpr (Last)
    store(column, load(column) + x);
  else
    plane += x;
}

}  // namespace skelops::SKELOPS_LEVEL
