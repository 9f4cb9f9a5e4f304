// temporal_conv of stride two, without dilation and groups, with minimal filtering, a tile of frames at a time; float products only.
// The even taps and the odd taps are convolutions without stride of the frames that they read (see phase_filter.h); as in
// temporal_conv.cpp, a tile has rows (t, v) and at its ends the frames that the taps reach. Frames that do not fill a tile of the filter
// are summed tap by tap.
#include "phase_filter.h"
#include "temporal_frames.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

constexpr int64_t kFilterRows = 100;  // of a product at a time: what a call of the filter works on stays in the cache

// Frames of an item's output, and those to load of the input's phases or, going back, of the gradient.
struct Extent {
  int64_t b, t, frames, loaded;

  Extent(const TemporalConvShape& s, int64_t item) : b(item / s.tiles()), t(item % s.tiles() * s.tile_frames) {
    frames = smaller(s.tile_frames, s.out_frames() - t);
    loaded = larger(kPhaseFrames * s.minimal().tiles(frames), frames) + 2 * s.halo();
  }
};

int64_t most_loaded(const TemporalConvShape& s) { return round_up(s.tile_frames, kPhaseFrames) + 2 * s.halo(); }

// The packed matrices of a phase, of `size` each: those of its taps begin at the first and lie two apart.
template <typename T>
T* transformed(const TemporalConvShape& s, int64_t odd, T* packed, int64_t size) {
  return packed + (s.k + (odd ? s.minimal().phase(0).matrices() : 0)) * size;
}

// y (frames, V) += the convolution with the taps of a phase of the rows from where the first tap of the first frame reads.
void convolve(const TemporalConvShape& s, int64_t odd, const PhaseRows& x, int64_t frames, const float* packed, int64_t K, int64_t N, float* y, int64_t ldy) {
  const Phase phase = s.minimal().phase(odd);
  const int64_t n = s.minimal().tiles(frames), most = larger(1, kFilterRows / s.V), frame = s.V * x.ld;
  float* memory = scratch(kWork, 3 * most * s.V * (x.width + N));
  for (int64_t j = 0; j < n; j += most)
    filter_phase(phase, {x.frame(kPhaseFrames * j), x.ld, s.V, x.width}, smaller(most, n - j), transformed(s, odd, packed, K * N), K, N, memory,
                 y + kPhaseFrames * j * s.V * ldy, ldy, frames - kPhaseFrames * j);
  const int64_t tiled = kPhaseFrames * n, rest = frames - tiled;
  float* to = y + tiled * s.V * ldy;
  if (rest > 0)
    gemm<float, float>({x.frame(tiled), x.ld, 1, frame, packed + phase.first * K * N, N, 2 * K * N, to, ldy, to, ldy, K, phase.taps}, rest * s.V, N);
}

void fill(float* y, int64_t ld, int64_t rows, int64_t N, const float* row) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < N; i += kLanes) store(y + r * ld + i, row ? load(row + i) : Vec{});
}

template <typename T>
void forward(const TemporalConv& p, int64_t begin, int64_t end, double* stats) {
  const TemporalConvShape& s = p.shape;
  const int64_t Cp = padded(s.C), Op = padded(s.O), halo = s.halo();
  const Frames input = input_frames<T, float>(s, p.x), output = output_frames<T, float>(s, p.y);
  float* x_tile = scratch(kX, most_loaded(s) * s.V * Cp);
  float* y_tile = output.in_place() ? nullptr : scratch(kY, s.tile_frames * s.V * Op);
  for (int64_t item = begin; item < end; ++item) {
    const Extent e(s, item);
    const int64_t R = e.frames * s.V, ldy = y_tile ? Op : p.y.pitch;
    float* y = y_tile ? y_tile : output.rows(e.b, e.t);
    fill(y, ldy, R, Op, p.bias);
    for (int64_t odd = 0; odd < 2; ++odd) {
      const Phase phase = s.minimal().phase(odd);
      int64_t ld;
      const float* x = input.load(e.b, e.t - halo, e.loaded, 2, phase.number, {p.scale, p.shift}, x_tile, &ld);
      convolve(s, odd, {x + (halo + phase.offset) * s.V * ld, ld, s.V, Cp}, e.frames, p.weight, s.C, Op, y, ldy);
    }
    if (stats) add_sums(y, ldy, R, s.O, stats, stats + s.O);
    if (y_tile) output.store(y, ldy, e.b, e.t, e.frames, 1, 0);
  }
}

// Whether the items so far have written the sums of the taps and of the tiles: the first that does need not add.
struct Written {
  bool taps = false, tiles = false;
};

