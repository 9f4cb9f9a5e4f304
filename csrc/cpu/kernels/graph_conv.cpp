// y[b,o,t,w] = sum_k sum_v (sum_c weight[k,o,c] x[b,c,t,v] + bias[k,o]) adjacency[k,v,w], a tile of frames at a time.
//
// A tile lies in cache as rows (t, v) with channels along the vector lanes, so no joint count needs padding and a zero of the
// adjacency is work that can be left out. With R = tile_frames * V rows and Cp, Op channels padded to a multiple of 16:
//   forward   Z (R, K Cp) = x aggregated by each adjacency subset;  y (R, Op) = Z weight + bias term
//   backward  H (R, K Cp) = grad_y weight;  grad_x = H aggregated backwards and summed over k;
//             grad_weight += grad_y^T Z;  grad_adjacency[k,v,w] += x_v . H_kw
// Aggregating before projecting makes H serve both grad_x and grad_adjacency: two matrix products instead of three.
#include "graph_conv.h"

#include "affine.h"
#include "dots.h"
#include "gemm.h"
#include "tiles.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

enum Slot { kX, kY, kZ, kH, kSmall, kOutput, kPaired, kPairedGradient };

template <typename T>
void prefetch_item(const MapData& map, const GraphConvShape& s, int64_t channels, int64_t item) {
  const int64_t b = item / s.tiles(), t = item % s.tiles() * s.tile_frames;
  if (b < s.B) prefetch_tile<T>(map, channels, s.T * s.V, b, t * s.V, smaller(s.tile_frames, s.T - t) * s.V);
}

// A product with a zero of the adjacency may be left out only where it would be zero.
template <typename Tile>
bool finite(const Tile* x, int64_t n) {
  IntVec found{};
  for (int64_t i = 0; i < n; i += kLanes) found |= load(x + i) * 0.0f != 0.0f;
  int32_t any = 0;
  for (int i = 0; i < kLanes; ++i) any |= found[i];
  return !any;
}

// ---- aggregation ------------------------------------------------------------------------------------------------------

// Two nested indices into an adjacency, which count rows or columns of a matrix.
struct Axis {
  int64_t outer, inner, outer_stride, inner_stride;

  int64_t size() const { return outer * inner; }
};

// An adjacency as a matrix that multiplies frames of rows in cache: its non-zeros, and all of it as an operand.
template <typename Tile>
class Matrix {
 public:
  Matrix(const Axis& rows, const Axis& columns) : rows_(rows), columns_(columns) {}

  int64_t floats() const { return M() * (2 * steps() + 2 * N() + 1) + 1; }

  void read(const float* adjacency, float* memory) {
    operand_ = reinterpret_cast<Tile*>(memory);
    entries_ = reinterpret_cast<Entry*>(memory + M() * steps());
    begin_ = reinterpret_cast<int32_t*>(entries_ + M() * N());
    int32_t n = 0;
    int64_t m = 0;
    for (int64_t i = 0; i < rows_.outer; ++i)
      for (int64_t j = 0; j < rows_.inner; ++j, ++m) {
        begin_[m] = n;
        n = read_row(adjacency + i * rows_.outer_stride + j * rows_.inner_stride, operand_ + m * width(), n);
      }
    begin_[m] = n;
  }

  // out (M rows) = this (M, N) in (N rows), for each of the frames; all rows are ld apart.
  template <typename Out>
  void multiply(const Tile* in, Out* out, int64_t frames, int64_t ld, float* memory) const {
    // Below this share of non-zeros, skipping wins over the denser blocking of the matrix product.
    const bool skip = 3 * kTermsPerStep<Tile> * begin_[M()] < 2 * M() * N() && finite(in, frames * N() * ld);
    for (int64_t t = 0; t < frames; ++t, in += N() * ld, out += M() * ld) {
      if (skip) {
        for (int64_t m = 0; m < M(); ++m) combine(entries_ + begin_[m], entries_ + begin_[m + 1], in, out + m * ld, ld);
      } else {
        const Summed<Tile> rows = summed(in, ld, 0, N(), steps(), ld, memory);
        gemm(operand_, width(), kTermsPerStep<Tile>, rows.data, rows.ld, out, ld, M(), ld, steps(), false);
      }
    }
  }

