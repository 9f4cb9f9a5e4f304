// y[b,c,t,w] = sum_k sum_v x[b,k,c,t,v] (alpha (sum_r weight[k,c,r] tanh(query[b,k,r,w] - key[b,k,r,v]) + bias[k,c]) + adjacency[k,v,w])
//
// The unit of work is a block of channels of a sample. Its topology (V, V, kBlock) is a matrix product of the table of
// differences, which the blocks of the sample share, and lives in cache while all frames pass it. The table has two rows
// more than differences, ones and the adjacency, which bring the bias and the adjacency into the product.
// Backward: with G (V, V, kBlock) = sum_t x_v grad_w, the gradient of the topology,
//   of weight = G . differences, of bias = sum of G, of adjacency = sum of G over channels and samples,
//   of differences = weight . G, summed over the blocks of the sample; that of alpha follows from those of weight and bias.
#include "channel_graph_conv.h"

#include "affine.h"
#include "channel_tile.h"
#include "gemm.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

enum Slot { kTable, kTopology, kX, kY, kTopologyGrad, kDifferenceGrad, kAdjacencyGrad, kSmall };

constexpr int64_t kFrames = 32;  // frames of x in work at a time

int64_t table_pitch(const ChannelGraphConvShape& s) { return round_up(s.edges(), 16) + 16; }

// table (K, R + 2, V * V, padded) of sample b: tanh(query_w - key_v), ones, adjacency.
void fill_table(const ChannelGraphConv& p, int64_t b, float* table) {
  const ChannelGraphConvShape& s = p.shape;
  const int64_t pitch = table_pitch(s);
  float* row = scratch(kSmall, round_up(s.V, kLanes));
  for (int64_t k = 0; k < s.K; ++k) {
    for (int64_t r = 0; r < s.R; ++r, table += pitch) {
      const int64_t vector = ((b * s.K + k) * s.R + r) * s.V;
      __builtin_memcpy(row, p.query + vector, sizeof(float) * s.V);
      // Each source's vectors run over into the next one's, which is written after them.
      for (int64_t v = 0; v < s.V; ++v)
        for (int64_t w = 0; w < s.V; w += kLanes) store(table + v * s.V + w, load(row + w) - p.key[vector + v]);
      for (int64_t i = 0; i < s.edges(); i += kLanes) store(table + i, tanh(load(table + i)));
    }
    for (int64_t i = 0; i < s.edges(); ++i) table[i] = 1.0f;
    table += pitch;
    __builtin_memcpy(table, p.adjacency + k * s.edges(), sizeof(float) * s.edges());
    table += pitch;
  }
}

// The topology (V * V, kBlock) of subset k and a block of channels.
void build_topology(const ChannelGraphConv& p, const float* table, int64_t k, int64_t block, int64_t width, float* topology) {
  const ChannelGraphConvShape& s = p.shape;
  const int64_t pitch = table_pitch(s), rows = s.R + 2;
  gemm(table + k * rows * pitch, 1, pitch, p.weight + (k * s.blocks + block) * rows * kBlock, kBlock, topology, kBlock, s.edges(), width, rows, false);
}

template <typename T>
void forward(const ChannelGraphConv& p, int64_t begin, int64_t end, double* stats) {
  const ChannelGraphConvShape& s = p.shape;
  const int64_t plane = s.T * s.V, frame = s.V * kBlock;
  float* table = scratch(kTable, s.K * (s.R + 2) * table_pitch(s));
  float* topology = scratch(kTopology, s.edges() * kBlock);
  float* x = scratch(kX, kFrames * frame);
  float* y = scratch(kY, s.T * frame);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / s.blocks, block = item % s.blocks, c = block * kBlock, n = smaller(kBlock, s.C - c);
    if (item == begin || block == 0) fill_table(p, b, table);
    const BlockOfMap to{p.y, s.C, plane, b, c, n};
    for (int64_t k = 0; k < s.K; ++k) {
      build_topology(p, table, k, block, to.width(), topology);
      const BlockOfMap from{p.x, s.K * s.C, plane, b, k * s.C + c, n};
      for (int64_t t = 0; t < s.T; t += kFrames) {
        const int64_t frames = smaller(kFrames, s.T - t);
        load_block<T>(from, t * s.V, frames * s.V, x);
        apply({topology, s.V, s.V, s.V, 1}, x, y + t * frame, frames, to.width(), k > 0);
      }
    }
    if (stats) add_sums(y, kBlock, plane, n, stats + c, stats + s.C + c);
    store_block<T>(y, to, 0, plane);
  }
}

