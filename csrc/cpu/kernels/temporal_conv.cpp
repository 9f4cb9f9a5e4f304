// y[b,o,t,v] = bias[o] + sum_c sum_i weight[o,c,i] a(x[b,c,t*stride + (i - k/2)*dilation,v]), a tile of frames at a time.
//
// A tile lies in cache as rows (t, v) with channels along the vector lanes and, at its ends, the frames that the taps reach
// (zero outside the map). A tap reads the rows of the tile at a distance of whole frames, so one matrix product whose sum
// runs over taps and channels is the convolution; nothing is unfolded. With a stride s the input falls into s phases of every
// s-th frame: frame m s + q is frame m of phase q. Tap i reads phase q = d mod s at distance e = floor(d / s) where
// d = (i - k/2)*dilation, and the taps of one phase have equal distances. With g the gradient of y and m a frame of phase q
//   forward   y_t = sum_q sum_i a_q[t + e] weight_i
//   backward  grad_a_q[m] = sum_i g[m - e] weight_i^T;  grad_weight_i = sum_m g[m - e]^T a_q[m]
// Frames outside the map are zero and, where whole taps read nothing else, left out.
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

// The same taps for the gradient of what they read.
Taps reversed(const Taps& taps) { return {taps.first, taps.step, taps.count, -taps.offset, -taps.offset_step}; }

