// y[b,o,t,w] = sum_k sum_v (sum_c weight[k,o,c] x[b,c,t,v] + bias[k,o]) adjacency[k,v,w], a tile of frames at a time.
//
// A tile lies in cache as rows (t, v) with channels along the vector lanes, so no joint count needs padding and a zero of the
// adjacency is work that can be left out. With R = tile_frames * V rows and Cp, Op channels padded to a multiple of 16:
//   forward   Z (R, K Cp) = x aggregated by each adjacency subset;  y (R, Op) = Z weight + bias term
//   backward  H (R, K Cp) = grad_y weight;  grad_x = H aggregated backwards and summed over k;
//             grad_weight += grad_y^T Z;  grad_adjacency[k,v,w] += x_v . H_kw
// Aggregating before projecting makes H serve both grad_x and grad_adjacency: two matrix products instead of three.
#include "graph_conv.h"

#include "dots.h"
#include "gemm.h"
#include "tiles.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

enum Slot { kX, kY, kZ, kH, kSmall, kOutput };

template <typename T>
void prefetch_item(const MapData& map, const GraphConvShape& s, int64_t channels, int64_t item) {
  const int64_t b = item / s.tiles(), t = item % s.tiles() * s.tile_frames;
  if (b < s.B) prefetch_tile<T>(map, channels, s.T * s.V, b, t * s.V, smaller(s.tile_frames, s.T - t) * s.V);
}

// A product with a zero of the adjacency may be left out only where it would be zero.
bool finite(const float* x, int64_t n) {
  Vec probe{};
  for (int64_t i = 0; i < n; i += kLanes) probe += load(x + i) * 0.0f;
  const float total = sum(probe);
  return total == 0.0f;
}

// ---- aggregation ------------------------------------------------------------------------------------------------------

// The non-zeros of one sample's adjacency, by target joint and subset and by source joint.
struct Sparse {
  struct Entry {
    int32_t joint, subset;
    float value;
  };
  Entry *by_target, *by_source;           // K V V each
  int32_t *target_begin, *source_begin;  // (V * K + 1): row (w, k);  (V + 1): row v
  int64_t nonzeros;
};

int64_t sparse_floats(const GraphConvShape& s) { return s.K * s.V * s.V * 6 + s.V * s.K + s.V + 2; }

Sparse find_nonzeros(const float* adjacency, const GraphConvShape& s, float* memory) {
  const int64_t K = s.K, V = s.V;
  Sparse a;
  a.by_target = reinterpret_cast<Sparse::Entry*>(memory);
  a.by_source = a.by_target + K * V * V;
  a.target_begin = reinterpret_cast<int32_t*>(a.by_source + K * V * V);
  a.source_begin = a.target_begin + V * K + 1;
  int32_t n = 0;
  for (int64_t w = 0; w < V; ++w)
    for (int64_t k = 0; k < K; ++k) {
      a.target_begin[w * K + k] = n;
      for (int64_t v = 0; v < V; ++v) {
        const float value = adjacency[(k * V + v) * V + w];
        if (value != 0.0f) a.by_target[n++] = {static_cast<int32_t>(v), static_cast<int32_t>(k), value};
      }
    }
  a.target_begin[V * K] = n;
  a.nonzeros = n;
  n = 0;
  for (int64_t v = 0; v < V; ++v) {
    a.source_begin[v] = n;
    for (int64_t k = 0; k < K; ++k)
      for (int64_t w = 0; w < V; ++w) {
        const float value = adjacency[(k * V + v) * V + w];
        if (value != 0.0f) a.by_source[n++] = {static_cast<int32_t>(w), static_cast<int32_t>(k), value};
      }
  }
  a.source_begin[V] = n;
  return a;
}

