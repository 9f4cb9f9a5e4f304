// y_w = sum_v (alpha softmax_v(score[v,w]) + static[v,w]) value_v per frame and head. Lanes run along frames: a tile holds
// the joints and channels of one head as vectors of kLanes frames, so that 25 joints and 24 channels waste no lane, the
// lookups by hop and by group are plain loads (their gradients plain additions), and the softmax needs no sum across lanes.
// Tiles are (joint, channel) and (target, source).
#include "hop_attention.h"

#include "lane_product.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

// A head of up to kLanes frames in a sample.
struct Place {
  int64_t b, t, frames, head;
  // The same of the key and of the value: in qkv, those of all heads follow the queries.
  Place key(const HopAttention& p) const { return {b, t, frames, head + p.heads}; }
  Place value(const HopAttention& p) const { return {b, t, frames, head + 2 * p.heads}; }
};

// joints x width vectors of a map with that many joints; the lanes past the last frame are zero.
template <typename T>
void load_frames(const HopAttention& p, const MapData& map, int64_t joints, const Place& at, Vec* tile) {
  auto* out = reinterpret_cast<float*>(tile);
  if (map.channels_last) {
    const T* data = static_cast<const T*>(map.data) + (at.b * p.T + at.t) * joints * map.pitch + at.head * p.width;
    for (int64_t v = 0; v < joints; ++v)
      transpose_tile(data + v * map.pitch, joints * map.pitch, at.frames, p.width, out + v * p.width * kLanes, kLanes, true);
  } else {
    const T* data = static_cast<const T*>(map.data) + ((at.b * map.pitch + at.head * p.width) * p.T + at.t) * joints;
    for (int64_t c = 0; c < p.width; ++c)
      transpose_tile(data + c * p.T * joints, joints, at.frames, joints, out + c * kLanes, p.width * kLanes, true);
  }
}

template <typename T>
void store_frames(const HopAttention& p, const Vec* tile, const MapData& map, int64_t joints, const Place& at) {
  const auto* from = reinterpret_cast<const float*>(tile);
  if (map.channels_last) {
    T* data = static_cast<T*>(map.data) + (at.b * p.T + at.t) * joints * map.pitch + at.head * p.width;
    for (int64_t v = 0; v < joints; ++v)
      transpose_tile(from + v * p.width * kLanes, kLanes, p.width, at.frames, data + v * map.pitch, joints * map.pitch, false);
  } else {
    T* data = static_cast<T*>(map.data) + ((at.b * map.pitch + at.head * p.width) * p.T + at.t) * joints;
    for (int64_t c = 0; c < p.width; ++c)
      transpose_tile(from + c * kLanes, p.width * kLanes, joints, at.frames, data + c * p.T * joints, joints, false);
  }
}

// Calls body(place) for every vector of frames of the items.
template <typename Body>
void for_places(const HopAttention& p, int64_t begin, int64_t end, const Body& body) {
  for (int64_t item = begin; item < end; ++item) {
    const int64_t block = item / p.heads, first = block % p.blocks() * kItemFrames;
    const int64_t last = smaller(p.T, first + kItemFrames);
    for (int64_t t = first; t < last; t += kLanes) body(Place{block / p.blocks(), t, smaller(kLanes, last - t), item % p.heads});
  }
}

Vec* vectors(float*& memory, int64_t n) {
  auto* first = reinterpret_cast<Vec*>(memory);
  memory += n * kLanes;
  return first;
}

// The tiles of both passes, and what they do alike.
struct Tiles {
  const HopAttention& p;
  Vec *query, *key, *value, *group_key;  // the key comes with that of its group
  Vec *attention, *by_hop, *by_group;    // (V, V), (V, n_hops), (G,)

  Tiles(const HopAttention& p, float*& memory) : p(p) {
    query = vectors(memory, p.V * p.width);
    key = vectors(memory, p.V * p.width);
    value = vectors(memory, p.V * p.width);
    group_key = vectors(memory, p.G * p.width);
    attention = vectors(memory, p.V * p.V);
    by_hop = vectors(memory, p.V * p.n_hops);
    by_group = vectors(memory, p.G);
  }

  static int64_t floats(const HopAttention& p) { return kLanes * ((3 * p.V + p.G) * p.width + p.V * (p.V + p.n_hops) + p.G); }

  Matrix<const float> hop_key(const Place& at) const { return {p.hop_key + at.head * p.n_hops * p.width, p.width, 1}; }

