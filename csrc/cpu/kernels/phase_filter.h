// Minimal filtering of a convolution along frames with a stride of two and 7 or 9 taps. Its even taps read every other frame, and so do
// its odd ones: two convolutions without stride, of 5 and 4 taps or of 4 and 3, whose results add up. Each is filtered minimally for
// four frames of output: F(2,2) or F(2,3) over groups of two taps, and F(2,2) over the taps of a group. That takes 20 products with a
// matrix of weights instead of 36 (9 taps), or 17 instead of 28 (7 taps).
//
// With X_f the frames that a tile reads and g_i = (w_2i, w_2i+1) the groups, a part p has frames and a group of weights
//   two groups    D_0f = X_f - X_f+2, D_1f = X_f+2, D_2f = X_f+2 - X_f+4;                       G_0 = g_0, G_1 = g_0 + g_1, G_2 = g_1
//   three groups  D_0f = X_f - X_f+4, D_1f = X_f+4 + X_f+2, D_2f = X_f+4 - X_f+2, D_3f = X_f+6 - X_f+2;
//                 G_0 = g_0, G_1 = (g_0 + g_1 + g_2) / 2, G_2 = (g_0 - g_1 + g_2) / 2, G_3 = g_2
// and with M_pr = D_p,r a_p + D_p,r+1 b_p, (a_p, b_p) = G_p, the outputs are, for r = 0 and 1,
//   y_r = M_0r + M_1r,  y_2+r = M_1r - M_2r    or    y_r = M_0r + M_1r + M_2r,  y_2+r = M_1r - M_2r + M_3r.
// Within a part: M_p0 = E_0 a + E_1 (a + b), M_p1 = E_1 (a + b) - E_2 b with E_0 = D_0 - D_1, E_1 = D_1, E_2 = D_1 - D_2. The last group
// of an odd number of taps, and so the last part, has one tap: M_p0 = D_0 a, M_p1 = D_1 a.
#pragma once

#include "gemm.h"
#include "minimal_shape.h"

namespace skelops::SKELOPS_LEVEL {

// D_pf = X_f+high + sign X_f+low; M_pr counts `first` times in y_r, and `second` times in y_2+r.
struct PhasePart {
  int64_t high, low;
  float sign, first, second;
};

constexpr PhasePart kPartsOfTwo[] = {{0, 2, -1, 1, 0}, {2, 2, 0, 1, 1}, {2, 4, -1, 0, -1}};
constexpr PhasePart kPartsOfThree[] = {{0, 4, -1, 1, 0}, {4, 2, 1, 1, 1}, {4, 2, -1, 1, -1}, {6, 2, -1, 0, 1}};

inline const PhasePart& part_of(const Phase& phase, int64_t part) { return (phase.groups() == 2 ? kPartsOfTwo : kPartsOfThree)[part]; }

// Rows (frame, v) of a map, ld apart.
struct PhaseRows {
  const float* data;
  int64_t ld, V, width;