// out (N lanes) = sum over entries of value * rows[joint][subset * stride ..]
inline void combine(const Sparse::Entry* entry, const Sparse::Entry* end, const float* rows, int64_t ld, int64_t stride, float* out, int64_t N) {
  for (int64_t n = 0; n < N; n += 4 * kLanes) {
    const int64_t vectors = smaller(4, (N - n) / kLanes);
    Vec acc[4] = {};
    for (const Sparse::Entry* e = entry; e != end; ++e) {
      const float* row = rows + e->joint * ld + e->subset * stride + n;
      for (int64_t i = 0; i < vectors; ++i) acc[i] += e->value * load(row + i * kLanes);
    }
    for (int64_t i = 0; i < vectors; ++i) store(out + n + i * kLanes, acc[i]);
  }
}

struct Aggregator {
  const GraphConvShape& s;
  const float* adjacency = nullptr;  // (K, V, V) of the current sample
  Sparse sparse{};

  void use(const float* of_sample) {
    adjacency = of_sample;
    sparse = find_nonzeros(of_sample, s, scratch(kSmall, sparse_floats(s)));
  }

  // Below this share of non-zeros, skipping wins over the denser blocking of the matrix product.
  bool skip_zeros() const { return 3 * sparse.nonzeros < 2 * s.K * s.V * s.V; }

  // z[t,w,k,:] = sum_v adjacency[k,v,w] x[t,v,:]
  void forward(const float* x, float* z, int64_t frames, int64_t ld) const {
    const bool skip = skip_zeros() && finite(x, frames * s.V * ld);
    for (int64_t t = 0; t < frames; ++t, x += s.V * ld, z += s.V * s.K * ld) {
      if (skip) {
        for (int64_t row = 0; row < s.V * s.K; ++row)
          combine(sparse.by_target + sparse.target_begin[row], sparse.by_target + sparse.target_begin[row + 1], x, ld, 0, z + row * ld, ld);
      } else {
        for (int64_t k = 0; k < s.K; ++k)
          gemm(adjacency + k * s.V * s.V, 1, s.V, x, ld, z + k * ld, s.K * ld, s.V, ld, s.V, false);
      }
    }
  }