  template <typename T>
  void load(const Place& at) {
    load_frames<T>(p, p.qkv, p.V, at, query);
    load_frames<T>(p, p.qkv, p.V, at.key(p), key);
    load_frames<T>(p, p.qkv, p.V, at.value(p), value);
    load_frames<T>(p, p.group_key, p.G, at, group_key);
    for (int64_t v = 0; v < p.V; ++v)
      for (int64_t c = 0; c < p.width; ++c) key[v * p.width + c] += group_key[p.groups[v] * p.width + c];
  }

  // attention = softmax over the sources
  void softmax(const Place& at) {
    const int64_t V = p.V, d = p.width;
    const float* bias = p.group_bias + at.head * d;
    for (int64_t g = 0; g < p.G; ++g) {
      Vec total{};
      for (int64_t c = 0; c < d; ++c) total += bias[c] * group_key[g * d + c];
      by_group[g] = total;
    }
    lane_product<float>({query, d, 1}, hop_key(at).transposed(), {by_hop, p.n_hops, 1}, V, p.n_hops, d);
    lane_product<Vec>({query, d, 1}, {key, 1, d}, {attention, V, 1}, V, V, d);
    for (int64_t w = 0; w < V; ++w) {
      Vec* row = attention + w * V;
      const Vec* looked_up = by_hop + w * p.n_hops;
      Vec most = splat(-__builtin_inff());
      for (int64_t v = 0; v < V; ++v) {
        row[v] = p.scale * (row[v] + looked_up[p.hops[w * V + v]] + by_group[p.groups[v]]);
        most = maximum(row[v], most);
      }
      Vec total{};
      for (int64_t v = 0; v < V; ++v) total += row[v] = exp(row[v] - most);
      const Vec inverse = 1.0f / total;
      for (int64_t v = 0; v < V; ++v) row[v] *= inverse;
    }
  }

  // attention = alpha softmax + static
  void mix(const Place& at) {
    const float* fixed = p.static_part + at.head * p.V * p.V;
    for (int64_t w = 0; w < p.V; ++w)
      for (int64_t v = 0; v < p.V; ++v) attention[w * p.V + v] = p.alpha * attention[w * p.V + v] + fixed[v * p.V + w];
  }
};

template <typename T>
void forward(const HopAttention& p, const MapData& map, int64_t begin, int64_t end) {
  const int64_t V = p.V, d = p.width;
  float* memory = scratch(0, Tiles::floats(p) + kLanes * V * d);
  Tiles tiles(p, memory);
  Vec* y = vectors(memory, V * d);
  for_places(p, begin, end, [&](const Place& at) {
    tiles.load<T>(at);
    tiles.softmax(at);
    tiles.mix(at);
    lane_product<Vec>({tiles.attention, V, 1}, {tiles.value, d, 1}, {y, d, 1}, V, d, V);
    store_frames<T>(p, y, map, V, at);
  });
}

struct Backward {
  const HopAttention& p;
  const HopGradients& g;
  HopSums& sums;
  Tiles tiles;
  Vec *upstream, *of_attention, *of_by_hop, *of_source, *of_group, *out;

  Backward(const HopAttention& p, const HopGradients& g, HopSums& sums, float*& memory) : p(p), g(g), sums(sums), tiles(p, memory) {
    upstream = vectors(memory, p.V * p.width);
    of_attention = vectors(memory, p.V * p.V);
    of_by_hop = vectors(memory, p.V * p.n_hops);
    of_source = vectors(memory, p.V);
    of_group = vectors(memory, p.G);
    out = vectors(memory, larger(larger(p.V, p.n_hops), p.G) * p.width);
  }

  static int64_t floats(const HopAttention& p) {
    const int64_t own = p.V * (p.width + p.V + p.n_hops + 1) + p.G + larger(larger(p.V, p.n_hops), p.G) * p.width;
    return Tiles::floats(p) + kLanes * own;
  }