 private:
  struct Entry {
    int32_t column;
    float value;
  };

  int64_t M() const { return rows_.size(); }
  int64_t N() const { return columns_.size(); }
  int64_t steps() const { return steps_of<Tile>(N()); }
  int64_t width() const { return steps() * kTermsPerStep<Tile>; }

  // A row of the operand, in the order of summed(), and its non-zeros from the n-th entry on; returns the next one.
  int32_t read_row(const float* adjacency, Tile* row, int32_t n) {
    int32_t column = 0;
    int64_t at = 0;
    put(row + width() - 1, 0.0f);
    for (int64_t i = 0; i < columns_.outer; ++i)
      for (int64_t j = 0; j < columns_.inner; ++j, ++column) {
        const float value = adjacency[i * columns_.outer_stride + j * columns_.inner_stride];
        if (value != 0.0f) entries_[n++] = {column, value};
        put(row + at, value);
        at += kTermsPerStep<Tile>;
        if (at == width()) at = 1;
      }
    return n;
  }

  // out (ld lanes) = sum over entries of value * rows[column]
  template <typename Out>
  static void combine(const Entry* entry, const Entry* end, const Tile* rows, Out* out, int64_t ld) {
    for (int64_t n = 0; n < ld;) {
      const bool wide = ld - n >= 4 * kLanes;
      (wide ? combine_vectors<4, Out> : combine_vectors<1, Out>)(entry, end, rows + n, out + n, ld);
      n += wide ? 4 * kLanes : kLanes;
    }
  }

  template <int N, typename Out>
  static void combine_vectors(const Entry* entry, const Entry* end, const Tile* rows, Out* out, int64_t ld) {
    Vec acc[N] = {};
    for (; entry != end; ++entry)
      for (int i = 0; i < N; ++i) acc[i] += entry->value * load(rows + entry->column * ld + i * kLanes);
    for (int i = 0; i < N; ++i) store(out + i * kLanes, acc[i]);
  }

  Axis rows_, columns_;
  Tile* operand_ = nullptr;   // (M, N)
  Entry* entries_ = nullptr;  // row by row
  int32_t* begin_ = nullptr;  // of each row's entries, and their end
};

template <typename Tile>
struct Aggregator {
  const GraphConvShape& s;
  const float* adjacency = nullptr;  // (K, V, V) of the current sample
  Matrix<Tile> to_targets{{s.V, s.K, 1, s.V * s.V}, {s.V, 1, s.V, 0}};
  Matrix<Tile> to_sources{{s.V, 1, s.V, 0}, {s.V, s.K, 1, s.V * s.V}};

  void use(const float* of_sample) {
    adjacency = of_sample;
    float* memory = scratch(kSmall, to_targets.floats() + to_sources.floats());
    to_targets.read(of_sample, memory);
    to_sources.read(of_sample, memory + to_targets.floats());
  }

  float* paired_rows(int64_t ld) const { return scratch(kPaired, (s.V * s.K + 1) * ld); }

  // z[t,w,k,:] = sum_v adjacency[k,v,w] x[t,v,:]
  void forward(const Tile* x, Tile* z, int64_t frames, int64_t ld) const { to_targets.multiply(x, z, frames, ld, paired_rows(ld)); }

  // x[t,v,:] = sum_k sum_w adjacency[k,v,w] h[t,w,k,:]
  void backward(const Tile* h, float* x, int64_t frames, int64_t ld) const { to_sources.multiply(h, x, frames, ld, paired_rows(ld)); }
};

// ---- forward ----------------------------------------------------------------------------------------------------------

// table[w,o] = sum_k bias[k,o] sum_v adjacency[k,v,w], or bias[o]: what the bias adds to every frame.
void bias_table(const float* bias, const float* adjacency, const GraphConvShape& s, float* table) {
  const int64_t Op = padded(s.O);
  for (int64_t i = 0; i < s.V * Op; ++i) table[i] = 0;
  for (int64_t k = 0; k < (s.bias_after ? 1 : s.K); ++k)
    for (int64_t w = 0; w < s.V; ++w) {
      float column = s.bias_after;
      for (int64_t v = 0; v < s.V && !s.bias_after; ++v) column += adjacency[(k * s.V + v) * s.V + w];
      for (int64_t o = 0; o < s.O; ++o) table[w * Op + o] += bias[k * s.O + o] * column;
    }
}

