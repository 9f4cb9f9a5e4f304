// A[v,w] = alpha activation(scale sum_(c,t) source_v . target_w) + static[v,w] per head of a sample: dot products between rows
// of channels, some frames at a time; backward, two small matrix products per frame. With frames for positions, the same rows
// are visited in another order.
#include "joint_attention.h"

#include "dots.h"
#include "gemm.h"
#include "tiles.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

enum Slot { kSource, kTarget, kScores, kResult };

constexpr int64_t kTileFloats = 32 * 1024;  // of one map: two of them leave room in a 1 MB L2 cache

// One head of a sample, as a map of its own.
template <typename T>
MapData head_of(const JointAttention& p, const MapData& map, int64_t item) {
  const int64_t plane = p.T * p.V, b = item / p.heads, s = item % p.heads;
  const int64_t offset = b * plane * map.pitch + s * p.width * (map.channels_last ? 1 : plane);
  return {static_cast<T*>(map.data) + offset, map.channels_last, map.pitch};
}

// Calls body(first row, frames) for tiles of frames; all frames are one tile where they attend to each other.
template <typename Body>
void for_tiles(const JointAttention& p, const Body& body) {
  const int64_t most = p.frames ? p.T : larger(1, kTileFloats / (p.V * padded(p.width)));
  for (int64_t t = 0; t < p.T; t += most) body(t * p.V, smaller(most, p.T - t));
}

// The rows of a tile whose rows (t, v) lie ld apart.
template <typename Tile>
Rows<Tile> rows_of(const JointAttention& p, const Tile* tile, int64_t ld) {
  if (p.frames) return {tile, p.V * ld, ld};
  return {tile, ld, p.V * ld};
}

// Calls body(first, number) for n elements, a vector at a time.
template <typename Body>
void for_vectors(int64_t n, const Body& body) {
  for (int64_t i = 0; i < n; i += kLanes) body(i, smaller(kLanes, n - i));
}

void activate(const JointAttention& p, float* scores) {
  const int64_t P = p.positions();
  if (!p.softmax) {
    for_vectors(P * P, [&](int64_t i, int64_t n) { store_some(scores + i, tanh(p.scale * load_some(scores + i, n)), n); });
    return;
  }
  for_vectors(P, [&](int64_t w, int64_t n) {
    Vec most = splat(-__builtin_inff()), total{};
    for (int64_t v = 0; v < P; ++v) most = maximum(p.scale * load_some(scores + v * P + w, n), most);
    for (int64_t v = 0; v < P; ++v) {
      const Vec value = exp(p.scale * load_some(scores + v * P + w, n) - most);
      total += value;
      store_some(scores + v * P + w, value, n);
    }
    const Vec inverse = 1.0f / total;
    for (int64_t v = 0; v < P; ++v) store_some(scores + v * P + w, inverse * load_some(scores + v * P + w, n), n);
  });
}

template <typename T, typename Tile>
void forward(const JointAttention& p, const JointAttentionOutput& out, int64_t begin, int64_t end) {
  const int64_t pairs = p.pairs(), plane = p.T * p.V, ld = padded(p.width);
  float* scores = scratch(kScores, pairs);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t s = item % p.heads;
    const MapData source = head_of<T>(p, p.source, item), target = head_of<T>(p, p.target, item);
    for (int64_t i = 0; i < pairs; ++i) scores[i] = 0;
    for_tiles(p, [&](int64_t row, int64_t frames) {
      const Tile* x = load_tile<T, Tile>(source, p.width, plane, 0, row, frames * p.V, kSource);
      const Tile* h = load_tile<T, Tile>(target, p.width, plane, 0, row, frames * p.V, kTarget);
      add_dots(rows_of(p, x, ld), rows_of(p, h, ld), p.positions(), p.frames ? p.V : frames, ld, scores);
    });
    activate(p, scores);
    T* attention = static_cast<T*>(out.attention) + item * pairs;
    T* active = out.active ? static_cast<T*>(out.active) + item * pairs : nullptr;
    const float alpha = p.alpha ? p.alpha[s] : 1.0f;
    const float* fixed = out.static_part ? out.static_part + s * pairs : nullptr;
    for_vectors(pairs, [&](int64_t i, int64_t n) {
      const Vec value = load_some(scores + i, n);
      if (active) store_some(active + i, value, n);
      store_some(attention + i, fixed ? alpha * value + load_some(fixed + i, n) : alpha * value, n);
    });
  }
}