// Calls body(frame, frames, tap, count) for frames 0 .. `frames` in turn, with the taps (of `count`) that reach the map from there: tap i
// of frame f reads frame start + f + offset + i * offset_step of `limit`. At the ends of the map frames go by twos, so that blocks of rows
// stay whole: a tap that only one of them reaches is among those.
template <typename Body>
void where_taps_reach(const Taps& taps, int64_t start, int64_t frames, int64_t limit, const Body& body) {
  struct Reach {
    int64_t tap, count;
    bool operator==(const Reach&) const = default;
  };
  const auto reach = [&](int64_t f) {
    int64_t begin = taps.count, end = 0;
    for (int64_t i = 0; i < taps.count; ++i) {
      const int64_t first = start + f + taps.offset + i * taps.offset_step, last = first + (f + 1 < frames);
      if (last >= 0 && first < limit) begin = smaller(begin, i), end = i + 1;
    }
    return Reach{begin, larger(0, end - begin)};
  };
  for (int64_t f = 0, next; f < frames; f = next) {
    const Reach found = reach(f);
    for (next = f + 2; next < frames && reach(next) == found;) next += 2;
    next = smaller(next, frames);
    body(f, next - f, found.tap, found.count);
  }
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

template <typename T, typename Tile>
void convolve_once(const Product<Tile>& p, T* c, int64_t ldc, int64_t R, int64_t columns) {
  const int64_t N = round_up(columns, kLanes);
  gemm<Tile, T>({p.a, p.am, p.ak, p.at, p.b, p.bk, p.bt, p.add, p.addm, c, ldc, p.K, p.taps, columns - (N - kLanes)}, R, N);
}

void clear_rows(float* to, int64_t ld, int64_t R, int64_t columns) {
  for (int64_t r = 0; r < R; ++r) __builtin_memset(to + r * ld, 0, sizeof(float) * columns);
}

// One way through the taps, forwards or back: channels that are summed over, and that come out, of a group.
template <typename T, typename Tile>
struct Convolution {
  const TemporalConvShape& s;
  int64_t in, out;
  const Tile* weights;  // (groups, k, in, padded(out)), float or pairs
  const float* bias;    // (groups, padded(out)), or null

  // A product of bf16 pairs may round its result into the map at once where that is the whole sum.
  bool rounds_at_once(const MapData& map) const {
    return sizeof(T) < sizeof(float) && map.channels_last && s.stride == 1 && s.k * steps_of<Tile>(in) <= kSteps;
  }

  // to (frames, V) = bias + the products of x with the taps of a phase, or to += them; or what is rounded into `map`, in the place of
  // `to`. x, from whose frames a tap reads at its offset, begins with frame start of limit.
  void operator()(const Taps& taps, const Tile* x, int64_t ld, int64_t start, int64_t frames, int64_t limit, bool accumulate, float* to, int64_t ldto,
                  T* map, int64_t pitch) const {
    const int64_t outp = padded(out), terms = kTermsPerStep<Tile>, size = terms * in * outp;
    const int64_t next = taps.offset_step * s.V * ld, next_weight = taps.step * size;
    for (int64_t group = 0; group < s.groups; ++group) {
      const float* of_group = bias ? bias + group * outp : nullptr;
      where_taps_reach(taps, start, frames, limit, [&](int64_t f, int64_t n, int64_t tap, int64_t count) {
        const int64_t row = f * s.V, R = n * s.V;
        float* y = to + row * ldto + group * out;
        if (!count) return accumulate ? void() : clear_rows(y, ldto, R, out);
        const Product<Tile> product{x + (row + taps.offset * s.V) * ld + tap * next + group * in,
                                    ld,
                                    terms,
                                    next,
                                    weights + (group * s.k + taps.first) * size + tap * next_weight,
                                    terms * outp,
                                    next_weight,
                                    accumulate ? y : of_group,
                                    accumulate ? ldto : 0,
                                    y,
                                    ldto,
                                    steps_of<Tile>(in),
                                    count};
        map ? convolve_once(product, map + row * pitch + group * out, pitch, R, out) : convolve(product, R, out);
      });
    }
  }
};

// The gradient of the weight of the taps of a phase, from rows that both operands of the sum begin with.
template <typename Tile>
void add_weight_gradients(const TemporalConvShape& s, const Taps& taps, const Summed<Tile>& a, const Summed<Tile>& g, int64_t steps, float* sums,
                          uint32_t* written) {
  const int64_t size = s.sums_rows() * s.sums_width();
  for (int64_t tap = 0; tap < taps.count; ++tap) {
    const int64_t number = taps.first + tap * taps.step, row = -(taps.offset + tap * taps.offset_step) * s.V;
    for (int64_t group = 0; group < s.groups; ++group)
      weight_gradient<Tile>({a.at(0, group * s.group_in()), a.ld}, {g.at(row, group * s.group_out()), g.ld}, s.sums_by_input(),
                            sums + (group * s.k + number) * size, s.sums_rows(), s.sums_width(), steps, *written >> number & 1);
    *written |= 1u << number;
  }
}

template <typename T, typename Tile>
void forward(const TemporalConv& p, int64_t begin, int64_t end, double* stats) {
  const TemporalConvShape& s = p.shape;
  const int64_t halo = s.halo(), out_frames = s.out_frames();
  const Frames input = input_frames<T, Tile>(s, p.x);
  const Frames output = output_frames<T, float>(s, p.y);
  const Convolution<T, Tile> convolution{s, s.group_in(), s.group_out(), reinterpret_cast<const Tile*>(p.weight), p.bias};
  const bool at_once = !stats && convolution.rounds_at_once(p.y);
  Tile* x_tile = scratch_of<Tile>(kX, (s.tile_frames + 2 * halo) * s.V * s.width_in());
  float* y_tile = scratch(kY, s.tile_frames * s.V * s.width_out());
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / s.tiles(), t = item % s.tiles() * s.tile_frames;
    const int64_t frames = smaller(s.tile_frames, out_frames - t);
    const bool direct = output.in_place(b, t, frames);
    float* y = direct ? output.rows(b, t) : y_tile;
    const int64_t ldy = direct ? p.y.pitch : s.width_out();
    for (int64_t phase = 0; phase < s.stride; ++phase) {
      const Taps taps = taps_of(s, phase);
      if (!taps.count) continue;
      int64_t ld;
      const Tile* x = input.load(b, t - halo, frames + 2 * halo, s.stride, phase, {p.scale, p.shift}, x_tile, &ld);
      // The tap in the middle is of the first phase and reaches all frames.
      convolution(taps, x + halo * s.V * ld, ld, t, frames, s.frames_of(phase), phase > 0, y, ldy, at_once ? output.data(b, t) : nullptr, p.y.pitch);
    }
    if (stats) add_sums(y, ldy, frames * s.V, s.O, stats, stats + s.O);
    if (!direct && !at_once) output.store(y, ldy, b, t, frames, 1, 0);
  }
}