// The gradient of y (T, V, kBlock), with what comes through its sums.
template <typename T>
void load_gradient(const ChannelGraphConvBackward& p, int64_t b, int64_t c, int64_t n, float* grad) {
  const ChannelGraphConvShape& s = p.forward.shape;
  const int64_t plane = s.T * s.V, width = round_up(n, kLanes);
  load_block<T>({p.grad_y, s.C, plane, b, c, n}, 0, plane, grad);
  if (!p.grad_sum && !p.grad_square_sum) return;
  float* y = scratch(kX, kFrames * s.V * kBlock);
  for (int64_t row = 0; row < plane; row += kFrames * s.V) {
    const int64_t R = smaller(kFrames * s.V, plane - row);
    if (p.grad_square_sum) load_block<T>({p.forward.y, s.C, plane, b, c, n}, row, R, y);
    for (int64_t i = 0; i < width; i += kLanes) {
      const Vec constant = p.grad_sum ? load(p.grad_sum + c + i) : Vec{};
      const Vec slope = p.grad_square_sum ? 2.0f * load(p.grad_square_sum + c + i) : Vec{};
      for (int64_t r = 0; r < R; ++r) {
        float* value = grad + (row + r) * kBlock + i;
        const Vec with_sum = load(value) + constant;
        store(value, p.grad_square_sum ? with_sum + slope * load(y + r * kBlock + i) : with_sum);
      }
    }
  }
}

constexpr int64_t kPiece = 64;  // edges summed in float before they are added to a double

constexpr int kRows = kLanes == 16 ? 8 : 4;  // 8 divides the usual R

// sums (M, kBlock) = A (M, K) B (K, kBlock), N vectors wide.
template <int N>
void product(const float* a, int64_t lda, const float* b, float* sums, int64_t M, int64_t K) {
  int64_t m = 0;
  for (; m + kRows <= M; m += kRows) gemm_block<kRows, N>(a + m * lda, lda, 1, b, kBlock, sums + m * kBlock, kBlock, K, false);
  for (; m < M; ++m) gemm_block<1, N>(a + m * lda, lda, 1, b, kBlock, sums + m * kBlock, kBlock, K, false);
}

// What the gradient of the topology of subset k and a block gives to those of weight, bias, adjacency and differences; the
// last two are of the sample: `first` begins them.
void reduce(const ChannelGraphConvBackward& p, const float* table, const float* of_topology, int64_t k, int64_t block, int64_t n, bool first,
            const ChannelGraphConvSums& sums, float* of_adjacency, float* of_differences) {
  const ChannelGraphConvShape& s = p.forward.shape;
  const int64_t E = s.edges(), c = block * kBlock, Cp = s.blocks * kBlock, Rp = padded(s.R), width = round_up(n, kLanes);
  const float* differences = table + k * (s.R + 2) * table_pitch(s);
  float* rows = scratch(kSmall, (s.R + 1) * kBlock);  // of weight, and of bias
  for (int64_t e = 0; e < E; e += kPiece) {
    const int64_t edges = smaller(kPiece, E - e);
    const float* piece = of_topology + e * kBlock;
    for (int64_t i = 0; i < width; i += 2 * kLanes)
      (width - i > kLanes ? product<2> : product<1>)(differences + e, table_pitch(s), piece + i, rows + i, s.R, edges);
    for (int64_t i = 0; i < width; i += kLanes) {
      Vec total{};
      for (int64_t j = 0; j < edges; ++j) {
        const Vec value = load(piece + j * kBlock + i);
        float* to = of_adjacency + (k * E + e + j) * kBlock + i;
        store(to, first ? value : load(to) + value);
        total += value;
      }
      store(rows + s.R * kBlock + i, total);
    }
    for (int64_t r = 0; r <= s.R; ++r)
      for (int64_t i = 0; i < n; ++i) sums.weight[(k * (s.R + 1) + r) * Cp + c + i] += rows[r * kBlock + i];
  }
  gemm(of_topology, kBlock, 1, p.weight + (k * Cp + c) * Rp, Rp, of_differences + k * E * Rp, Rp, E, Rp, n, !first);
}

