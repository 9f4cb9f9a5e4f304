// y[b,(k),c,t,w] = sum_v x[b,(k),c,t,v] adjacency[(b),k,(c),(t),v,w], summed over k or not; or the same along frames.
//
// Maps are worked on as rows (t, v) of a block of channels along the vector lanes. An adjacency that the channels share is a
// matrix, which multiplies the rows of a frame (of a joint, along frames); one per channel is a tile with channels along the
// lanes, too, transposed on the way in. The gradient of the adjacency is the product of the rows of x and of grad_y. Products
// with a matrix take bf16 pairs where the CPU multiplies these (Tile, see operands.h). Where rows of joints of contiguous maps share an
// adjacency, aggregate_rows.cpp takes them.
#include "aggregate.h"

#include "channel_tile.h"
#include "gemm.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

enum Slot { kEdges, kX, kY, kTransposed, kSums, kPairs };

constexpr int64_t kFrames = 8;  // frames in work at a time where nothing asks for all

// How rows of x and y lie apart: from one product to the next, and from one source or target to the next.
struct Rows {
  int64_t products, x_product, x_source, y_product, y_target;
};

Rows rows_of(const AggregateShape& s, int64_t frames) {
  if (s.frames) return {s.V, 1, s.V, 1, s.V};
  return {frames, s.V, 1, s.targets, 1};
}

template <typename T>
const T* edges_at(const Aggregate& p, int64_t b, int64_t k, int64_t c, int64_t t) {
  const AggregateShape& s = p.shape;
  const EdgeStrides& e = p.strides;
  return static_cast<const T*>(p.adjacency) + (s.per_sample ? b * e.b : 0) + k * e.k + (s.per_channel ? c * e.c : 0) + (s.per_frame ? t * e.t : 0);
}

// A matrix (targets, sources) of the adjacency by its strides, as operand of products; what has to be converted is left in
// memory (values), and converted again where that is no longer it (fresh).
template <typename Tile>
struct Matrix {
  const Tile* data;
  int64_t target, source;
};

template <typename T>
Matrix<float> matrix_of(const AggregateShape& s, const EdgeStrides& e, const T* edges, float* values, bool fresh) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return {edges, e.w, e.v};
  } else {
    for (int64_t i = 0; fresh && i < s.sources * s.targets; ++i) values[i] = to_float(edges[i]);
    return {values, e.w, e.v};
  }
}

// Sources side by side in pairs.
Matrix<bf16> matrix_of(const AggregateShape& s, const EdgeStrides& e, const bf16* edges, bf16* values, bool fresh) {
  const int64_t ld = round_up(s.sources, 2);
  for (int64_t w = 0; fresh && w < s.targets; ++w) {
    values[w * ld + ld - 1] = {};
    for (int64_t v = 0; v < s.sources; ++v) values[w * ld + v] = edges[v * e.v + w * e.w];
  }
  return {values, ld, 2};
}

// The rows of x as products take them: how far apart products are, and the steps of a sum over sources.
template <typename Tile>
struct Sources {
  const Tile* data;
  int64_t product, step;
};

Sources<float> sources_of(const AggregateShape& s, const float* x, int64_t frames, int64_t) {
  const Rows r = rows_of(s, frames);
  return {x, r.x_product * kBlock, r.x_source * kBlock};
}

Sources<bf16> sources_of(const AggregateShape& s, const bf16* x, int64_t frames, int64_t width) {
  const Rows r = rows_of(s, frames);
  const int64_t steps = (s.sources + 1) / 2, next = r.x_source * kBlock;
  bf16* pairs = scratch_of<bf16>(kPairs, r.products * steps * 2 * kBlock);
  for (int64_t i = 0; i < r.products; ++i)
    pair_rows(x + i * r.x_product * kBlock, 2 * next, next, steps, s.sources / 2, width, pairs + i * steps * 2 * kBlock, 2 * kBlock);
  return {pairs, steps * 2 * kBlock, 2 * kBlock};
}