// sums [+]= the gradient of the weights of a phase. a: rows from where the first tap of the first frame of g reads.
void sum_gradients(const TemporalConvShape& s, int64_t odd, const PhaseRows& a, const PhaseRows& g, int64_t frames, float* sums, const Written& written) {
  const Phase phase = s.minimal().phase(odd);
  const int64_t rows = s.sums_rows(), N = s.sums_width(), size = rows * N, n = s.minimal().tiles(frames), tiled = kPhaseFrames * n, rest = frames - tiled;
  if (n)
    phase_weight_gradients(phase, a, n, g, frames, s.sums_by_input(), rows, N, scratch(kWork, 3 * n * s.V * (a.width + g.width)),
                           transformed(s, odd, sums, size), written.tiles);
  for (int64_t tap = 0; rest > 0 && tap < phase.taps; ++tap)
    weight_gradient<float>({a.frame(tiled + tap), a.ld}, {g.frame(tiled), g.ld}, s.sums_by_input(), sums + (phase.first + 2 * tap) * size, rows, N, rest * s.V,
                           written.taps);
}

void clear_unwritten(const TemporalConvShape& s, const Written& written, float* sums) {
  const int64_t of_taps = s.k * s.sums_rows() * s.sums_width();
  if (!written.taps) __builtin_memset(sums, 0, sizeof(float) * of_taps);
  if (!written.tiles) __builtin_memset(sums + of_taps, 0, sizeof(float) * (s.sums_size() - of_taps));
}

template <typename T>
void backward(const TemporalConvBackward& p, int64_t begin, int64_t end, const TemporalConvSums& sums) {
  const TemporalConvShape& s = p.shape;
  const int64_t Cp = padded(s.C), Op = padded(s.O), halo = s.halo(), loaded = most_loaded(s);
  const bool needs_a = p.grad_x.data || sums.scale;
  const Frames input = input_frames<T, float>(s, p.x), of_input = input_frames<T, float>(s, p.grad_x);
  float* x_tile = scratch(kX, s.tile_frames * s.V * Cp);
  float* a_tile = scratch(kA, loaded * s.V * Cp);
  float* g_tile = scratch(kG, loaded * s.V * Op);
  float* h = scratch(kH, s.tile_frames * s.V * Cp);
  Written written;
  for (int64_t item = begin; item < end; ++item) {
    const Extent e(s, item);
    int64_t ldg, lda = 0, ldx;
    const float* tile = load_gradient_frames<T, float>(p, e.b, e.t - halo, e.loaded, g_tile, &ldg);
    const PhaseRows g{tile + halo * s.V * ldg, ldg, s.V, Op};
    if (sums.bias) add_sums(g.data, ldg, e.frames * s.V, s.O, sums.bias, nullptr);
    for (int64_t odd = 0; odd < 2; ++odd) {
      const Phase phase = s.minimal().phase(odd);
      const float* a = nullptr;
      if (sums.weight || p.scale) a = input.load(e.b, e.t - halo, e.loaded, 2, phase.number, {p.scale, p.shift}, a_tile, &lda);
      if (sums.weight) sum_gradients(s, odd, {a + (halo + phase.offset) * s.V * lda, lda, s.V, Cp}, g, e.frames, sums.weight, written);
      const int64_t count = smaller(e.frames, (s.T - phase.number + 1) / 2 - e.t), R = count * s.V;
      if (!needs_a || count <= 0) continue;
      fill(h, Cp, R, Cp, nullptr);
      convolve(s, odd, {g.frame(phase.back()), ldg, s.V, Op}, count, p.weight, s.O, Cp, h, Cp);
      if (p.scale) {
        const float* x = input.load(e.b, e.t, count, 2, phase.number, {}, x_tile, &ldx);
        through_affine(x, ldx, a + halo * s.V * lda, lda, h, Cp, R, s.C, p.scale, sums.scale, sums.shift);
      }
      if (p.grad_x.data) of_input.store(h, Cp, e.b, e.t, count, 2, phase.number);
    }
    const int64_t n = s.minimal().tiles(e.frames);
    written.tiles |= n > 0, written.taps |= e.frames > kPhaseFrames * n;
  }
  if (sums.weight) clear_unwritten(s, written, sums.weight);
}

}  // namespace

void temporal_conv_strided(const TemporalConv& p, int64_t begin, int64_t end, double* stats) {
  (p.dtype == Dtype::f32 ? forward<float> : forward<bf16>)(p, begin, end, stats);
}

void temporal_conv_strided_backward(const TemporalConvBackward& p, int64_t begin, int64_t end, const TemporalConvSums& sums) {
  (p.dtype == Dtype::f32 ? backward<float> : backward<bf16>)(p, begin, end, sums);
}

void temporal_conv_strided_weights(const TemporalConvShape& s, int64_t size, int64_t begin, int64_t end, float* packed) {
  for (int64_t odd = 0; odd < 2; ++odd) transform_phase(s.minimal().phase(odd), packed, size, begin, end, transformed(s, odd, packed, size));
}

void temporal_conv_strided_gradients(const TemporalConvShape& s, int64_t size, int64_t begin, int64_t end, float* sums) {
  for (int64_t odd = 0; odd < 2; ++odd) transform_phase_gradients(s.minimal().phase(odd), transformed(s, odd, sums, size), size, begin, end, sums);
}

}  // namespace skelops::SKELOPS_LEVEL