template <typename T, typename Tile>
void forward(const GraphConv& p, int64_t begin, int64_t end, double* stats) {
  const GraphConvShape& s = p.shape;
  const int64_t Cp = padded(s.C), Op = padded(s.O), tiles = s.tiles(), plane = s.T * s.V, max_rows = s.tile_frames * s.V;
  constexpr int64_t terms = kTermsPerStep<Tile>;
  const Tile* weight = reinterpret_cast<const Tile*>(p.weight);
  Tile* z = scratch_of<Tile>(kZ, max_rows * s.K * Cp);
  float* y = scratch(kY, max_rows * Op + s.V * Op);
  float* table = y + max_rows * Op;
  Aggregator<Tile> aggregate{s};
  int64_t current = -1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / tiles, t = item % tiles * s.tile_frames, sample = s.sample_of(item);
    const int64_t frames = smaller(s.tile_frames, s.T - t), R = frames * s.V;
    if (sample != current) {
      current = sample;
      aggregate.use(p.adjacency + sample * s.K * s.V * s.V);
      if (p.bias) bias_table(p.bias, aggregate.adjacency, s, table);
    }
    const Tile* x = load_tile<T, Tile>(p.x, s.C, plane, b, t * s.V, R, kX);
    aggregate.forward(x, z, frames, Cp);
    if (p.bias)
      for (int64_t f = 0; f < frames; ++f) __builtin_memcpy(y + f * s.V * Op, table, sizeof(float) * s.V * Op);
    prefetch_item<T>(p.x, s, s.C, item + 1);
    prefetch_item<T>(p.y, s, s.O, item);
    // The padding of the channels is left out of the sum, in which the subsets are taps.
    const float* add = p.bias ? y : nullptr;
    gemm<Tile, float>({z, s.K * Cp, terms, Cp, weight, terms * Op, terms * Cp * Op, add, Op, y, Op, steps_of<Tile>(s.C), s.K}, R, Op);
    if (stats) add_sums(y, Op, R, s.O, stats, stats + s.O);
    store_tile<T>(y, p.y, s.O, plane, b, t * s.V, R);
  }
}

// ---- backward ---------------------------------------------------------------------------------------------------------

// What a sample's grad_y, summed over frames (V, Op), gives to the gradients of the bias and, through it, of the adjacency.
void add_bias_terms(const GraphConvBackward& p, const float* adjacency, const float* grad_sum, float* grad_bias, float* grad_adjacency) {
  const GraphConvShape& s = p.shape;
  const int64_t Op = padded(s.O);
  if (s.bias_after) {
    for (int64_t w = 0; w < s.V; ++w)
      for (int64_t o = 0; o < s.O; ++o) grad_bias[o] += grad_sum[w * Op + o];
    return;
  }
  for (int64_t k = 0; k < s.K; ++k)
    for (int64_t w = 0; w < s.V; ++w) {
      float column = 0, product = 0;
      for (int64_t v = 0; v < s.V; ++v) column += adjacency[(k * s.V + v) * s.V + w];
      for (int64_t o = 0; o < s.O; ++o) {
        grad_bias[k * s.O + o] += column * grad_sum[w * Op + o];
        product += p.bias[k * s.O + o] * grad_sum[w * Op + o];
      }
      for (int64_t v = 0; v < s.V; ++v) grad_adjacency[(k * s.V + v) * s.V + w] += product;
    }
}