// Frames t .. t + frames of subset k: y (+)= the contraction of x.
template <typename T, typename Tile>
void contract(const Aggregate& p, int64_t b, int64_t k, int64_t c, int64_t n, int64_t t, int64_t frames, const Sources<Tile>& x, float* y, bool accumulate) {
  const AggregateShape& s = p.shape;
  const EdgeStrides& e = p.strides;
  const int64_t width = round_up(n, kLanes), together = s.per_frame ? 1 : frames, size = s.targets * round_up(s.sources, 2);
  for (int64_t f = 0; f < frames; f += together, y += s.targets * kBlock) {
    const T* edges = edges_at<T>(p, b, k, c, t + f);
    const Tile* from = x.data + f * x.product;
    if constexpr (sizeof(Tile) == sizeof(float))
      if (s.per_channel) {
        float* tile = scratch(kEdges, s.sources * s.targets * kBlock);
        transpose_tile(edges, e.c, n, s.sources * s.targets, tile, kBlock, true);
        apply({tile, s.sources, s.targets, e.v, e.w}, from, y, together, width, accumulate);
        continue;
      }
    const Matrix<Tile> matrix = matrix_of(s, e, edges, scratch_of<Tile>(kEdges, s.K * size) + k * size, t == 0 || s.per_frame);
    const Rows r = rows_of(s, together);
    for (int64_t i = 0; i < r.products; ++i)
      gemm(matrix.data, matrix.target, matrix.source, from + i * x.product, x.step, y + i * r.y_product * kBlock, r.y_target * kBlock, s.targets, width,
           steps_of<Tile>(s.sources), accumulate);
  }
}

// Frames taken together: an adjacency per channel, and one along frames, want all.
int64_t frames_at_once(const AggregateShape& s) { return s.per_channel || s.frames ? s.T : smaller(s.T, kFrames); }

template <typename T, typename Tile>
void forward(const Aggregate& p, int64_t begin, int64_t end) {
  const AggregateShape& s = p.shape;
  const int64_t blocks = blocks_of(s.C), step = frames_at_once(s);
  Tile* x = scratch_of<Tile>(kX, step * s.V * kBlock);
  float* y = scratch(kY, (s.frames ? s.targets * s.V : step * s.targets) * kBlock);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / blocks, c = item % blocks * kBlock, n = smaller(kBlock, s.C - c);
    for (int64_t t = 0; t < s.T; t += step) {
      const int64_t frames = smaller(step, s.T - t);
      Sources<Tile> sources{};
      for (int64_t k = 0; k < s.K; ++k) {
        if (k == 0 || s.per_subset) {
          load_block<T>({p.x, s.x_channels(), s.x_rows(), b, (s.per_subset ? k * s.C : 0) + c, n}, t * s.V, frames * s.V, x);
          sources = sources_of(s, x, frames, round_up(n, kLanes));
        }
        contract<T>(p, b, k, c, n, t, frames, sources, y, s.sum_subsets && k > 0);
        if (s.sum_subsets && k + 1 < s.K) continue;
        const BlockOfMap to{p.y, s.y_channels(), s.y_rows(), b, (s.sum_subsets ? 0 : k * s.C) + c, n};
        s.frames ? store_block<T>(y, to, 0, s.y_rows()) : store_block<T>(y, to, t * s.targets, frames * s.targets);
      }
    }
  }
}

// sums (sources, padded(targets)) += the products of rows of x and g, of n channels: one product, a sum over all of them.
template <typename Tile>
void add_products(const AggregateShape& s, const Tile* x, const Tile* g, int64_t frames, int64_t n, float* sums) {
  constexpr int64_t terms = kTermsPerStep<Tile>;
  const Rows r = rows_of(s, frames);
  const int64_t pitch = padded(s.targets), steps = steps_of<Tile>(n), size = kBlock / terms * pitch;
  float* transposed = scratch(kTransposed, r.products * size);
  // A float, or a pair of channels as one.
  for (int64_t i = 0; i < r.products; ++i)
    transpose_tile(reinterpret_cast<const float*>(g + i * r.y_product * kBlock), r.y_target * kBlock / terms, s.targets, steps, transposed + i * size, pitch, true);
  gemm<Tile, float>({x, r.x_source * kBlock, terms, r.x_product * kBlock, reinterpret_cast<const Tile*>(transposed), terms * pitch, terms * size, sums, pitch,
                     sums, pitch, steps, r.products},
                    s.sources, round_up(s.targets, kLanes));
}

struct Gradient {
  void* data;
  double* sums;
};

