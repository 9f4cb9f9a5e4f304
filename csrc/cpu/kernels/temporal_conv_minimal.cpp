// temporal_conv without dilation and groups with minimal filtering, a tile of frames at a time; float products only. As in
// temporal_conv.cpp, a tile lies in cache as rows (t, v) with the frames at its ends that the taps reach. With a stride of two, the
// even and the odd taps are two convolutions without stride of the frames that they read, their phases; without, there is one. The frames
// that do not fill a tile of the filter are summed tap by tap.
#include "minimal_filter.h"
#include "temporal_frames.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

// Frames of an item's output, and those to load of a phase or, going back, of the gradient.
struct Extent {
  int64_t b, t, frames, loaded;

  Extent(const TemporalConvShape& s, int64_t item) : b(item / s.tiles()), t(item % s.tiles() * s.tile_frames) {
    const MinimalShape m = s.minimal();
    frames = smaller(s.tile_frames, s.out_frames() - t);
    loaded = larger(kTileFrames * m.tiles(frames), frames) + m.halo();
  }
};

int64_t most_loaded(const TemporalConvShape& s) { return round_up(s.tile_frames, kTileFrames) + s.minimal().halo(); }

// The transformed matrices of a phase, of `size` each, behind those of all taps.
template <typename T>
T* transformed(const TemporalConvShape& s, int64_t odd, T* packed, int64_t size) {
  return packed + (s.k + (odd ? s.minimal().phase(0).matrices() : 0)) * size;
}

// Rows of output at a time: few enough that what one call of the filter works on stays in the cache.
constexpr int64_t kFilterRows = 450;

// y (frames, V) = bias + the convolution with the taps of a phase, or y += it. x begins where the first tap of the first frame reads.
void convolve(const TemporalConvShape& s, int64_t odd, const FrameRows& x, int64_t frames, const float* packed, int64_t K, int64_t N, const float* bias,
              bool accumulate, float* y, int64_t ldy) {
  const MinimalShape m = s.minimal();
  const Phase phase = m.phase(odd);
  const int64_t n = m.tiles(frames), most = larger(1, kFilterRows / (kTileFrames * s.V)), size = K * N;
  const float* weights = transformed(s, odd, packed, size);
  float* memory = scratch(kWork, kMatricesOfPart * most * s.V * (x.width + N));
  for (int64_t j = 0; j < n; j += most) {
    const int64_t first = kTileFrames * j;
    filter(phase, {x.frame(first), x.ld, s.V, x.width}, smaller(most, n - j), weights, K, N, accumulate, bias, memory, y + first * s.V * ldy, ldy,
           frames - first);
  }
  const int64_t tiled = kTileFrames * n, rest = frames - tiled;
  float* to = y + tiled * s.V * ldy;
  const float* add = accumulate ? to : bias;
  if (rest > 0)
    gemm<float, float>({x.frame(tiled), x.ld, 1, s.V * x.ld, packed + phase.first * size, N, s.stride * size, add, accumulate ? ldy : 0, to, ldy, K, phase.taps},
                       rest * s.V, N);
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
    float* y = y_tile ? y_tile : output.rows(e.b, e.t);
    const int64_t ldy = y_tile ? Op : p.y.pitch;
    for (int64_t odd = 0; odd < s.stride; ++odd) {
      const Phase phase = s.minimal().phase(odd);
      int64_t ld;
      const float* x = input.load(e.b, e.t - halo, e.loaded, s.stride, phase.number, {p.scale, p.shift}, x_tile, &ld);
      convolve(s, odd, {x + (halo + phase.offset) * s.V * ld, ld, s.V, Cp}, e.frames, p.weight, s.C, Op, p.bias, odd > 0, y, ldy);
    }
    if (stats) add_sums(y, ldy, e.frames * s.V, s.O, stats, stats + s.O);
    if (y_tile) output.store(y, ldy, e.b, e.t, e.frames, 1, 0);
  }
}

// Which sums the items so far have written: the first that does need not add, so that nothing is cleared beforehand.
struct Written {
  bool taps = false, tiles = false;
};

// sums [+]= the gradient of the weights of a phase. a begins where its first tap reads for the first frame of g.
void sum_gradients(const TemporalConvShape& s, int64_t odd, const FrameRows& a, const FrameRows& g, int64_t frames, float* sums, const Written& written) {
  const MinimalShape m = s.minimal();
  const Phase phase = m.phase(odd);
  const bool by_input = s.sums_by_input();
  const int64_t rows = s.sums_rows(), N = s.sums_width(), size = rows * N, n = m.tiles(frames), tiled = kTileFrames * n, rest = frames - tiled;
  float* memory = scratch(kWork, kMatricesOfPart * n * s.V * (a.width + g.width));
  if (n) filter_gradients(phase, a, n, g, frames, by_input, rows, N, memory, transformed(s, odd, sums, size), written.tiles);
  for (int64_t tap = 0; rest > 0 && tap < phase.taps; ++tap)
    weight_gradient<float>({a.frame(tiled + tap), a.ld}, {g.frame(tiled), g.ld}, by_input, sums + (phase.first + s.stride * tap) * size, rows, N, rest * s.V,
                           written.taps);
}

void clear_unwritten(const TemporalConvShape& s, const Written& written, float* sums) {
  const int64_t of_taps = s.k * s.sums_rows() * s.sums_width();
  if (!written.taps) __builtin_memset(sums, 0, sizeof(float) * of_taps);
  if (!written.tiles) __builtin_memset(sums + of_taps, 0, sizeof(float) * (s.sums_size() - of_taps));
}