// Gradients of differences (K, V * V, padded(R)) become those of query and key (K, R, V) of the sample; that of the adjacency
// (K, V * V, kBlock) is added to the sum over samples.
void finish_sample(const ChannelGraphConvShape& s, const float* table, const float* of_adjacency, int64_t width, const float* of_differences,
                   double* adjacency, float* query, float* key) {
  const int64_t E = s.edges(), Rp = padded(s.R), pitch = table_pitch(s);
  for (int64_t e = 0; e < s.K * E; ++e) {
    Vec total{};
    for (int64_t i = 0; i < width; i += kLanes) total += load(of_adjacency + e * kBlock + i);
    adjacency[e] += sum(total);
  }
  float* columns = scratch(kX, Rp * pitch);
  for (int64_t k = 0; k < s.K; ++k, table += 2 * pitch) {
    transpose_tile(of_differences + k * E * Rp, Rp, E, s.R, columns, pitch, true);
    for (int64_t r = 0; r < s.R; ++r, table += pitch, query += s.V, key += s.V) {
      for (int64_t v = 0; v < s.V; ++v) key[v] = 0;
      for (int64_t w = 0; w < s.V; w += kLanes) {
        const int64_t n = smaller(kLanes, s.V - w);
        Vec of_query{};
        for (int64_t v = 0; v < s.V; ++v) {
          const int64_t at = v * s.V + w;
          const Vec tangent = load_first(table + at, n);
          const Vec value = load_first(columns + r * pitch + at, n) * (1.0f - tangent * tangent);
          of_query += value;
          key[v] -= sum(value);
        }
        store_some(query + w, of_query, n);
      }
    }
  }
}

template <typename T>
void backward(const ChannelGraphConvBackward& p, int64_t begin, int64_t end, const ChannelGraphConvSums& sums) {
  const ChannelGraphConvShape& s = p.forward.shape;
  const int64_t plane = s.T * s.V, frame = s.V * kBlock, E = s.edges(), vectors = s.K * s.R * s.V;
  float* table = scratch(kTable, s.K * (s.R + 2) * table_pitch(s));
  float* topology = scratch(kTopology, E * kBlock);
  float* grad = scratch(kY, s.T * frame);
  float* of_topology = scratch(kTopologyGrad, E * kBlock);
  float* of_differences = scratch(kDifferenceGrad, s.K * E * padded(s.R));
  float* of_adjacency = scratch(kAdjacencyGrad, s.K * E * kBlock);
  int64_t widest = 0;  // of the blocks of a sample that are done here: the first, as only the last block is narrower
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / s.blocks, block = item % s.blocks, c = block * kBlock, n = smaller(kBlock, s.C - c);
    const int64_t width = round_up(n, kLanes);
    const bool first = item == begin || block == 0;
    if (first) fill_table(p.forward, b, table), widest = width;
    load_gradient<T>(p, b, c, n, grad);
    for (int64_t k = 0; k < s.K; ++k) {
      if (p.grad_x.data) build_topology(p.forward, table, k, block, width, topology);
      const Edges edges{topology, s.V, s.V, s.V, 1};
      float* x = scratch(kX, kFrames * frame);
      for (int64_t t = 0; t < s.T; t += kFrames) {
        const int64_t frames = smaller(kFrames, s.T - t);
        if (p.needs_topology) {
          load_block<T>({p.forward.x, s.K * s.C, plane, b, k * s.C + c, n}, t * s.V, frames * s.V, x);
          outer(x, grad + t * frame, frames, s.V, s.V, width, of_topology, t > 0);
        }
        if (p.grad_x.data) {
          apply(edges.transposed(), grad + t * frame, x, frames, width, false);
          store_block<T>(x, {p.grad_x, s.K * s.C, plane, b, k * s.C + c, n}, t * s.V, frames * s.V);
        }
      }
      if (p.needs_topology) reduce(p, table, of_topology, k, block, n, first, sums, of_adjacency, of_differences);
    }
    if (p.needs_topology && (item + 1 == end || block + 1 == s.blocks)) {
      const bool begins_here = item - block >= begin;
      finish_sample(s, table, of_adjacency, widest, of_differences, sums.adjacency,
                    begins_here ? sums.query + b * vectors : sums.head_query, begins_here ? sums.key + b * vectors : sums.head_key);
    }
  }
}

}  // namespace

void channel_graph_conv(const ChannelGraphConv& p, int64_t begin, int64_t end, double* stats) {
  p.dtype == Dtype::f32 ? forward<float>(p, begin, end, stats) : forward<bf16>(p, begin, end, stats);
}

void channel_graph_conv_backward(const ChannelGraphConvBackward& p, int64_t begin, int64_t end, const ChannelGraphConvSums& sums) {
  p.forward.dtype == Dtype::f32 ? backward<float>(p, begin, end, sums) : backward<bf16>(p, begin, end, sums);
}

}  // namespace skelops::SKELOPS_LEVEL