  // x[t,v,:] = sum_k sum_w adjacency[k,v,w] h[t,w,k,:]
  void backward(const float* h, float* x, int64_t frames, int64_t ld) const {
    const bool skip = skip_zeros() && finite(h, frames * s.V * s.K * ld);
    for (int64_t t = 0; t < frames; ++t, x += s.V * ld, h += s.V * s.K * ld) {
      if (skip) {
        for (int64_t v = 0; v < s.V; ++v)
          combine(sparse.by_source + sparse.source_begin[v], sparse.by_source + sparse.source_begin[v + 1], h, s.K * ld, ld, x + v * ld, ld);
      } else {
        for (int64_t k = 0; k < s.K; ++k)
          gemm(adjacency + k * s.V * s.V, s.V, 1, h + k * ld, s.K * ld, x, ld, s.V, ld, s.V, k > 0);
      }
    }
  }
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

// stats[o] += sum of the rows, stats[O + o] += sum of their squares
void add_stats(const float* y, int64_t R, const GraphConvShape& s, double* stats) {
  const int64_t Op = padded(s.O);
  for (int64_t o = 0; o < s.O; o += kLanes) {
    Vec total{}, squares{};
    for (int64_t r = 0; r < R; ++r) {
      const Vec value = load(y + r * Op + o);
      total += value;
      squares += value * value;
    }
    for (int64_t i = 0; i < smaller(kLanes, s.O - o); ++i) stats[o + i] += total[i], stats[s.O + o + i] += squares[i];
  }
}

template <typename T>
void forward(const GraphConv& p, int64_t begin, int64_t end, double* stats) {
  const GraphConvShape& s = p.shape;
  const int64_t Cp = padded(s.C), Op = padded(s.O), tiles = s.tiles(), plane = s.T * s.V, max_rows = s.tile_frames * s.V;
  float* z = scratch(kZ, max_rows * s.K * Cp);
  float* y = scratch(kY, max_rows * Op + s.V * Op);
  float* table = y + max_rows * Op;
  Aggregator aggregate{s};
  int64_t current = -1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / tiles, t = item % tiles * s.tile_frames, sample = s.sample_of(item);
    const int64_t frames = smaller(s.tile_frames, s.T - t), R = frames * s.V;
    if (sample != current) {
      current = sample;
      aggregate.use(p.adjacency + sample * s.K * s.V * s.V);
      if (p.bias) bias_table(p.bias, aggregate.adjacency, s, table);
    }
    const float* x = load_tile<T>(p.x, s.C, plane, b, t * s.V, R, kX);
    aggregate.forward(x, z, frames, Cp);
    if (p.bias)
      for (int64_t f = 0; f < frames; ++f) __builtin_memcpy(y + f * s.V * Op, table, sizeof(float) * s.V * Op);
    prefetch_item<T>(p.x, s, s.C, item + 1);
    prefetch_item<T>(p.y, s, s.O, item);
    if (s.C == Cp) {
      gemm(z, s.K * Cp, 1, p.weight, Op, y, Op, R, Op, s.K * Cp, p.bias);
    } else {
      // The padding of the channels is left out of the sum.
      for (int64_t k = 0; k < s.K; ++k) gemm(z + k * Cp, s.K * Cp, 1, p.weight + k * Cp * Op, Op, y, Op, R, Op, s.C, p.bias || k);
    }
    if (stats) add_stats(y, R, s, stats);
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

template <typename T>
void backward(const GraphConvBackward& p, int64_t begin, int64_t end, const GraphConvSums& sums) {
  const GraphConvShape& s = p.shape;
  const int64_t Cp = padded(s.C), Op = padded(s.O), tiles = s.tiles(), plane = s.T * s.V, max_rows = s.tile_frames * s.V;
  const int64_t subsets = s.K * s.V * s.V;
  const bool needs_h = p.grad_x.data || p.needs_adjacency, through_bias = p.bias && (p.needs_bias || (p.needs_adjacency && !s.bias_after));
  float* z = scratch(kZ, max_rows * s.K * Cp);
  float* h = scratch(kH, max_rows * (s.K + 1) * Cp + s.V * Op);
  float* grad_x = h + max_rows * s.K * Cp;
  float* grad_sum = grad_x + max_rows * Cp;
  Aggregator aggregate{s};
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
    const float* x = load_tile<T>(p.x, s.C, plane, b, t * s.V, R, kX);
    const float* g = load_gradient<T>(p.grad_y, p.stats, s.O, plane, b, t * s.V, R, kY, kOutput);
    if (p.needs_weight) {
      aggregate.forward(x, z, frames, Cp);
      gemm(g, 1, Op, z, s.K * Cp, sums.weight, s.K * Cp, s.O, s.K * Cp, R, true);
    }
    prefetch_item<T>(p.x, s, s.C, item + 1);
    prefetch_item<T>(p.grad_y, s, s.O, item + 1);
    if (p.stats.y.data) prefetch_item<T>(p.stats.y, s, s.O, item + 1);
    if (needs_h) gemm(g, Op, 1, p.weight, s.K * Cp, h, s.K * Cp, R, s.K * Cp, s.O, false);
    if (p.needs_adjacency)
      for (int64_t k = 0; k < s.K; ++k)
        add_dots({x, Cp, s.V * Cp}, {h + k * Cp, s.K * Cp, s.V * s.K * Cp}, s.V, frames, Cp, grad_adjacency + k * s.V * s.V);
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
  p.dtype == Dtype::f32 ? forward<float>(p, begin, end, stats) : forward<bf16>(p, begin, end, stats);
}

void graph_conv_backward(const GraphConvBackward& p, int64_t begin, int64_t end, const GraphConvSums& sums) {
  p.dtype == Dtype::f32 ? backward<float>(p, begin, end, sums) : backward<bf16>(p, begin, end, sums);
}

}  // namespace skelops::SKELOPS_LEVEL