// The gradients of the weight and of the bias, those that are asked for.
template <typename T>
void weight_pass(const TemporalConvBackward& p, int64_t begin, int64_t end, float* weight, double* bias) {
  const TemporalConvShape& s = p.shape;
  const int64_t Cp = padded(s.C), Op = padded(s.O), halo = s.halo();
  const Frames input = input_frames<T, float>(s, p.x);
  float* a_tile = scratch(kA, most_loaded(s) * s.V * Cp);
  float* g_tile = scratch(kG, s.tile_frames * s.V * Op);
  Written written;
  for (int64_t item = begin; item < end; ++item) {
    const Extent e(s, item);
    int64_t ldg, lda;
    const float* g = load_gradient_frames<T, float>(p, e.b, e.t, e.frames, g_tile, &ldg);
    if (bias) add_sums(g, ldg, e.frames * s.V, s.O, bias, nullptr);
    if (!weight) continue;
    for (int64_t odd = 0; odd < s.stride; ++odd) {
      const Phase phase = s.minimal().phase(odd);
      const float* a = input.load(e.b, e.t - halo, e.loaded, s.stride, phase.number, {p.scale, p.shift}, a_tile, &lda);
      sum_gradients(s, odd, {a + (halo + phase.offset) * s.V * lda, lda, s.V, Cp}, {g, ldg, s.V, Op}, e.frames, weight, written);
    }
    const int64_t n = s.minimal().tiles(e.frames);
    written.tiles |= n > 0, written.taps |= e.frames > kTileFrames * n;
  }
  if (weight) clear_unwritten(s, written, weight);
}

// The gradients of the map, and of scale and shift.
template <typename T>
void map_pass(const TemporalConvBackward& p, int64_t begin, int64_t end, double* scale, double* shift) {
  const TemporalConvShape& s = p.shape;
  const int64_t Cp = padded(s.C), Op = padded(s.O), halo = s.halo();
  const Frames input = input_frames<T, float>(s, p.x), of_input = input_frames<T, float>(s, p.grad_x);
  const bool direct = p.grad_x.data && s.stride == 1 && of_input.in_place();
  float* x_tile = scratch(kX, s.tile_frames * s.V * Cp);
  float* a_tile = scratch(kA, s.tile_frames * s.V * Cp);
  float* g_tile = scratch(kG, most_loaded(s) * s.V * Op);
  float* h_tile = direct ? nullptr : scratch(kH, s.tile_frames * s.V * Cp);
  for (int64_t item = begin; item < end; ++item) {
    const Extent e(s, item);
    int64_t ldg, lda, ldx;
    const float* tile = load_gradient_frames<T, float>(p, e.b, e.t - halo, e.loaded, g_tile, &ldg);
    const FrameRows g{tile + halo * s.V * ldg, ldg, s.V, Op};
    for (int64_t odd = 0; odd < s.stride; ++odd) {
      const Phase phase = s.minimal().phase(odd);
      // Of the odd frames, there may be one less.
      const int64_t count = smaller(e.frames, s.frames_of(phase.number) - e.t);
      if (count <= 0) continue;
      float* h = direct ? of_input.rows(e.b, e.t) : h_tile;
      const int64_t ldh = direct ? p.grad_x.pitch : Cp;
      convolve(s, odd, {g.frame(phase.back()), ldg, s.V, Op}, count, p.weight, s.O, Cp, nullptr, false, h, ldh);
      if (p.scale) {
        const float* a = input.load(e.b, e.t, count, s.stride, phase.number, {p.scale, p.shift}, a_tile, &lda);
        const float* x = input.load(e.b, e.t, count, s.stride, phase.number, {}, x_tile, &ldx);
        through_affine(x, ldx, a, lda, h, ldh, count * s.V, s.C, p.scale, scale, shift);
      }
      if (p.grad_x.data && !direct) of_input.store(h, ldh, e.b, e.t, count, s.stride, phase.number);
    }
  }
}

}  // namespace

void temporal_conv_minimal(const TemporalConv& p, int64_t begin, int64_t end, double* stats) {
  (p.dtype == Dtype::f32 ? forward<float> : forward<bf16>)(p, begin, end, stats);
}

// Two passes over the items, each with one set of matrices: both together leave no room in the L3 cache, of which other cores have
// their part.
void temporal_conv_minimal_backward(const TemporalConvBackward& p, int64_t begin, int64_t end, const TemporalConvSums& sums) {
  const bool wide = p.dtype == Dtype::f32;
  if (sums.weight || sums.bias) (wide ? weight_pass<float> : weight_pass<bf16>)(p, begin, end, sums.weight, sums.bias);
  if (p.grad_x.data || sums.scale) (wide ? map_pass<float> : map_pass<bf16>)(p, begin, end, sums.scale, sums.shift);
}

void temporal_conv_minimal_weights(const TemporalConvShape& s, int64_t size, int64_t begin, int64_t end, float* packed) {
  for (int64_t odd = 0; odd < s.stride; ++odd) transform_weights(s.minimal().phase(odd), s.stride, packed, size, begin, end, transformed(s, odd, packed, size));
}

void temporal_conv_minimal_gradients(const TemporalConvShape& s, int64_t size, int64_t begin, int64_t end, float* sums) {
  for (int64_t odd = 0; odd < s.stride; ++odd)
    transform_gradients(s.minimal().phase(odd), s.stride, transformed(s, odd, sums, size), size, begin, end, sums);
}

}  // namespace skelops::SKELOPS_LEVEL
