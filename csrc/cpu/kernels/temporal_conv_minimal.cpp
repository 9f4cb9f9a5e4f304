// temporal_conv of stride, dilation and groups one with minimal filtering, a tile of frames at a time; float products only.
// As in temporal_conv.cpp, a tile lies in cache as rows (t, v) with the frames at its ends that the taps reach. The frames that do
// not fill a tile of the filter are summed tap by tap.
#include "minimal_filter.h"
#include "temporal_frames.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

// Frames of an item: n tiles of the filter, the others after them, and those to load.
struct Extent {
  int64_t b, t, frames, n, rest, loaded;

  Extent(const TemporalConvShape& s, int64_t item) : b(item / s.tiles()), t(item % s.tiles() * s.tile_frames) {
    frames = smaller(s.tile_frames, s.T - t);
    n = s.minimal().tiles(frames);
    rest = larger(0, frames - kMinimalFrames * n);
    loaded = larger(kMinimalFrames * n, frames) + kMinimalHalo;
  }
};

int64_t most_loaded(const TemporalConvShape& s) { return round_up(s.tile_frames, kMinimalFrames) + kMinimalHalo; }

// Rows of a product at a time: few enough that what one call of the filter works on stays in the cache.
constexpr int64_t kFilterRows = 75;

// y (frames, V) = the convolution of the tile that begins halo frames earlier. width: of its rows; rows, N: of the weights.
void convolve(const TemporalConvShape& s, const Extent& e, const float* x, int64_t ld, int64_t width, const float* weights, int64_t rows, int64_t N,
              const float* bias, float* y, int64_t ldy) {
  const int64_t most = larger(1, kFilterRows / s.V), frame = kMinimalFrames * s.V;
  float* memory = scratch(kWork, most * s.V * (7 * width + 10 * N));
  for (int64_t j = 0; j < e.n; j += most)
    filter(s.minimal(), {x + j * frame * ld, ld, s.V, width}, smaller(most, e.n - j), weights + s.k * rows * N, rows, N, bias, memory,
           y + j * frame * ldy, ldy, e.frames - kMinimalFrames * j);
  const int64_t tiled = e.n * frame;
  if (e.rest)
    gemm<float, float>({x + tiled * ld, ld, 1, s.V * ld, weights, N, rows * N, bias, 0, y + tiled * ldy, ldy, rows, s.k}, e.rest * s.V, N);
}

template <typename T>
void forward(const TemporalConv& p, int64_t begin, int64_t end, double* stats) {
  const TemporalConvShape& s = p.shape;
  const Frames input = input_frames<T, float>(s, p.x), output = output_frames<T, float>(s, p.y);
  float* x_tile = scratch(kX, most_loaded(s) * s.V * padded(s.C));
  float* y_tile = output.in_place() ? nullptr : scratch(kY, s.tile_frames * s.V * padded(s.O));
  for (int64_t item = begin; item < end; ++item) {
    const Extent e(s, item);
    int64_t ld;
    const float* x = input.load(e.b, e.t - s.halo(), e.loaded, 1, 0, {p.scale, p.shift}, x_tile, &ld);
    float* y = y_tile ? y_tile : output.rows(e.b, e.t);
    const int64_t ldy = y_tile ? padded(s.O) : p.y.pitch;
    convolve(s, e, x, ld, padded(s.C), p.weight, s.C, padded(s.O), p.bias, y, ldy);
    if (stats) add_sums(y, ldy, e.frames * s.V, s.O, stats, stats + s.O);
    if (y_tile) output.store(y, ldy, e.b, e.t, e.frames, 1, 0);
  }
}

// Which sums the items so far have written: the first that does need not add, so that nothing is cleared beforehand.
struct Written {
  bool taps = false, tiles = false;
};