template <typename T, typename Tile>
void backward(const TemporalConvBackward& p, int64_t begin, int64_t end, const TemporalConvSums& sums) {
  const TemporalConvShape& s = p.shape;
  const int64_t halo = s.halo(), out_frames = s.out_frames(), rows = s.tile_frames * s.V, reach = halo * s.V;
  const bool needs_a = p.grad_x.data || sums.scale;
  const Affine affine{p.scale, p.shift};
  const Frames input = input_frames<T, Tile>(s, p.x);
  const Frames of_input = input_frames<T, float>(s, p.grad_x);
  const Convolution<T, Tile> convolution{s, s.group_out(), s.group_in(), reinterpret_cast<const Tile*>(p.weight), nullptr};
  const bool at_once = p.grad_x.data && !p.scale && convolution.rounds_at_once(p.grad_x);
  Tile* x_tile = scratch_of<Tile>(kX, rows * s.width_in());
  Tile* a_tile = scratch_of<Tile>(kA, rows * s.width_in());
  float* h_tile = scratch(kH, rows * s.width_in());
  Tile* g_tile = scratch_of<Tile>(kG, (rows + 2 * reach) * s.width_out());
  float* paired = kTermsPerStep<Tile> > 1 ? scratch(kWork, (rows + 2 * reach) * s.width_out()) : nullptr;
  uint32_t written = 0;  // a bit per tap: the first item that sums it need not add, so that nothing is cleared beforehand
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / s.tiles(), t = item % s.tiles() * s.tile_frames;
    const int64_t frames = smaller(s.tile_frames, out_frames - t);
    int64_t ldg, lda = 0;
    const Tile* g = load_gradient_frames<T, Tile>(p, b, t - halo, frames + 2 * halo, g_tile, &ldg) + reach * ldg;
    if (sums.bias) add_sums(g, ldg, frames * s.V, s.O, sums.bias, nullptr);
    for (int64_t phase = 0; phase < s.stride; ++phase) {
      const Taps taps = taps_of(s, phase);
      const int64_t count = smaller(frames, s.frames_of(phase) - t), R = count * s.V;
      if (count <= 0) continue;
      const Tile* a = sums.weight || p.scale ? input.load(b, t, count, s.stride, phase, affine, a_tile, &lda) : nullptr;
      if (sums.weight && taps.count) {
        const int64_t half = steps_of<Tile>(R);
        // What x_tile is for begins when the products with the weight are done.
        add_weight_gradients(s, taps, summed(a, lda, 0, R, half, s.width_in(), reinterpret_cast<float*>(x_tile)),
                             summed(g, ldg, -reach, frames * s.V + reach, half, s.width_out(), paired), half, sums.weight, &written);
      }
      if (!needs_a) continue;
      // What goes through the normalisation is written by whole vectors.
      const bool direct = p.grad_x.data && s.stride == 1 && (p.scale ? of_input.in_place() : of_input.in_place(b, t, count));
      float* h = direct ? of_input.rows(b, t) : h_tile;
      const int64_t ldh = direct ? p.grad_x.pitch : s.width_in();
      convolution(reversed(taps), g, ldg, t, count, out_frames, false, h, ldh, at_once ? of_input.data(b, t) : nullptr, p.grad_x.pitch);
      if (p.scale) {
        int64_t ldx;
        const Tile* x = input.load(b, t, count, s.stride, phase, {}, x_tile, &ldx);
        through_affine(x, ldx, a, lda, h, ldh, R, s.C, p.scale, sums.scale, sums.shift);
      }
      if (p.grad_x.data && !direct && !at_once) of_input.store(h, ldh, b, t, count, s.stride, phase);
    }
  }
  const int64_t size = s.sums_rows() * s.sums_width();
  for (int64_t matrix = 0; sums.weight && matrix < s.groups * s.k; ++matrix)
    if (!(written >> matrix % s.k & 1)) __builtin_memset(sums.weight + matrix * size, 0, sizeof(float) * size);
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
