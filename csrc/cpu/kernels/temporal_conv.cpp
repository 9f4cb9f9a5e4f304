// y[b,o,t,v] = bias[o] + sum_c sum_i weight[o,c,i] a(x[b,c,t*stride + (i - k/2)*dilation,v]), a tile of frames at a time.
//
// A tile lies in cache as rows (t, v) with channels along the vector lanes and, at its ends, the frames that the taps reach
// (zero outside the map). A tap reads the rows of the tile at a distance of whole frames, so one matrix product whose sum
// runs over taps and channels is the convolution; nothing is unfolded. With a stride s the input falls into s phases of every
// s-th frame: frame m s + q is frame m of phase q. Tap i reads phase q = d mod s at distance e = floor(d / s) where
// d = (i - k/2)*dilation, and the taps of one phase have equal distances. With g the gradient of y and m a frame of phase q
//   forward   y_t = sum_q sum_i a_q[t + e] weight_i
//   backward  grad_a_q[m] = sum_i g[m - e] weight_i^T;  grad_weight_i = sum_m g[m - e]^T a_q[m]
#include "temporal_conv.h"

#include "gemm.h"
#include "temporal_frames.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

// Steps of a sum in one product: more of B than this does not stay in the L2 cache beside the tile.
constexpr int64_t kSteps = 640;

// The taps that read one phase: first, first + step, ... at distances offset, offset + offset_step, ...
struct Taps {
  int64_t first, step, count, offset, offset_step;
};

Taps taps_of(const TemporalConvShape& s, int64_t phase) {
  Taps taps{0, 1, 0, 0, 0};
  for (int64_t i = 0; i < s.k; ++i) {
    const int64_t d = (i - s.k / 2) * s.dilation + s.stride * s.halo();  // made positive, so that / rounds down
    if (d % s.stride != phase) continue;
    const int64_t offset = d / s.stride - s.halo();
    if (taps.count == 0) taps.first = i, taps.offset = offset;
    if (taps.count == 1) taps.step = i - taps.first, taps.offset_step = offset - taps.offset;
    ++taps.count;
  }
  return taps;
}

// Splits a product into sums of at most kSteps, by taps; no more than the columns is written.
template <typename Tile>
void convolve(Product<Tile> p, int64_t R, int64_t columns) {
  const int64_t N = round_up(columns, kLanes);
  p.last = columns - (N - kLanes);
  const int64_t most = larger(1, kSteps / p.K);
  for (int64_t left = p.taps; left > 0; left -= most) {
    p.taps = smaller(most, left);
    gemm(p, R, N);
    p.a += most * p.at, p.b += most * p.bt;
    p.add = p.c, p.addm = p.cm;
  }
}

// A product of bf16 pairs may round its result into the map at once where that is the whole sum.
template <typename T, typename Tile>
bool rounds_at_once(const TemporalConvShape& s, const MapData& map, int64_t channels) {
  return sizeof(T) < sizeof(float) && map.channels_last && s.stride == 1 && s.k * steps_of<Tile>(channels) <= kSteps;
}

template <typename T, typename Tile>
void convolve_once(const Product<Tile>& p, T* c, int64_t ldc, int64_t R, int64_t columns) {
  const int64_t N = round_up(columns, kLanes);
  gemm<Tile, T>({p.a, p.am, p.ak, p.at, p.b, p.bk, p.bt, p.add, p.addm, c, ldc, p.K, p.taps, columns - (N - kLanes)}, R, N);
}

template <typename T, typename Tile>
void forward(const TemporalConv& p, int64_t begin, int64_t end, double* stats) {
  const TemporalConvShape& s = p.shape;
  const int64_t Cg = s.group_in(), Og = s.group_out(), Ogp = padded(Og), halo = s.halo(), out_frames = s.out_frames();
  const Frames input = input_frames<T, Tile>(s, p.x);
  const Frames output = output_frames<T, float>(s, p.y);
  constexpr int64_t terms = kTermsPerStep<Tile>;
  const Tile* weights = reinterpret_cast<const Tile*>(p.weight);
  const int64_t steps = steps_of<Tile>(Cg), tap_size = terms * Cg * Ogp;
  const int64_t phase_size = (s.tile_frames + 2 * halo) * s.V * s.width_in();
  const bool at_once = !stats && rounds_at_once<T, Tile>(s, p.y, Cg);
  Tile* tiles = scratch_of<Tile>(kX, s.stride * phase_size);
  float* y_tile = scratch(kY, s.tile_frames * s.V * s.width_out());
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / s.tiles(), t = item % s.tiles() * s.tile_frames;
    const int64_t frames = smaller(s.tile_frames, out_frames - t), R = frames * s.V;
    const bool direct = output.in_place(b, t, frames);
    float* y = direct ? output.rows(b, t) : y_tile;
    const int64_t ldy = direct ? p.y.pitch : s.width_out();
    int64_t ld = 0;
    const Tile* x = tiles;
    for (int64_t phase = 0; phase < s.stride; ++phase)
      if (taps_of(s, phase).count) {
        const Tile* loaded = input.load(b, t - halo, frames + 2 * halo, s.stride, phase, {p.scale, p.shift}, tiles + phase * phase_size, &ld);
        if (s.stride == 1) x = loaded;
      }
    for (int64_t group = 0; group < s.groups; ++group) {
      const float* add = p.bias ? p.bias + group * Ogp : nullptr;
      int64_t add_ld = 0;
      for (int64_t phase = 0; phase < s.stride; ++phase) {
        const Taps taps = taps_of(s, phase);
        if (!taps.count) continue;
        const Tile* a = x + phase * phase_size + (halo + taps.offset) * s.V * ld + group * Cg;
        const Tile* weight = weights + (group * s.k + taps.first) * tap_size;
        const Product<Tile> product{a, ld, terms, taps.offset_step * s.V * ld, weight, terms * Ogp, taps.step * tap_size, add, add_ld, y + group * Og, ldy, steps,
                                    taps.count};
        at_once ? convolve_once(product, output.data(b, t) + group * Og, p.y.pitch, R, Og) : convolve(product, R, Og);
        add = y + group * Og, add_ld = ldy;
      }
    }
    if (stats) add_sums(y, ldy, R, s.O, stats, stats + s.O);
    if (!direct && !at_once) output.store(y, ldy, b, t, frames, 1, 0);
  }
}