// sums [+]= the gradient of the weights of the taps and of the transformed ones. a begins halo frames earlier than g.
void sum_gradients(const TemporalConvShape& s, const Extent& e, const float* a, int64_t lda, const float* g, int64_t ldg, float* sums, Written& written) {
  const int64_t Cp = padded(s.C), Op = padded(s.O), rows = s.sums_rows(), N = s.sums_width(), M = e.n * s.V, tiled = kMinimalFrames * M;
  if (e.n)
    weight_gradients(s.minimal(), {a, lda, s.V, Cp}, e.n, g, ldg, Op, e.frames, s.sums_by_input(), rows, N, scratch(kWork, M * (7 * Cp + 5 * Op)),
                     sums + s.k * rows * N, written.tiles);
  for (int64_t tap = 0; e.rest && tap < s.k; ++tap)
    weight_gradient<float>({a + (tiled + tap * s.V) * lda, lda}, {g + tiled * ldg, ldg}, s.sums_by_input(), sums + tap * rows * N, rows, N, e.rest * s.V,
                           written.taps);
  written.tiles |= e.n > 0, written.taps |= e.rest > 0;
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
  const bool direct = p.grad_x.data && of_input.in_place();
  float* x_tile = scratch(kX, s.tile_frames * s.V * Cp);
  float* a_tile = scratch(kA, loaded * s.V * Cp);
  float* g_tile = scratch(kG, loaded * s.V * Op);
  float* h_tile = direct ? nullptr : scratch(kH, s.tile_frames * s.V * Cp);
  Written written;
  for (int64_t item = begin; item < end; ++item) {
    const Extent e(s, item);
    const int64_t R = e.frames * s.V;
    int64_t ldg, lda = 0, ldx;
    const float* tile = load_gradient_frames<T, float>(p, e.b, e.t - halo, e.loaded, g_tile, &ldg);
    const float* g = tile + halo * s.V * ldg;
    if (sums.bias) add_sums(g, ldg, R, s.O, sums.bias, nullptr);
    const float* a = sums.weight || p.scale ? input.load(e.b, e.t - halo, e.loaded, 1, 0, {p.scale, p.shift}, a_tile, &lda) : nullptr;
    if (sums.weight) sum_gradients(s, e, a, lda, g, ldg, sums.weight, written);
    if (!needs_a) continue;
    float* h = direct ? of_input.rows(e.b, e.t) : h_tile;
    const int64_t ldh = direct ? p.grad_x.pitch : Cp;
    convolve(s, e, tile, ldg, Op, p.weight, s.O, Cp, nullptr, h, ldh);
    if (p.scale) {
      const float* x = input.load(e.b, e.t, e.frames, 1, 0, {}, x_tile, &ldx);
      through_affine(x, ldx, a + halo * s.V * lda, lda, h, ldh, R, s.C, p.scale, sums.scale, sums.shift);
    }
    if (p.grad_x.data && !direct) of_input.store(h, ldh, e.b, e.t, e.frames, 1, 0);
  }
  if (sums.weight) clear_unwritten(s, written, sums.weight);
}

}  // namespace

void temporal_conv_minimal(const TemporalConv& p, int64_t begin, int64_t end, double* stats) {
  (p.dtype == Dtype::f32 ? forward<float> : forward<bf16>)(p, begin, end, stats);
}

void temporal_conv_minimal_backward(const TemporalConvBackward& p, int64_t begin, int64_t end, const TemporalConvSums& sums) {
  (p.dtype == Dtype::f32 ? backward<float> : backward<bf16>)(p, begin, end, sums);
}

void temporal_conv_minimal_weights(const TemporalConvShape& s, int64_t size, int64_t begin, int64_t end, float* packed) {
  transform_weights(s.minimal(), packed, size, begin, end, packed + s.k * size);
}

void temporal_conv_minimal_gradients(const TemporalConvShape& s, int64_t size, int64_t begin, int64_t end, float* sums) {
  transform_gradients(s.minimal(), sums + s.k * size, size, begin, end, sums);
}

}  // namespace skelops::SKELOPS_LEVEL
