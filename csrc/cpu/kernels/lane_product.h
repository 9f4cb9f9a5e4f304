// Matrix products of which every element is a vector: as many independent products as there are lanes. No size needs
// padding, and whatever reads or writes single elements (a lookup, a softmax) serves all lanes at once.
#pragma once

#include "simd.h"

namespace skelops::SKELOPS_LEVEL {

// A matrix by the distances between its rows and between its columns, in elements.
template <typename T>
struct Matrix {
  T* data;
  int64_t row, column;
  Matrix transposed() const { return {data, column, row}; }
};

inline Vec element(const Vec* p) { return *p; }
inline Vec element(const float* p) { return splat(*p); }

template <int M, int N, typename T>
inline __attribute__((always_inline)) void lane_block(const Matrix<const Vec>& a, const Matrix<const T>& b, const Matrix<Vec>& c, int64_t K,
                                                      bool accumulate) {
  Vec acc[M][N] = {};
  const Vec* from = a.data;
  const T* other = b.data;
  for (int64_t k = 0; k < K; ++k, from += a.column, other += b.row) {
    Vec row[N];
    for (int n = 0; n < N; ++n) row[n] = element(other + n * b.column);
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < N; ++n) acc[m][n] += from[m * a.row] * row[n];
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) {
      Vec* to = c.data + m * c.row + n * c.column;
      *to = accumulate ? *to + acc[m][n] : acc[m][n];
    }
}

template <int M, typename T>
void lane_rows(const Matrix<const Vec>& a, Matrix<const T> b, Matrix<Vec> c, int64_t N, int64_t K, bool accumulate) {
  for (int64_t blocks = (N + kSide - 1) / kSide; blocks > 0; --blocks) {
    const int64_t n = (N + blocks - 1) / blocks;
    n == 1   ? lane_block<M, 1>(a, b, c, K, accumulate)
    : n == 2 ? lane_block<M, 2>(a, b, c, K, accumulate)
    : n == 3 ? lane_block<M, 3>(a, b, c, K, accumulate)
    : n == 4 ? lane_block<M, kSide - 1>(a, b, c, K, accumulate)
             : lane_block<M, kSide>(a, b, c, K, accumulate);
    b.data += n * b.column, c.data += n * c.column, N -= n;
  }
}

// C (M, N) (+)= A (M, K) B (K, N); B holds vectors, or numbers that are the same for all lanes.
template <typename T>
void lane_product(Matrix<const Vec> a, const Matrix<const T>& b, Matrix<Vec> c, int64_t M, int64_t N, int64_t K, bool accumulate = false) {
  for (int64_t blocks = (M + kSide - 1) / kSide; blocks > 0; --blocks) {
    const int64_t m = (M + blocks - 1) / blocks;
    const auto rows = m == 1   ? lane_rows<1, T>
                      : m == 2 ? lane_rows<2, T>
                      : m == 3 ? lane_rows<3, T>
                      : m == 4 ? lane_rows<kSide - 1, T>
                               : lane_rows<kSide, T>;
    rows(a, b, c, N, K, accumulate);
    a.data += m * a.row, c.data += m * c.row, M -= m;
  }
}

}  // namespace skelops::SKELOPS_LEVEL
