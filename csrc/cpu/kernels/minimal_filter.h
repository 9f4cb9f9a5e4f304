// Minimal filtering of a convolution along frames without stride. The taps are split into groups of three: Winograd's F(2,3) or F(2,2)
// over the groups, and F(3,3) over the taps of a group. A tile of 6 frames of output takes 20 products with a matrix of weights
// instead of 54 with 9 taps, 18 instead of 42 with 7, 14 instead of 30 with 5, 13 instead of 24 with 4, 10 instead of 18 with 3.
//
// With X_f the frames that a tile reads and g_i = (w_3i, w_3i+1, w_3i+2) the groups, w zero past the last tap, a part p has
// frames D_pf and weights W_p
//   3 groups  D_0f = X_f - X_f+6, D_1f = X_f+6 + X_f+3, D_2f = X_f+6 - X_f+3, D_3f = X_f+9 - X_f+3;
//             W_0 = g_0, W_1 = (g_0 + g_1 + g_2) / 2, W_2 = (g_0 - g_1 + g_2) / 2, W_3 = g_2
//   2 groups  D_0f = X_f - X_f+3, D_1f = X_f+3, D_2f = X_f+6 - X_f+3;  W_0 = g_0, W_1 = g_0 + g_1, W_2 = g_1
//   1 group   D_0f = X_f, D_1f = X_f+3;  W_0 = W_1 = g_0
// and with M_pr = sum_b D_p,r+b W_pb the outputs are, for r = 0..2,
//   y_r = M_0r + M_1r + M_2r, y_3+r = M_1r - M_2r + M_3r    or    y_r = M_0r + M_1r, y_3+r = M_1r + M_2r    or    M_0r, M_1r.
// Within a part (p left out), P_i = E_i U_i with
//   E_0 = D_0 - D_3 + 3/2 (D_1 - D_2),  E_1 = D_1 + D_3 + 5/2 D_2,  E_2 = D_2 + D_3 - 2 D_1,  E_3 = D_1 + D_2 - 2 D_3,
//   E_4 = D_4 - D_1 + 3/2 (D_3 - D_2)
//   U_0 = W_0,  U_1 = 2/9 (W_0 + W_1 + W_2),  U_2 = (4 W_0 - 2 W_1 + W_2) / 9,  U_3 = (W_0 - 2 W_1 + 4 W_2) / 9,  U_4 = W_2
//   M_0 = P_0 + P_1 + 2 P_2 + P_3 / 2,  M_1 = P_1 - P_2 - P_3,  M_2 = P_1 + P_2 / 2 + 2 P_3 + P_4.
// A last group of two taps has no P_4, and one of one tap is M_r = D_r W_0. The points of F(3,3), 0, 1, -1/2, -2 and infinity, were chosen
// for their errors: those of random maps are 0.9 of the plain way's, whose sums are longer (1.1 with -1 and 2).
#pragma once

#include "gemm.h"
#include "minimal_shape.h"

namespace skelops::SKELOPS_LEVEL {

// D_pf = X_(f+high) + sign X_(f+low), W_p = sum_i of_group[i] g_i; M_pr counts `first` times in y_r, and `second` times in y_3+r.
struct FilterPart {
  int64_t high, low;
  float sign, of_group[3], first, second;
};

constexpr FilterPart kParts[3][4] = {
    {{0, 0, 0, {1, 0, 0}, 1, 0}, {3, 3, 0, {1, 0, 0}, 0, 1}},
    {{0, 3, -1, {1, 0, 0}, 1, 0}, {3, 3, 0, {1, 1, 0}, 1, 1}, {6, 3, -1, {0, 1, 0}, 0, 1}},
    {{0, 6, -1, {1, 0, 0}, 1, 0}, {6, 3, 1, {0.5f, 0.5f, 0.5f}, 1, 1}, {6, 3, -1, {0.5f, -0.5f, 0.5f}, 1, -1}, {9, 3, -1, {0, 0, 1}, 0, 1}},
};

inline const FilterPart& part_of(const Phase& phase, int64_t part) { return kParts[phase.groups() - 1][part]; }

// Rows (frame, v) of a map, ld apart.
struct FrameRows {
  const float* data;
  int64_t ld, V, width;

