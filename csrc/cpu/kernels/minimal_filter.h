// Minimal filtering of a convolution along frames with 7 or 9 taps: Winograd's F(2,3) over three groups of taps, and again
// over the taps of a group. A tile of 6 frames of output takes 28 products with a matrix of weights instead of 54 (9 taps), or
// 24 instead of 42 (7 taps). The transforms have no factor but 1/2, and the sums are shorter: errors are of the order of the plain way's.
//
// With X_f the frames that a tile reads and w_i the weights, zero past the last tap, a part p = 0..3 has frames and weights
//   D_0f = X_f - X_{f+6}, D_1f = X_{f+6} + X_{f+3}, D_2f = X_{f+6} - X_{f+3}, D_3f = X_{f+9} - X_{f+3}
//   W_0b = w_b, W_1b = (w_b + w_{3+b} + w_{6+b}) / 2, W_2b = (w_b - w_{3+b} + w_{6+b}) / 2, W_3b = w_{6+b}
// and with M_pr = sum_b D_p,r+b W_pb the outputs are, for r = 0..2,
//   y_r = M_0r + M_1r + M_2r,  y_{3+r} = M_1r - M_2r + M_3r.
// Within a part, r = 0 and r = 1 go the same way, one frame for three; r = 2 is summed plainly (p left out):
//   E_0 = D_0 - D_2, E_1 = D_2 + D_1, E_2 = D_2 - D_1, E_3 = D_3 - D_1,  P = (W_0 + W_1 + W_2) / 2, Q = (W_0 - W_1 + W_2) / 2
//   M_0 = E_0 W_0 + E_1 P + E_2 Q,  M_1 = E_1 P - E_2 Q + E_3 W_2,  M_2 = D_2 W_0 + D_3 W_1 + D_4 W_2.
// With 7 taps the last part has one tap: M_3r = D_3r W_30.
#pragma once

#include "gemm.h"
#include "minimal_shape.h"

namespace skelops::SKELOPS_LEVEL {

enum PartMatrix { kW0, kW1, kW2, kP, kQ };

// Vectors of (v, c) rows of n tiles of a map; X_f of tile j are rows (6 j + f) V and the following.
struct FrameTiles {
  const float* x;
  int64_t ld, V, width;

  const float* at(int64_t tile, int64_t frame, int64_t v) const { return x + ((kMinimalFrames * tile + frame) * V + v) * ld; }
};

// out (7, n V, width) = E_0, E_3, E_1, E_2, D_2, D_3, D_4 of a part; or out (3, n V, width) = D_0, D_1, D_2.
template <bool Plus>
void part_frames(const FrameTiles& tiles, int64_t n, int64_t high, int64_t low, bool one_tap, float* out) {
  const int64_t width = tiles.width, step = n * tiles.V * width, frame = tiles.V * tiles.ld;
  for (int64_t j = 0; j < n; ++j)
    for (int64_t v = 0; v < tiles.V; ++v, out += width) {
      const float *a = tiles.at(j, high, v), *b = tiles.at(j, low, v);
      for (int64_t c = 0; c < width; c += kLanes) {
        const auto difference = [&](int64_t f) __attribute__((always_inline)) {
          const Vec x = load(a + f * frame + c), y = load(b + f * frame + c);
          return Plus ? x + y : x - y;
        };
        const Vec d0 = difference(0), d1 = difference(1), d2 = difference(2);
        if (one_tap) {
          store(out + c, d0), store(out + step + c, d1), store(out + 2 * step + c, d2);
          continue;
        }
        const Vec d3 = difference(3), d4 = difference(4);
        const Vec all[7] = {d0 - d2, d3 - d1, d2 + d1, d2 - d1, d2, d3, d4};
        for (int e = 0; e < 7; ++e) store(out + e * step + c, all[e]);
      }
    }
}

inline void part_frames(const FrameTiles& tiles, int64_t n, int64_t part, bool one_tap, float* out) {
  if (part == 1) return part_frames<true>(tiles, n, 6, 3, one_tap, out);
  part_frames<false>(tiles, n, part == 0 ? 0 : part == 2 ? 6 : 9, part == 0 ? 6 : 3, one_tap, out);
}

// Products of a part, (5, n V, N): E_0 W_0, E_3 W_2, M_2, E_1 P, E_2 Q; or (3, n V, N): M_0, M_1, M_2 where it has one tap.
struct PartProducts {
  const float* data;
  int64_t step;
  bool one_tap;