  // of_attention becomes that of the score, of_by_hop and of_source its sums; attention is mixed on the way.
  void of_softmax(const Place& at) {
    const int64_t V = p.V;
    const float* fixed = p.static_part + at.head * V * V;
    const float factor = p.scale * p.alpha;
    for (int64_t i = 0; i < V * p.n_hops; ++i) of_by_hop[i] = Vec{};
    for (int64_t v = 0; v < V; ++v) of_source[v] = Vec{};
    typedef double WideVec __attribute__((vector_size(8 * kLanes)));
    WideVec of_alpha{};  // in float, it would be far less exact than a sum in pairs
    for (int64_t w = 0; w < V; ++w) {
      Vec *row = tiles.attention + w * V, *of_row = of_attention + w * V;
      Vec mean{};
      for (int64_t v = 0; v < V; ++v) mean += row[v] * of_row[v];
      of_alpha += __builtin_convertvector(mean, WideVec);
      for (int64_t v = 0; v < V; ++v) {
        const Vec of_score = factor * row[v] * (of_row[v] - mean);
        row[v] = p.alpha * row[v] + fixed[v * V + w];
        of_row[v] = of_score;
        of_by_hop[w * p.n_hops + p.hops[w * V + v]] += of_score;
        of_source[v] += of_score;
      }
    }
    for (int i = 0; i < kLanes; ++i) sums.alpha += of_alpha[i];
  }

  // What the frames give to the key and the bias of the groups.
  template <typename T>
  void of_groups(const Place& at, const Vec* of_key) {
    const int64_t d = p.width;
    const float* bias = p.group_bias + at.head * d;
    for (int64_t g = 0; g < p.G; ++g) of_group[g] = Vec{};
    for (int64_t v = 0; v < p.V; ++v) of_group[p.groups[v]] += of_source[v];
    lane_product<Vec>({of_group, p.G, 1}, {tiles.group_key, d, 1}, {upstream, d, 1}, 1, d, p.G);
    add_lane_sums(upstream, d, sums.group_bias + at.head * d);
    if (!g.group_key.data) return;
    // The keys of the groups are done with.
    for (int64_t g = 0; g < p.G; ++g)
      for (int64_t c = 0; c < d; ++c) tiles.group_key[g * d + c] = of_group[g] * bias[c];
    for (int64_t v = 0; v < p.V; ++v)
      for (int64_t c = 0; c < d; ++c) tiles.group_key[p.groups[v] * d + c] += of_key[v * d + c];
    store_frames<T>(p, tiles.group_key, g.group_key, p.G, at);
  }

  template <typename T>
  void run(const Place& at) {
    const int64_t V = p.V, d = p.width, n = p.n_hops;
    tiles.load<T>(at);
    load_frames<T>(p, g.upstream, V, at, upstream);
    tiles.softmax(at);
    lane_product<Vec>({upstream, d, 1}, {tiles.value, 1, d}, {of_attention, V, 1}, V, V, d);
    if (sums.static_part) add_lane_sums(of_attention, V * V, sums.static_part + at.head * V * V);
    of_softmax(at);
    if (g.qkv.data) {
      lane_product<Vec>({tiles.attention, 1, V}, {upstream, d, 1}, {out, d, 1}, V, d, V);
      store_frames<T>(p, out, g.qkv, V, at.value(p));
      lane_product<Vec>({of_attention, V, 1}, {tiles.key, d, 1}, {out, d, 1}, V, d, V);
      lane_product<float>({of_by_hop, n, 1}, tiles.hop_key(at), {out, d, 1}, V, d, n, true);
      store_frames<T>(p, out, g.qkv, V, at);
    }
    lane_product<Vec>({of_by_hop, 1, n}, {tiles.query, d, 1}, {out, d, 1}, n, d, V);
    add_lane_sums(out, n * d, sums.hop_key + at.head * n * d);
    lane_product<Vec>({of_attention, 1, V}, {tiles.query, d, 1}, {out, d, 1}, V, d, V);
    if (g.qkv.data) store_frames<T>(p, out, g.qkv, V, at.key(p));
    of_groups<T>(at, out);
  }
};

template <typename T>
void backward(const HopAttention& p, const HopGradients& g, int64_t begin, int64_t end, HopSums& sums) {
  float* memory = scratch(0, Backward::floats(p));
  Backward pass(p, g, sums, memory);
  for_places(p, begin, end, [&](const Place& at) { pass.run<T>(at); });
}

}  // namespace

void hop_attention(const HopAttention& p, const MapData& y, int64_t begin, int64_t end) {
  p.dtype == Dtype::f32 ? forward<float>(p, y, begin, end) : forward<bf16>(p, y, begin, end);
}

void hop_attention_backward(const HopAttention& p, const HopGradients& g, int64_t begin, int64_t end, HopSums& sums) {
  p.dtype == Dtype::f32 ? backward<float>(p, g, begin, end, sums) : backward<bf16>(p, g, begin, end, sums);
}

}  // namespace skelops::SKELOPS_LEVEL