template <typename T, typename Tile>
void backward(const TemporalConvBackward& p, int64_t begin, int64_t end, const TemporalConvSums& sums) {
  const TemporalConvShape& s = p.shape;
  const int64_t Cg = s.group_in(), Og = s.group_out(), Cgp = padded(Cg), halo = s.halo(), out_frames = s.out_frames();
  const int64_t rows = s.tile_frames * s.V, M = s.sums_rows(), N = s.sums_width();
  const bool needs_a = p.grad_x.data || sums.scale;
  const Affine affine{p.scale, p.shift};
  const Frames input = input_frames<T, Tile>(s, p.x);
  const Frames of_input = input_frames<T, float>(s, p.grad_x);
  constexpr int64_t terms = kTermsPerStep<Tile>;
  const Tile* weights = reinterpret_cast<const Tile*>(p.weight);
  const int64_t steps = steps_of<Tile>(Og), tap_size = terms * Og * Cgp, reach = halo * s.V;
  const bool at_once = p.grad_x.data && !p.scale && rounds_at_once<T, Tile>(s, p.grad_x, Og);
  Tile* x_tile = scratch_of<Tile>(kX, rows * s.width_in());
  Tile* a_tile = scratch_of<Tile>(kA, rows * s.width_in());
  float* h_tile = scratch(kH, rows * s.width_in());
  Tile* g_tile = scratch_of<Tile>(kG, (rows + 2 * reach) * s.width_out());
  float* paired = terms > 1 ? scratch(kWork, (rows + 2 * reach) * s.width_out()) : nullptr;
  uint32_t written = 0;  // a bit per tap: the first item that sums it need not add, so that nothing is cleared beforehand
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / s.tiles(), t = item % s.tiles() * s.tile_frames;
    const int64_t frames = smaller(s.tile_frames, out_frames - t);
    int64_t ldg, lda = 0;
    const Tile* g = load_gradient_frames<T, Tile>(p, b, t - halo, frames + 2 * halo, g_tile, &ldg) + reach * ldg;
    if (sums.bias) add_sums(g, ldg, frames * s.V, s.O, sums.bias, nullptr);
    for (int64_t phase = 0; phase < s.stride; ++phase) {
      const Taps taps = taps_of(s, phase);
      const int64_t count = smaller(frames, (s.T - phase + s.stride - 1) / s.stride - t), R = count * s.V;
      if (count <= 0) continue;
      const Tile* a = sums.weight || p.scale ? input.load(b, t, count, s.stride, phase, affine, a_tile, &lda) : nullptr;
      if (sums.weight && taps.count) {
        const int64_t half = steps_of<Tile>(R);
        // What x_tile and h_tile are for begins when the products with the weight are done.
        const Summed<Tile> of_a = summed(a, lda, 0, R, half, s.width_in(), reinterpret_cast<float*>(x_tile));
        const Summed<Tile> of_g = summed(g, ldg, -reach, frames * s.V + reach, half, s.width_out(), paired);
        for (int64_t of = 0; of < s.groups * taps.count; ++of) {
          const int64_t group = of / taps.count, tap = of % taps.count;
          const int64_t number = taps.first + tap * taps.step;
          weight_gradient<Tile>({of_a.at(0, group * Cg), of_a.ld}, {of_g.at(-(taps.offset + tap * taps.offset_step) * s.V, group * Og), of_g.ld},
                                s.sums_by_input(), sums.weight + (group * s.k + number) * M * N, M, N, half, written >> number & 1);
        }
        for (int64_t tap = 0; tap < taps.count; ++tap) written |= 1u << (taps.first + tap * taps.step);
      }
      if (!needs_a) continue;
      // What goes through the normalisation is written by whole vectors.
      const bool direct = p.grad_x.data && s.stride == 1 && (p.scale ? of_input.in_place() : of_input.in_place(b, t, count));
      float* h = direct ? of_input.rows(b, t) : h_tile;
      const int64_t ldh = direct ? p.grad_x.pitch : s.width_in();
      if (!taps.count) __builtin_memset(h, 0, sizeof(float) * R * ldh);
      for (int64_t group = 0; taps.count && group < s.groups; ++group) {
        const Tile* weight = weights + (group * s.k + taps.first) * tap_size;
        const Product<Tile> product{g - taps.offset * s.V * ldg + group * Og, ldg, terms, -taps.offset_step * s.V * ldg, weight, terms * Cgp, taps.step * tap_size,
                                    nullptr, 0, h + group * Cg, ldh, steps, taps.count};
        at_once ? convolve_once(product, of_input.data(b, t) + group * Cg, p.grad_x.pitch, R, Cg) : convolve(product, R, Cg);
      }
      if (p.scale) {
        int64_t ldx;
        const Tile* x = input.load(b, t, count, s.stride, phase, {}, x_tile, &ldx);
        through_affine(x, ldx, a, lda, h, ldh, R, s.C, p.scale, sums.scale, sums.shift);
      }
      if (p.grad_x.data && !direct && !at_once) of_input.store(h, ldh, b, t, count, s.stride, phase);
    }
  }
  for (int64_t matrix = 0; sums.weight && matrix < s.groups * s.k; ++matrix)
    if (!(written >> matrix % s.k & 1)) __builtin_memset(sums.weight + matrix * M * N, 0, sizeof(float) * M * N);
}

}  // namespace