  // M_r at an element of a row.
  template <int R>
  Vec at(int64_t i) const {
    const Vec own = load(data + R * step + i);
    if (R == 2 || one_tap) return own;
    const Vec p = load(data + 3 * step + i), q = load(data + 4 * step + i);
    return own + (R == 0 ? p + q : p - q);
  }
};

inline PartProducts multiply_part(const MinimalShape& s, const FrameTiles& tiles, int64_t n, int64_t part, const float* weights, int64_t rows, int64_t N,
                                  float* frames, float* products) {
  const int64_t M = n * tiles.V, width = tiles.width, size = rows * N;
  const float* w = weights + part * kMatricesOfPart * size;
  part_frames(tiles, n, part, s.one_tap(part), frames);
  const auto multiply = [&](int64_t product, int64_t frame, int64_t matrix, int64_t taps) {
    const int64_t count = s.one_tap(part) ? 3 * M : M;
    gemm<float, float>({frames + frame * M * width, width, 1, M * width, w + matrix * size, N, size, nullptr, 0, products + product * M * N, N, rows, taps},
                       count, N);
  };
  multiply(0, 0, kW0, 1);
  if (!s.one_tap(part)) multiply(1, 1, kW2, 1), multiply(2, 4, kW0, 3), multiply(3, 2, kP, 1), multiply(4, 3, kQ, 1);
  return {products, M * N, s.one_tap(part)};
}

// Calls body(element of the products, element of y, frames that y has from there on) for the vectors of n tiles.
template <typename Body>
void for_outputs(int64_t n, int64_t V, int64_t N, int64_t ldy, int64_t frames, const Body& body) {
  for (int64_t row = 0; row < n * V; ++row) {
    const int64_t first = kMinimalFrames * (row / V);
    for (int64_t i = 0; i < N; i += kLanes) body(row * N + i, (first * V + row % V) * ldy + i, frames - first);
  }
}

// y (frames, V) = the convolution of n tiles, bias added where there is one; frames past the last are left out.
// weights: (matrices, rows, N); memory: (7, n V, width) and (10, n V, N).
inline void filter(const MinimalShape& s, const FrameTiles& tiles, int64_t n, const float* weights, int64_t rows, int64_t N, const float* bias,
                   float* memory, float* y, int64_t ldy, int64_t frames) {
  const int64_t V = tiles.V, M = n * V, frame = V * ldy;
  float* products = memory + 7 * M * tiles.width;
  const auto part = [&](int64_t number, float* to) { return multiply_part(s, tiles, n, number, weights, rows, N, memory, to); };
  const PartProducts one = part(1, products), two = part(2, products + 5 * M * N);
  for_outputs(n, V, N, ldy, frames, [&](int64_t i, int64_t out, int64_t left) {
    const Vec add = bias ? load(bias + i % N) : Vec{};
    const auto put = [&]<int R>() __attribute__((always_inline)) {
      const Vec a = one.at<R>(i), b = two.at<R>(i);
      if (R < left) store(y + out + R * frame, add + (a + b));
      if (3 + R < left) store(y + out + (3 + R) * frame, add + (a - b));
    };
    put.template operator()<0>(), put.template operator()<1>(), put.template operator()<2>();
  });
  for (int64_t number = 0; number < kParts; number += 3) {
    const PartProducts last = part(number, products);
    for_outputs(n, V, N, ldy, frames, [&](int64_t i, int64_t out, int64_t left) {
      const auto add = [&]<int R>() __attribute__((always_inline)) {
        float* to = y + out + (number + R) * frame;
        if (number + R < left) store(to, load(to) + last.at<R>(i));
      };
      add.template operator()<0>(), add.template operator()<1>(), add.template operator()<2>();
    });
  }
}

// How often M_pr of a part is in y_r, and in y_{3+r}.
struct PartSigns {
  float first, second;
};

inline PartSigns signs_of(int64_t part) { return {part == 3 ? 0.0f : 1.0f, part == 0 ? 0.0f : part == 2 ? -1.0f : 1.0f}; }

// out (5, n V, width) = gradients of M_0, M_1, M_2, E_1 P and E_2 Q; with one tap (3, n V, width), of M_0, M_1 and M_2.
inline void part_gradients(const float* g, int64_t ldg, int64_t frames, int64_t V, int64_t n, int64_t width, int64_t part, bool one_tap, float* out) {
  const PartSigns signs = signs_of(part);
  const int64_t step = n * V * width;
  for (int64_t j = 0; j < n; ++j)
    for (int64_t v = 0; v < V; ++v, out += width)
      for (int64_t c = 0; c < width; c += kLanes) {
        Vec m[3];
        for (int64_t r = 0; r < 3; ++r) {
          const int64_t first = kMinimalFrames * j + r;
          m[r] = first < frames ? signs.first * load(g + (first * V + v) * ldg + c) : Vec{};
          if (first + 3 < frames) m[r] += signs.second * load(g + ((first + 3) * V + v) * ldg + c);
        }
        for (int r = 0; r < 3; ++r) store(out + r * step + c, m[r]);
        if (one_tap) continue;
        store(out + 3 * step + c, m[0] + m[1]), store(out + 4 * step + c, m[0] - m[1]);
      }
}

// sums (matrices, rows, N) [+]= gradients of the transformed weights: tiles transposed times g, or the other way about.
// memory: (7, n V, width) and (5, n V, width of g).
inline void weight_gradients(const MinimalShape& s, const FrameTiles& tiles, int64_t n, const float* g, int64_t ldg, int64_t width_g, int64_t frames,
                             bool by_input, int64_t rows, int64_t N, float* memory, float* sums, bool accumulate) {
  const int64_t K = n * tiles.V, width = tiles.width;
  float *d = memory, *e = memory + 7 * K * width;
  const auto sum = [&](int64_t of_d, int64_t of_e, int64_t steps, int64_t matrix, bool more) {
    weight_gradient<float>({d + of_d * K * width, width}, {e + of_e * K * width_g, width_g}, by_input, sums + matrix * rows * N, rows, N, steps,
                           more || accumulate);
  };
  for (int64_t part = 0; part < kParts; ++part) {
    const int64_t first = part * kMatricesOfPart;
    part_frames(tiles, n, part, s.one_tap(part), d);
    part_gradients(g, ldg, frames, tiles.V, n, width_g, part, s.one_tap(part), e);
    if (s.one_tap(part)) {
      sum(0, 0, 3 * K, first, false);
      continue;
    }
    sum(0, 0, K, first + kW0, false), sum(1, 1, K, first + kW2, false), sum(2, 3, K, first + kP, false), sum(3, 4, K, first + kQ, false);
    sum(4, 2, K, first + kW0, true), sum(5, 2, K, first + kW1, false), sum(6, 2, K, first + kW2, true);
  }
}

// Elements begin .. end of taps (k, size) -> matrices (matrices, size).
inline void transform_weights(const MinimalShape& s, const float* taps, int64_t size, int64_t begin, int64_t end, float* matrices) {
  for (int64_t i = begin; i < end; i += kLanes) {
    Vec w[9] = {};
    for (int64_t tap = 0; tap < s.k; ++tap) w[tap] = load(taps + tap * size + i);
    Vec of_part[4][3];
    for (int b = 0; b < 3; ++b) {
      const Vec outer = 0.5f * (w[b] + w[6 + b]), middle = 0.5f * w[3 + b];
      of_part[0][b] = w[b], of_part[1][b] = outer + middle, of_part[2][b] = outer - middle, of_part[3][b] = w[6 + b];
    }
    for (int64_t part = 0; part < kParts; ++part) {
      const Vec* of = of_part[part];
      float* to = matrices + part * kMatricesOfPart * size + i;
      if (s.one_tap(part)) {
        store(to, of[0]);
        continue;
      }
      const Vec outer = 0.5f * (of[0] + of[2]), middle = 0.5f * of[1];
      const Vec all[kMatricesOfPart] = {of[0], of[1], of[2], outer + middle, outer - middle};
      for (int64_t m = 0; m < kMatricesOfPart; ++m) store(to + m * size, all[m]);
    }
  }
}

// Elements begin .. end: taps (k, size) += the gradient that matrices (matrices, size) carry back.
inline void transform_gradients(const MinimalShape& s, const float* matrices, int64_t size, int64_t begin, int64_t end, float* taps) {
  for (int64_t i = begin; i < end; i += kLanes) {
    Vec of_part[4][3] = {};
    for (int64_t part = 0; part < kParts; ++part) {
      const float* from = matrices + part * kMatricesOfPart * size + i;
      Vec* of = of_part[part];
      of[0] = load(from);
      if (s.one_tap(part)) continue;
      const Vec p = 0.5f * load(from + kP * size), q = 0.5f * load(from + kQ * size);
      of[0] += p + q;
      of[1] = load(from + kW1 * size) + (p - q);
      of[2] = load(from + kW2 * size) + (p + q);
    }
    for (int64_t tap = 0; tap < s.k; ++tap) {
      const int64_t group = tap / 3, b = tap % 3;
      const Vec half = 0.5f * of_part[1][b], other = 0.5f * of_part[2][b];
      Vec sum = group == 1 ? half - other : half + other;
      if (group != 1) sum += of_part[group == 0 ? 0 : 3][b];
      store(taps + tap * size + i, load(taps + tap * size + i) + sum);
    }
  }
}

}  // namespace skelops::SKELOPS_LEVEL
