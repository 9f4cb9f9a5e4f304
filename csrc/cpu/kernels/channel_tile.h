// Graph convolution with an adjacency of its own per channel, on tiles in cache: rows of a block of kBlock channels along the
// vector lanes, as float. A map tile has a row per (t, v), an adjacency tile one per (v, w); only the first `width` lanes of
// a row are worked on.
#pragma once

#include "block.h"
#include "map.h"
#include "simd.h"

namespace skelops::SKELOPS_LEVEL {

// n channels of a map of `channels` from channel c on, of sample b, where a sample has plane = T * V rows.
struct BlockOfMap {
  const MapData& map;
  int64_t channels, plane, b, c, n;

  int64_t width() const { return round_up(n, kLanes); }
};

// Rows row .. row + R as (R, kBlock); lanes past n are zero up to the width.
template <typename T, typename Tile>
void load_block(const BlockOfMap& from, int64_t row, int64_t R, Tile* tile) {
  const T* data = static_cast<const T*>(from.map.data);
  if (!from.map.channels_last) {
    transpose_tile(data + (from.b * from.channels + from.c) * from.plane + row, from.plane, from.n, R, tile, kBlock, true);
    return;
  }
  const int64_t pitch = from.map.pitch;
  const T* rows = data + (from.b * from.plane + row) * pitch + from.c;
  for (int64_t r = 0; r < R; ++r, rows += pitch, tile += kBlock) {
    // Pieces of far-apart rows: the hardware does not foresee them. The rows after these are those of the next tile.
    __builtin_prefetch(rows + R * pitch, 0, 2);
    __builtin_prefetch(rows + R * pitch + from.n - 1, 0, 2);
    for (int64_t i = 0; i < from.n; i += kLanes)
      store(tile + i, load_some(rows + i, from.n - i));
  }
}

// Writes (R, kBlock) to where load_block would read it.
template <typename T>
void store_block(const float* tile, const BlockOfMap& to, int64_t row, int64_t R) {
  T* data = static_cast<T*>(to.map.data);
  if (!to.map.channels_last) {
    transpose_tile(tile, kBlock, R, to.n, data + (to.b * to.channels + to.c) * to.plane + row, to.plane, false);
    return;
  }
  const int64_t pitch = to.map.pitch;
  T* rows = data + (to.b * to.plane + row) * pitch + to.c;
  for (int64_t r = 0; r < R; ++r, rows += pitch, tile += kBlock)
    for (int64_t i = 0; i < to.n; i += kLanes)
      store_some(rows + i, load(tile + i), to.n - i);
}

// An adjacency tile read from `sources` joints to `targets`: its rows are source * from + target * to. Transposed, it carries
// targets back to sources.
struct Edges {
  const float* tile;
  int64_t sources, targets, from, to;

  Edges transposed() const { return {tile, targets, sources, to, from}; }
};

constexpr int kTogether = kLanes == 16 ? 4 : 2;  // frames that share what is loaded of the adjacency

template <int F, int N>
inline __attribute__((always_inline)) void apply_block(const Edges& e, const float* edges, const float* x, float* y, bool accumulate) {
  Vec acc[F][N] = {};
  for (int64_t v = 0; v < e.sources; ++v, edges += e.from * kBlock, x += kBlock) {
    Vec edge[N];
    for (int j = 0; j < N; ++j) edge[j] = load(edges + j * e.to * kBlock);
    for (int f = 0; f < F; ++f) {
      const Vec value = load(x + f * e.sources * kBlock);
      for (int j = 0; j < N; ++j) acc[f][j] += value * edge[j];
    }
  }
  for (int f = 0; f < F; ++f)
    for (int j = 0; j < N; ++j) {
      float* to = y + (f * e.targets + j) * kBlock;
      store(to, accumulate ? load(to) + acc[f][j] : acc[f][j]);
    }
}

// y[t,w,:] (+)= sum_v edges[v,w,:] x[t,v,:]
inline void apply(const Edges& e, const float* x, float* y, int64_t frames, int64_t width, bool accumulate) {
  const int64_t xf = e.sources * kBlock, yf = e.targets * kBlock;
  const auto targets = [&]<int N>(int64_t w, int64_t i) {
    const float* edges = e.tile + w * e.to * kBlock + i;
    const float* from = x + i;
    float* to = y + w * kBlock + i;
    int64_t f = 0;
    for (; f + kTogether <= frames; f += kTogether) apply_block<kTogether, N>(e, edges, from + f * xf, to + f * yf, accumulate);
    for (; f < frames; ++f) apply_block<1, N>(e, edges, from + f * xf, to + f * yf, accumulate);
  };
  for (int64_t i = 0; i < width; i += kLanes) {
    int64_t w = 0;
    for (; w + kSide <= e.targets; w += kSide) targets.template operator()<kSide>(w, i);
    for (; w < e.targets; ++w) targets.template operator()<1>(w, i);
  }
}

// sums (V, W) (+)= sum_t x[t,v,:] g[t,w,:]: the gradient of an adjacency tile.
inline void outer(const float* x, const float* g, int64_t frames, int64_t V, int64_t W, int64_t width, float* sums, bool accumulate) {
  for (int64_t i = 0; i < width; i += kLanes)
    for (int64_t v = 0; v < V; v += kSide)
      for (int64_t w = 0; w < W; w += kSide) {
        // Joints past the last one repeat it and are not kept.
        Vec acc[kSide][kSide] = {};
        const float *a[kSide], *b[kSide];
        for (int j = 0; j < kSide; ++j) a[j] = x + smaller(v + j, V - 1) * kBlock + i, b[j] = g + smaller(w + j, W - 1) * kBlock + i;
        for (int64_t t = 0; t < frames; ++t) {
          Vec row[kSide];
          for (int j = 0; j < kSide; ++j) row[j] = load(b[j] + t * W * kBlock);
          for (int k = 0; k < kSide; ++k) {
            const Vec value = load(a[k] + t * V * kBlock);
            for (int j = 0; j < kSide; ++j) acc[k][j] += value * row[j];
          }
        }
        for (int k = 0; k < smaller(kSide, V - v); ++k)
          for (int j = 0; j < smaller(kSide, W - w); ++j) {
            float* to = sums + ((v + k) * W + w + j) * kBlock + i;
            store(to, accumulate ? load(to) + acc[k][j] : acc[k][j]);
          }
      }
}

}  // namespace skelops::SKELOPS_LEVEL