void temporal_conv_pack(const float* weight, const TemporalConvShape& s, int64_t begin, int64_t end, float* packed) {
  const int64_t Cg = s.group_in(), Og = s.group_out(), Ogp = padded(Og), terms = Cg * s.k;
  Vec block[kLanes];
  for (int64_t group = 0; group < s.groups; ++group)
    for (int64_t o = begin; o < end; o += kLanes)
      for (int64_t j = 0; j < terms; j += kLanes) {
        const int64_t n = smaller(kLanes, terms - j);
        for (int64_t i = 0; i < kLanes; ++i) {
          const float* row = weight + (group * Og + o + i) * terms + j;
          block[i] = o + i >= Og ? Vec{} : load_some(row, n);
        }
        transpose(block);
        for (int64_t i = 0; i < n; ++i) store(packed + ((group * s.k + (j + i) % s.k) * Cg + (j + i) / s.k) * Ogp + o, block[i]);
      }
}

void temporal_conv_pack_backward(const float* weight, const TemporalConvShape& s, int64_t begin, int64_t end, float* packed) {
  const int64_t Cg = s.group_in(), Og = s.group_out(), Cgp = padded(Cg);
  for (int64_t o = begin; o < end; ++o) {
    const int64_t tap = s.is_minimal ? -Og * Cgp : Og * Cgp;
    float* to = packed + (o / Og * s.k * Og + o % Og) * Cgp - (s.is_minimal ? (s.k - 1) * tap : 0);
    transpose_tile(weight + o * Cg * s.k, s.k, Cg, s.k, to, tap, true);
    for (int64_t i = 0; i < s.k; ++i)
      for (int64_t c = round_up(Cg, kLanes); c < Cgp; c += kLanes) store(to + i * tap + c, Vec{});
  }
}

void temporal_conv_unpack(const float* sums, const TemporalConvShape& s, int64_t begin, int64_t end, float* weight) {
  const int64_t Cg = s.group_in(), Og = s.group_out(), N = s.sums_width(), tap = s.sums_rows() * N;
  for (int64_t o = begin; o < end; ++o) {
    const float* of_group = sums + o / Og * s.k * tap;
    float* row = weight + o * Cg * s.k;
    if (!s.sums_by_input()) {
      transpose_tile(of_group + o % Og * N, tap, s.k, Cg, row, s.k, false);
      continue;
    }
    for (int64_t c = 0; c < Cg; ++c)
      for (int64_t i = 0; i < s.k; ++i) row[c * s.k + i] = of_group[i * tap + c * N + o % Og];
  }
}

void temporal_conv(const TemporalConv& p, int64_t begin, int64_t end, double* stats) {
  const auto kernel = p.dtype == Dtype::f32 ? forward<float, float> : p.shape.pairs ? forward<bf16, Bf16Operand> : forward<bf16, float>;
  kernel(p, begin, end, stats);
}

void temporal_conv_backward(const TemporalConvBackward& p, int64_t begin, int64_t end, const TemporalConvSums& sums) {
  const auto kernel = p.dtype == Dtype::f32 ? backward<float, float> : p.shape.pairs ? backward<bf16, Bf16Operand> : backward<bf16, float>;
  kernel(p, begin, end, sums);
}

}  // namespace skelops::SKELOPS_LEVEL