// The gradient of the score, with what it gives to alpha and the static part.
template <typename T>
void of_score(const JointAttention& p, const T* upstream, const T* active, float alpha, float* scores, float* of_static, double* of_alpha) {
  const int64_t P = p.positions();
  const float factor = alpha * p.scale;
  double total = 0;
  for (int64_t v = 0; v < P; ++v) {
    Vec products{};
    for_vectors(P, [&](int64_t w, int64_t n) {
      const int64_t i = v * P + w;
      const Vec grad = load_some(upstream + i, n), value = load_some(active + i, n);
      products += grad * value;
      if (of_static) store_some(of_static + i, load_some(of_static + i, n) + grad, n);
      if (!p.softmax) store_some(scores + i, factor * grad * (1.0f - value * value), n);
    });
    total += sum(products);
  }
  *of_alpha += total;
  if (!p.softmax) return;
  for_vectors(P, [&](int64_t w, int64_t n) {
    Vec mean{};
    for (int64_t v = 0; v < P; ++v) mean += load_some(active + v * P + w, n) * load_some(upstream + v * P + w, n);
    for (int64_t v = 0; v < P; ++v) {
      const Vec value = load_some(active + v * P + w, n), grad = load_some(upstream + v * P + w, n);
      store_some(scores + v * P + w, factor * value * (grad - mean), n);
    }
  });
}

// grad[v,:] = sum_w scores[v,w] other[w,:] at every step; scores by the distances between their rows and columns.
template <typename T>
void spread(const JointAttention& p, const float* scores, int64_t row_stride, int64_t column_stride, const MapData& other, const MapData& grad) {
  const int64_t plane = p.T * p.V, width = padded(p.width), P = p.positions();
  for_tiles(p, [&](int64_t row, int64_t frames) {
    int64_t ld;
    const float* x = load_tile<T>(other, p.width, plane, 0, row, frames * p.V, kSource, &ld);
    float* out = scratch(kResult, frames * p.V * width);
    const auto from = rows_of(p, x, ld), to = rows_of<float>(p, out, width);
    for (int64_t step = 0; step < (p.frames ? p.V : frames); ++step)
      gemm(scores, row_stride, column_stride, from.data + step * from.step, from.position, out + step * to.step, to.position, P, width, P, false);
    store_tile<T>(out, grad, p.width, plane, 0, row, frames * p.V);
  });
}

template <typename T>
void backward(const JointAttention& p, const JointAttentionGradients& g, int64_t begin, int64_t end, const JointAttentionSums& sums) {
  const int64_t P = p.positions(), pairs = p.pairs();
  float* scores = scratch(kScores, pairs);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t s = item % p.heads;
    of_score(p, static_cast<const T*>(g.upstream) + item * pairs, static_cast<const T*>(g.active) + item * pairs, p.alpha ? p.alpha[s] : 1.0f,
             scores, sums.static_part ? sums.static_part + s * pairs : nullptr, sums.alpha + s);
    if (g.source.data) spread<T>(p, scores, P, 1, head_of<T>(p, p.target, item), head_of<T>(p, g.source, item));
    if (g.target.data) spread<T>(p, scores, 1, P, head_of<T>(p, p.source, item), head_of<T>(p, g.target, item));
  }
}

}  // namespace

void joint_attention(const JointAttention& p, const JointAttentionOutput& out, int64_t begin, int64_t end) {
  p.dtype == Dtype::f32 ? forward<float, float>(p, out, begin, end) : forward<bf16, Bf16Operand>(p, out, begin, end);
}

void joint_attention_backward(const JointAttention& p, const JointAttentionGradients& g, int64_t begin, int64_t end, const JointAttentionSums& sums) {
  p.dtype == Dtype::f32 ? backward<float>(p, g, begin, end, sums) : backward<bf16>(p, g, begin, end, sums);
}

}  // namespace skelops::SKELOPS_LEVEL