template <typename T, typename Tile>
void backward(const GraphConvBackward& p, int64_t begin, int64_t end, const GraphConvSums& sums) {
  const GraphConvShape& s = p.shape;
  const int64_t Cp = padded(s.C), Op = padded(s.O), tiles = s.tiles(), plane = s.T * s.V, max_rows = s.tile_frames * s.V;
  const int64_t subsets = s.K * s.V * s.V;
  const bool needs_h = p.grad_x.data || p.needs_adjacency, through_bias = p.bias && (p.needs_bias || (p.needs_adjacency && !s.bias_after));
  constexpr int64_t terms = kTermsPerStep<Tile>;
  const Tile* weight = reinterpret_cast<const Tile*>(p.weight);
  Tile* z = scratch_of<Tile>(kZ, max_rows * s.K * Cp);
  float* grad_x = scratch(kH, max_rows * (s.K + 1) * Cp + s.V * Op);
  Tile* h = reinterpret_cast<Tile*>(grad_x + max_rows * Cp + s.V * Op);
  float* grad_sum = grad_x + max_rows * Cp;
  Aggregator<Tile> aggregate{s};
  float* grad_adjacency = nullptr;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / tiles, t = item % tiles * s.tile_frames, sample = s.sample_of(item);
    const int64_t frames = smaller(s.tile_frames, s.T - t), R = frames * s.V;
    if (item == begin || sample != s.sample_of(item - 1)) {
      aggregate.use(p.adjacency + sample * subsets);
      const bool begins_here = item == 0 || sample != s.sample_of(item - 1);
      grad_adjacency = begins_here ? sums.adjacency + sample * subsets : sums.head;
      for (int64_t i = 0; i < subsets; ++i) grad_adjacency[i] = 0;
      for (int64_t i = 0; i < s.V * Op; ++i) grad_sum[i] = 0;
    }
    const Tile* x = load_tile<T, Tile>(p.x, s.C, plane, b, t * s.V, R, kX);
    const Tile* g = load_gradient<T, Tile>(p.grad_y, p.stats, s.O, plane, b, t * s.V, R, kY, kOutput);
    if (p.needs_weight) {
      aggregate.forward(x, z, frames, Cp);
      const int64_t half = steps_of<Tile>(R);
      const Summed<Tile> of_z = summed(z, s.K * Cp, 0, R, half, s.K * Cp, scratch(kPaired, (R + 1) * s.K * Cp));
      const Summed<Tile> of_g = summed(g, Op, 0, R, half, Op, scratch(kPairedGradient, (R + 1) * Op));
      gemm(of_g.data, terms, of_g.ld, of_z.data, of_z.ld, sums.weight, s.K * Cp, s.O, s.K * Cp, half, item > begin);
    }
    prefetch_item<T>(p.x, s, s.C, item + 1);
    prefetch_item<T>(p.grad_y, s, s.O, item + 1);
    if (p.stats.y.data) prefetch_item<T>(p.stats.y, s, s.O, item + 1);
    if (needs_h) gemm(g, Op, terms, weight, terms * s.K * Cp, h, s.K * Cp, R, s.K * Cp, steps_of<Tile>(s.O), false);
    if (p.needs_adjacency)
      for (int64_t k = 0; k < s.K; ++k)
        add_dots<Tile>({x, Cp, s.V * Cp}, {h + k * Cp, s.K * Cp, s.V * s.K * Cp}, s.V, frames, Cp, grad_adjacency + k * s.V * s.V);
    if (p.grad_x.data) {
      aggregate.backward(h, grad_x, frames, Cp);
      store_tile<T>(grad_x, p.grad_x, s.C, plane, b, t * s.V, R);
    }
    if (through_bias) {
      for (int64_t r = 0; r < R; ++r)
        for (int64_t o = 0; o < Op; o += kLanes) {
          float* total = grad_sum + r % s.V * Op + o;
          store(total, load(total) + load(g + r * Op + o));
        }
      if (item + 1 == end || s.sample_of(item + 1) != sample) add_bias_terms(p, aggregate.adjacency, grad_sum, sums.bias, grad_adjacency);
    }
  }
}

}  // namespace

void graph_conv_pack(const float* weight, int64_t O, int64_t C, float* packed) {
  const int64_t Cp = padded(C), Op = padded(O);
  if (C < Cp || round_up(O, kLanes) < Op)
    for (int64_t i = 0; i < Cp * Op; i += kLanes) store(packed + i, Vec{});
  transpose_tile(weight, C, O, C, packed, Op, true);
}

void graph_conv(const GraphConv& p, int64_t begin, int64_t end, double* stats) {
  p.dtype == Dtype::f32 ? forward<float, float>(p, begin, end, stats) : forward<bf16, Bf16Operand>(p, begin, end, stats);
}

void graph_conv_backward(const GraphConvBackward& p, int64_t begin, int64_t end, const GraphConvSums& sums) {
  p.dtype == Dtype::f32 ? backward<float, float>(p, begin, end, sums) : backward<bf16, Bf16Operand>(p, begin, end, sums);
}

}  // namespace skelops::SKELOPS_LEVEL