  const float* frame(int64_t f) const { return data + f * V * ld; }
};

// out (5, n V, width) = E_0 .. E_4 of a part for n tiles; with one tap (3, n V, width) = D_0, D_1, D_2.
template <bool Sum>
void part_frames(const FrameRows& x, int64_t n, const FilterPart& part, bool one_tap, float* out) {
  const int64_t step = n * x.V * x.width, next = x.V * x.ld;
  for (int64_t j = 0; j < n; ++j)
    for (int64_t v = 0; v < x.V; ++v, out += x.width) {
      const float *high = x.frame(kTileFrames * j + part.high) + v * x.ld, *low = x.frame(kTileFrames * j + part.low) + v * x.ld;
      for (int64_t c = 0; c < x.width; c += kLanes) {
        const auto d = [&](int64_t f) __attribute__((always_inline)) {
          const Vec own = load(high + f * next + c);
          return Sum ? own + part.sign * load(low + f * next + c) : own;
        };
        const Vec d0 = d(0), d1 = d(1), d2 = d(2);
        if (one_tap) {
          store(out + c, d0), store(out + step + c, d1), store(out + 2 * step + c, d2);
          continue;
        }
        const Vec d3 = d(3), d4 = d(4);
        const Vec e[kMatricesOfPart] = {d0 - d3 + 1.5f * (d1 - d2), d1 + d3 + 2.5f * d2, d2 + d3 - 2.0f * d1, d1 + d2 - 2.0f * d3,
                                        d4 - d1 + 1.5f * (d3 - d2)};
        for (int i = 0; i < kMatricesOfPart; ++i) store(out + i * step + c, e[i]);
      }
    }
}

inline void part_frames(const FrameRows& x, int64_t n, const FilterPart& part, bool one_tap, float* out) {
  (part.sign == 0 ? part_frames<false> : part_frames<true>)(x, n, part, one_tap, out);
}

// y (frames, V) = bias + the convolution of n tiles with the taps of a phase, or y += it; frames past the last are left out.
// weights: (matrices, K, N); memory: (5, n V, width) and (5, n V, N).
inline void filter(const Phase& phase, const FrameRows& x, int64_t n, const float* weights, int64_t K, int64_t N, bool accumulate, const float* bias,
                   float* memory, float* y, int64_t ldy, int64_t frames) {
  const int64_t V = x.V, M = n * V, size = K * N, step = M * N;
  float* products = memory + kMatricesOfPart * M * x.width;
  bool written[2] = {accumulate, accumulate};
  for (int64_t number = 0; number < phase.parts(); ++number) {
    const FilterPart& part = part_of(phase, number);
    const int64_t matrices = phase.matrices_of(number);
    const bool one_tap = matrices == 1;
    const float* w = weights + kMatricesOfPart * number * size;
    part_frames(x, n, part, one_tap, memory);
    for (int64_t i = 0; i < matrices; ++i)
      gemm(memory + i * M * x.width, x.width, 1, w + i * size, N, products + i * step, N, one_tap ? kGroup * M : M, N, K, false);
    for (int64_t row = 0; row < M; ++row) {
      const int64_t tile = kTileFrames * (row / V);
      float* to = y + (tile * V + row % V) * ldy;
      for (int64_t i = 0; i < N; i += kLanes) {
        const auto product = [&](int64_t of) __attribute__((always_inline)) { return load(products + of * step + row * N + i); };
        Vec m[kGroup] = {product(0), Vec{}, Vec{}};
        if (one_tap) {
          m[1] = product(1), m[2] = product(2);
        } else {
          const Vec p1 = product(1), p2 = product(2), p3 = product(3);
          m[0] += p1 + (2.0f * p2 + 0.5f * p3), m[1] = p1 - (p2 + p3), m[2] = p1 + (0.5f * p2 + 2.0f * p3);
          if (matrices == kMatricesOfPart) m[2] += product(4);
        }
        for (int half = 0; half < 2; ++half) {
          const float times = half ? part.second : part.first;
          if (times == 0) continue;
          for (int64_t f = kGroup * half; f < kGroup * half + kGroup && tile + f < frames; ++f) {
            float* at = to + f * V * ldy + i;
            store(at, (written[half] ? load(at) : bias ? load(bias + i) : Vec{}) + times * m[f % kGroup]);
          }
        }
      }
    }
    written[0] |= part.first != 0, written[1] |= part.second != 0;
  }
}

// out (5, n V, width) = gradients of P_0 .. P_4; with one tap (3, n V, width), of M_0, M_1 and M_2.
inline void part_gradients(const FrameRows& g, int64_t frames, int64_t n, const FilterPart& part, bool one_tap, float* out) {
  const int64_t step = n * g.V * g.width;
  for (int64_t j = 0; j < n; ++j)
    for (int64_t v = 0; v < g.V; ++v, out += g.width)
      for (int64_t c = 0; c < g.width; c += kLanes) {
        Vec m[kGroup];
        for (int64_t r = 0; r < kGroup; ++r) {
          const auto of = [&](int64_t f) __attribute__((always_inline)) {
            return kTileFrames * j + f < frames ? load(g.frame(kTileFrames * j + f) + v * g.ld + c) : Vec{};
          };
          m[r] = part.first * of(r) + part.second * of(kGroup + r);
        }
        if (one_tap) {
          for (int r = 0; r < kGroup; ++r) store(out + r * step + c, m[r]);
          continue;
        }
        const Vec p[kMatricesOfPart] = {m[0], m[0] + m[1] + m[2], 2.0f * m[0] - m[1] + 0.5f * m[2], 0.5f * m[0] - m[1] + 2.0f * m[2], m[2]};
        for (int i = 0; i < kMatricesOfPart; ++i) store(out + i * step + c, p[i]);
      }
}

// sums (matrices, rows, N) [+]= gradients of the transformed weights of a phase: tiles transposed times g, or the other way about.
// memory: (5, n V, width) and (5, n V, width of g).
inline void filter_gradients(const Phase& phase, const FrameRows& x, int64_t n, const FrameRows& g, int64_t frames, bool by_input, int64_t rows,
                             int64_t N, float* memory, float* sums, bool accumulate) {
  const int64_t K = n * x.V;
  float* of_g = memory + kMatricesOfPart * K * x.width;
  for (int64_t number = 0; number < phase.parts(); ++number) {
    const FilterPart& part = part_of(phase, number);
    const int64_t matrices = phase.matrices_of(number);
    const bool one_tap = matrices == 1;
    part_frames(x, n, part, one_tap, memory);
    part_gradients(g, frames, n, part, one_tap, of_g);
    for (int64_t i = 0; i < matrices; ++i)
      weight_gradient<float>({memory + i * K * x.width, x.width}, {of_g + i * K * g.width, g.width}, by_input,
                             sums + (kMatricesOfPart * number + i) * rows * N, rows, N, one_tap ? kGroup * K : K, accumulate);
  }
}

// Elements begin .. end of taps (k, size), every `stride`-th from the phase's first on -> its matrices (matrices, size).
inline void transform_weights(const Phase& phase, int64_t stride, const float* taps, int64_t size, int64_t begin, int64_t end, float* matrices) {
  for (int64_t i = begin; i < end; i += kLanes) {
    Vec w[3 * kGroup] = {};
    for (int64_t tap = 0; tap < phase.taps; ++tap) w[tap] = load(taps + (phase.first + stride * tap) * size + i);
    for (int64_t number = 0; number < phase.parts(); ++number) {
      const float* of_group = part_of(phase, number).of_group;
      Vec of[kGroup];
      for (int b = 0; b < kGroup; ++b) of[b] = of_group[0] * w[b] + of_group[1] * w[kGroup + b] + of_group[2] * w[2 * kGroup + b];
      const Vec middle = 2.0f * of[1];
      const Vec all[kMatricesOfPart] = {of[0], (of[0] + of[1] + of[2]) * (2.0f / 9), (4.0f * of[0] - middle + of[2]) * (1.0f / 9),
                                        (of[0] - middle + 4.0f * of[2]) * (1.0f / 9), of[2]};
      float* to = matrices + kMatricesOfPart * number * size + i;
      for (int64_t m = 0; m < phase.matrices_of(number); ++m) store(to + m * size, all[m]);
    }
  }
}

// Elements begin .. end: taps (k, size), every `stride`-th, += the gradient that the matrices (matrices, size) of a phase carry back.
inline void transform_gradients(const Phase& phase, int64_t stride, const float* matrices, int64_t size, int64_t begin, int64_t end, float* taps) {
  for (int64_t i = begin; i < end; i += kLanes) {
    Vec w[3 * kGroup] = {};
    for (int64_t number = 0; number < phase.parts(); ++number) {
      const float* from = matrices + kMatricesOfPart * number * size + i;
      const float* of_group = part_of(phase, number).of_group;
      Vec of[kGroup] = {load(from), Vec{}, Vec{}};
      if (phase.matrices_of(number) > 1) {
        const auto ninth = [&](int64_t matrix) __attribute__((always_inline)) { return load(from + matrix * size) * (1.0f / 9); };
        const Vec one = 2.0f * ninth(1), two = ninth(2), three = ninth(3);
        of[0] += one + (4.0f * two + three);
        of[1] = one - 2.0f * (two + three);
        of[2] = one + (two + 4.0f * three);
        if (phase.matrices_of(number) == kMatricesOfPart) of[2] += load(from + 4 * size);
      }
      for (int64_t tap = 0; tap < phase.taps; ++tap) w[tap] += of_group[tap / kGroup] * of[tap % kGroup];
    }
    for (int64_t tap = 0; tap < phase.taps; ++tap) {
      float* to = taps + (phase.first + stride * tap) * size + i;
      store(to, load(to) + w[tap]);
    }
  }
}

}  // namespace skelops::SKELOPS_LEVEL