  const float* frame(int64_t f) const { return data + f * V * ld; }
};

// out (3, n V, width) = E_0, E_1, E_2 of a part for n tiles; or out (2, n V, width) = D_0, D_1.
inline void phase_frames(const PhaseRows& x, int64_t n, const PhasePart& part, bool one_tap, float* out) {
  const int64_t step = n * x.V * x.width, next = x.V * x.ld;
  for (int64_t j = 0; j < n; ++j)
    for (int64_t v = 0; v < x.V; ++v, out += x.width) {
      const float *high = x.frame(kPhaseFrames * j + part.high) + v * x.ld, *low = x.frame(kPhaseFrames * j + part.low) + v * x.ld;
      for (int64_t c = 0; c < x.width; c += kLanes) {
        const auto d = [&](int64_t f) __attribute__((always_inline)) { return load(high + f * next + c) + part.sign * load(low + f * next + c); };
        const Vec d0 = d(0), d1 = d(1);
        if (one_tap) {
          store(out + c, d0), store(out + step + c, d1);
          continue;
        }
        store(out + c, d0 - d1), store(out + step + c, d1), store(out + 2 * step + c, d1 - d(2));
      }
    }
}

// y (frames, V) = bias + the convolution of n tiles with the taps of a phase, or y += it; frames past the last are left out.
// weights: (matrices, K, N); memory: (3, n V, width) and (3, n V, N).
inline void filter_phase(const Phase& phase, const PhaseRows& x, int64_t n, const float* weights, int64_t K, int64_t N, bool accumulate,
                         const float* bias, float* memory, float* y, int64_t ldy, int64_t frames) {
  const int64_t V = x.V, M = n * V, size = K * N, step = M * N;
  float* products = memory + 3 * M * x.width;
  for (int64_t row = 0; !accumulate && row < smaller(kPhaseFrames * n, frames) * V; ++row)
    for (int64_t i = 0; i < N; i += kLanes) store(y + row * ldy + i, bias ? load(bias + i) : Vec{});
  for (int64_t number = 0; number < phase.parts(); ++number) {
    const PhasePart& part = part_of(phase, number);
    const bool one_tap = phase.one_tap(number);
    const float* w = weights + 3 * number * size;
    phase_frames(x, n, part, one_tap, memory);
    for (int64_t i = 0; i < (one_tap ? 1 : 3); ++i)
      gemm(memory + i * M * x.width, x.width, 1, w + i * size, N, products + i * step, N, one_tap ? 2 * M : M, N, K, false);
    for (int64_t row = 0; row < M; ++row) {
      const int64_t first = kPhaseFrames * (row / V);
      float* to = y + (first * V + row % V) * ldy;
      for (int64_t i = 0; i < N; i += kLanes) {
        const float* from = products + row * N + i;
        const Vec p0 = load(from), p1 = load(from + step);
        const Vec p2 = one_tap ? Vec{} : load(from + 2 * step);
        const Vec m[2] = {one_tap ? p0 : p0 + p1, one_tap ? p1 : p1 - p2};
        for (int64_t f = 0; f < kPhaseFrames; ++f) {
          const float sign = f < 2 ? part.first : part.second;
          if (sign == 0 || first + f >= frames) continue;
          float* at = to + f * V * ldy + i;
          store(at, load(at) + sign * m[f % 2]);
        }
      }
    }
  }
}

// out (3, n V, width) = gradients of E_0 a, E_1 (a + b) and E_2 b; with one tap (2, n V, width), of M_0 and M_1.
inline void phase_gradients(const PhaseRows& g, int64_t frames, int64_t n, const PhasePart& part, bool one_tap, float* out) {
  const int64_t step = n * g.V * g.width;
  for (int64_t j = 0; j < n; ++j)
    for (int64_t v = 0; v < g.V; ++v, out += g.width)
      for (int64_t c = 0; c < g.width; c += kLanes) {
        const auto of = [&](int64_t f) __attribute__((always_inline)) {
          const int64_t frame = kPhaseFrames * j + f;
          return frame < frames ? load(g.frame(frame) + v * g.ld + c) : Vec{};
        };
        const Vec m0 = part.first * of(0) + part.second * of(2), m1 = part.first * of(1) + part.second * of(3);
        if (one_tap) {
          store(out + c, m0), store(out + step + c, m1);
          continue;
        }
        store(out + c, m0), store(out + step + c, m0 + m1), store(out + 2 * step + c, -m1);
      }
}

// sums (matrices, rows, N) [+]= gradients of the transformed weights of a phase: tiles transposed times g, or the other way about.
// memory: (3, n V, width) and (3, n V, width of g).
inline void phase_weight_gradients(const Phase& phase, const PhaseRows& x, int64_t n, const PhaseRows& g, int64_t frames, bool by_input, int64_t rows,
                                   int64_t N, float* memory, float* sums, bool accumulate) {
  const int64_t K = n * x.V;
  float* of_g = memory + 3 * K * x.width;
  for (int64_t number = 0; number < phase.parts(); ++number) {
    const PhasePart& part = part_of(phase, number);
    const bool one_tap = phase.one_tap(number);
    phase_frames(x, n, part, one_tap, memory);
    phase_gradients(g, frames, n, part, one_tap, of_g);
    for (int64_t i = 0; i < (one_tap ? 1 : 3); ++i)
      weight_gradient<float>({memory + i * K * x.width, x.width}, {of_g + i * K * g.width, g.width}, by_input, sums + (3 * number + i) * rows * N, rows, N,
                             one_tap ? 2 * K : K, accumulate);
  }
}

// Elements begin .. end of taps (k, size), every other from `first` on -> matrices (matrices, size) a, a + b, b of each part.
inline void transform_phase(const Phase& phase, const float* taps, int64_t size, int64_t begin, int64_t end, float* matrices) {
  for (int64_t i = begin; i < end; i += kLanes) {
    Vec w[6] = {};
    for (int64_t tap = 0; tap < phase.taps; ++tap) w[tap] = load(taps + (phase.first + 2 * tap) * size + i);
    for (int64_t number = 0; number < phase.parts(); ++number) {
      const auto weight = [&](int b) {
        if (phase.groups() == 2) return number == 0 ? w[b] : number == 1 ? w[b] + w[2 + b] : w[2 + b];
        const Vec outer = 0.5f * (w[b] + w[4 + b]), middle = 0.5f * w[2 + b];
        return number == 0 ? w[b] : number == 1 ? outer + middle : number == 2 ? outer - middle : w[4 + b];
      };
      float* to = matrices + 3 * number * size + i;
      store(to, weight(0));
      if (!phase.one_tap(number)) store(to + size, weight(0) + weight(1)), store(to + 2 * size, weight(1));
    }
  }
}

// Elements begin .. end: taps (k, size), every other, += the gradient that matrices (matrices, size) carry back.
inline void transform_phase_gradients(const Phase& phase, const float* matrices, int64_t size, int64_t begin, int64_t end, float* taps) {
  for (int64_t i = begin; i < end; i += kLanes) {
    Vec of[4][2] = {};
    for (int64_t number = 0; number < phase.parts(); ++number) {
      const float* from = matrices + 3 * number * size + i;
      of[number][0] = load(from);
      if (phase.one_tap(number)) continue;
      const Vec both = load(from + size);
      of[number][0] += both, of[number][1] = load(from + 2 * size) + both;
    }
    for (int64_t tap = 0; tap < phase.taps; ++tap) {
      const int64_t group = tap / 2, b = tap % 2;
      Vec sum;
      if (phase.groups() == 2) {
        sum = of[group == 0 ? 0 : 2][b] + of[1][b];
      } else {
        const Vec half = 0.5f * of[1][b], other = 0.5f * of[2][b];
        sum = group == 1 ? half - other : of[group == 0 ? 0 : 3][b] + (half + other);
      }
      float* to = taps + (phase.first + 2 * tap) * size + i;
      store(to, load(to) + sum);
    }
  }
}

}  // namespace skelops::SKELOPS_LEVEL