// Subset k of sample b of an adjacency that the channels share.
template <typename T, typename Tile>
void matrix_gradient(const Aggregate& p, int64_t b, int64_t k, const Gradient& grad) {
  const AggregateShape& s = p.shape;
  const int64_t step = s.per_frame ? 1 : frames_at_once(s), pitch = padded(s.targets), size = s.sources * s.targets;
  Tile* x = scratch_of<Tile>(kX, step * s.V * kBlock);
  Tile* g = scratch_of<Tile>(kY, (s.frames ? s.targets * s.V : step * s.targets) * kBlock);
  float* sums = scratch(kSums, s.sources * pitch);
  for (int64_t t = 0; t < s.T; t += step) {
    const int64_t frames = smaller(step, s.T - t);
    if (t == 0 || s.per_frame)
      for (int64_t i = 0; i < s.sources * pitch; ++i) sums[i] = 0;
    for (int64_t c = 0; c < s.C; c += kBlock) {
      const int64_t n = smaller(kBlock, s.C - c);
      load_block<T>({p.x, s.x_channels(), s.x_rows(), b, (s.per_subset ? k * s.C : 0) + c, n}, t * s.V, frames * s.V, x);
      const BlockOfMap from{p.y, s.y_channels(), s.y_rows(), b, (s.sum_subsets ? 0 : k * s.C) + c, n};
      s.frames ? load_block<T>(from, 0, s.y_rows(), g) : load_block<T>(from, t * s.targets, frames * s.targets, g);
      add_products(s, x, g, frames, n, sums);
    }
    if (!s.per_frame && t + step < s.T) continue;
    for (int64_t v = 0; v < s.sources; ++v)
      for (int64_t w = 0; w < s.targets; ++w) {
        const float value = sums[v * pitch + w];
        const int64_t at = v * s.targets + w;
        if (grad.sums)
          grad.sums[k * size + at] += value;
        else
          put(static_cast<T*>(grad.data) + ((b * s.K + k) * (s.per_frame ? s.T : 1) + (s.per_frame ? t : 0)) * size + at, value);
      }
  }
}

// Subset k of sample b of an adjacency per channel.
template <typename T>
void tile_gradient(const Aggregate& p, int64_t b, int64_t k, const Gradient& grad) {
  const AggregateShape& s = p.shape;
  const int64_t size = s.sources * s.targets, of_frames = s.per_frame ? s.T : 1, step = s.per_frame ? 1 : smaller(s.T, kFrames);
  float* x = scratch(kX, step * s.V * kBlock);
  float* g = scratch(kY, step * s.targets * kBlock);
  float* sums = scratch(kSums, size * kBlock);
  for (int64_t c = 0; c < s.C; c += kBlock) {
    const int64_t n = smaller(kBlock, s.C - c);
    for (int64_t t = 0; t < s.T; t += step) {
      const int64_t frames = smaller(step, s.T - t);
      load_block<T>({p.x, s.x_channels(), s.x_rows(), b, (s.per_subset ? k * s.C : 0) + c, n}, t * s.V, frames * s.V, x);
      load_block<T>({p.y, s.y_channels(), s.y_rows(), b, (s.sum_subsets ? 0 : k * s.C) + c, n}, t * s.targets, frames * s.targets, g);
      outer(x, g, frames, s.sources, s.targets, round_up(n, kLanes), sums, !s.per_frame && t > 0);
      if (!s.per_frame && t + step < s.T) continue;
      T* to = static_cast<T*>(grad.data) + (((b * s.K + k) * s.C + c) * of_frames + (s.per_frame ? t : 0)) * size;
      transpose_tile(sums, kBlock, size, n, to, of_frames * size, false);
    }
  }
}

template <typename T, typename Tile>
void backward(const Aggregate& p, int64_t begin, int64_t end, const Gradient& grad) {
  for (int64_t item = begin; item < end; ++item)
    (p.shape.per_channel ? tile_gradient<T> : matrix_gradient<T, Tile>)(p, item / p.shape.K, item % p.shape.K, grad);
}

}  // namespace

void aggregate(const Aggregate& p, int64_t begin, int64_t end) {
  const auto kernel = p.dtype == Dtype::f32 ? forward<float, float> : p.shape.per_channel ? forward<bf16, float> : forward<bf16, Bf16Operand>;
  kernel(p, begin, end);
}

void aggregate_backward_adjacency(const Aggregate& p, int64_t begin, int64_t end, void* grad, double* sums) {
  (p.dtype == Dtype::f32 ? backward<float, float> : backward<bf16, Bf16Operand>)(p, begin, end, {grad, sums});
}

}  // namespace skelops::SKELOPS_LEVEL
