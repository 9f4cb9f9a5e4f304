// y_w = sum_v (alpha softmax_v(score[v,w]) + static[v,w]) value_v per frame and head. Lanes run along frames: a tile holds
// the joints and channels of a few heads as vectors of kLanes frames, so that 25 joints and 24 channels waste no lane, the
// lookups by hop and by group are plain loads (their gradients plain additions), and the softmax needs no sum across lanes.
// Frames are far apart in memory: heads are loaded and stored together, since longer runs come faster.
// Tiles are (joint, channel of these heads) and (target, source).
#include "hop_attention.h"

#include "lane_product.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

// Heads from `head` on, of up to kLanes frames in a sample.
struct Place {
  int64_t b, t, frames, head;
  // The same of the key and of the value: in qkv, those of all heads follow the queries.
  Place key(const HopAttention& p) const { return {b, t, frames, head + p.heads}; }
  Place value(const HopAttention& p) const { return {b, t, frames, head + 2 * p.heads}; }
};

// joints x columns vectors of a map with that many joints; the lanes past the last frame are zero.
template <typename T>
void load_frames(const HopAttention& p, const MapData& map, int64_t joints, const Place& at, Vec* tile) {
  auto* out = reinterpret_cast<float*>(tile);
  if (map.channels_last) {
    const T* data = static_cast<const T*>(map.data) + (at.b * p.T + at.t) * joints * map.pitch + at.head * p.width;
    for (int64_t v = 0; v < joints; ++v)
      transpose_tile(data + v * map.pitch, joints * map.pitch, at.frames, p.columns(), out + v * p.columns() * kLanes, kLanes, true);
  } else {
    const T* data = static_cast<const T*>(map.data) + ((at.b * map.pitch + at.head * p.width) * p.T + at.t) * joints;
    for (int64_t c = 0; c < p.columns(); ++c)
      transpose_tile(data + c * p.T * joints, joints, at.frames, joints, out + c * kLanes, p.columns() * kLanes, true);
  }
}

template <typename T>
void store_frames(const HopAttention& p, const Vec* tile, const MapData& map, int64_t joints, const Place& at) {
  const auto* from = reinterpret_cast<const float*>(tile);
  if (map.channels_last) {
    T* data = static_cast<T*>(map.data) + (at.b * p.T + at.t) * joints * map.pitch + at.head * p.width;
    for (int64_t v = 0; v < joints; ++v)
      transpose_tile(from + v * p.columns() * kLanes, kLanes, p.columns(), at.frames, data + v * map.pitch, joints * map.pitch, false);
  } else {
    T* data = static_cast<T*>(map.data) + ((at.b * map.pitch + at.head * p.width) * p.T + at.t) * joints;
    for (int64_t c = 0; c < p.columns(); ++c)
      transpose_tile(from + c * kLanes, p.columns() * kLanes, joints, at.frames, data + c * p.T * joints, joints, false);
  }
}

// Calls body(place) for every vector of frames of the items.
template <typename Body>
void for_places(const HopAttention& p, int64_t begin, int64_t end, const Body& body) {
  for (int64_t item = begin; item < end; ++item) {
    const int64_t parts = p.heads / p.together, block = item / parts, first = block % p.blocks() * kItemFrames;
    const int64_t last = smaller(p.T, first + kItemFrames);
    for (int64_t t = first; t < last; t += kLanes) body(Place{block / p.blocks(), t, smaller(kLanes, last - t), item % parts * p.together});
  }
}

Vec* vectors(float*& memory, int64_t n) {
  auto* first = reinterpret_cast<Vec*>(memory);
  memory += n * kLanes;
  return first;
}

// A head in the tiles of those that were loaded together, `columns` vectors from one joint to the next.
struct Head {
  int64_t number;
  Vec *query, *key, *value, *group_key, *upstream;  // the key comes with that of its group
};

// The tiles of both passes, and what they do alike.
struct Tiles {
  const HopAttention& p;
  Vec *query, *key, *value, *group_key, *upstream;
  Vec *attention, *by_hop, *by_group;  // (V, V), (V, n_hops), (G,)

  Tiles(const HopAttention& p, float*& memory) : p(p) {
    query = vectors(memory, p.V * p.columns());
    key = vectors(memory, p.V * p.columns());
    value = vectors(memory, p.V * p.columns());
    upstream = vectors(memory, p.V * p.columns());
    group_key = vectors(memory, p.G * p.columns());
    attention = vectors(memory, p.V * p.V);
    by_hop = vectors(memory, p.V * p.n_hops);
    by_group = vectors(memory, p.G);
  }

  static int64_t floats(const HopAttention& p) { return kLanes * ((4 * p.V + p.G) * p.columns() + p.V * (p.V + p.n_hops) + p.G); }

  Head head(const Place& at, int64_t i) const {
    const int64_t column = i * p.width;
    return {at.head + i, query + column, key + column, value + column, group_key + column, upstream + column};
  }

  Matrix<const float> hop_key(const Head& head) const { return {p.hop_key + head.number * p.n_hops * p.width, p.width, 1}; }

  template <typename T>
  void load(const Place& at) {
    load_frames<T>(p, p.qkv, p.V, at, query);
    load_frames<T>(p, p.qkv, p.V, at.key(p), key);
    load_frames<T>(p, p.qkv, p.V, at.value(p), value);
    load_frames<T>(p, p.group_key, p.G, at, group_key);
    const int64_t columns = p.columns();
    for (int64_t v = 0; v < p.V; ++v)
      for (int64_t c = 0; c < columns; ++c) key[v * columns + c] += group_key[p.groups[v] * columns + c];
  }

  // attention = softmax over the sources
  void softmax(const Head& head) {
    const int64_t V = p.V, d = p.width, ld = p.columns();
    const float* bias = p.group_bias + head.number * d;
    for (int64_t g = 0; g < p.G; ++g) {
      Vec total{};
      for (int64_t c = 0; c < d; ++c) total += bias[c] * head.group_key[g * ld + c];
      by_group[g] = total;
    }
    lane_product<float>({head.query, ld, 1}, hop_key(head).transposed(), {by_hop, p.n_hops, 1}, V, p.n_hops, d);
    lane_product<Vec>({head.query, ld, 1}, {head.key, 1, ld}, {attention, V, 1}, V, V, d);
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
  void mix(const Head& head) {
    const float* fixed = p.static_part + head.number * p.V * p.V;
    for (int64_t w = 0; w < p.V; ++w)
      for (int64_t v = 0; v < p.V; ++v) attention[w * p.V + v] = p.alpha * attention[w * p.V + v] + fixed[v * p.V + w];
  }
};

template <typename T>
void forward(const HopAttention& p, const MapData& map, int64_t begin, int64_t end) {
  const int64_t V = p.V, d = p.width, ld = p.columns();
  float* memory = scratch(0, Tiles::floats(p));
  Tiles tiles(p, memory);
  for_places(p, begin, end, [&](const Place& at) {
    tiles.load<T>(at);
    for (int64_t i = 0; i < p.together; ++i) {
      const Head head = tiles.head(at, i);
      tiles.softmax(head);
      tiles.mix(head);
      // The result takes the place of the query.
      lane_product<Vec>({tiles.attention, V, 1}, {head.value, ld, 1}, {head.query, ld, 1}, V, d, V);
    }
    store_frames<T>(p, tiles.query, map, V, at);
  });
}

struct Backward {
  const HopAttention& p;
  const HopGradients& g;
  HopSums& sums;
  Tiles tiles;
  Vec *of_attention, *of_by_hop, *of_source, *of_group, *work;

  Backward(const HopAttention& p, const HopGradients& g, HopSums& sums, float*& memory) : p(p), g(g), sums(sums), tiles(p, memory) {
    of_attention = vectors(memory, p.V * p.V);
    of_by_hop = vectors(memory, p.V * p.n_hops);
    of_source = vectors(memory, p.V);
    of_group = vectors(memory, p.G);
    work = vectors(memory, p.n_hops * p.width);
  }

  static int64_t floats(const HopAttention& p) {
    return Tiles::floats(p) + kLanes * (p.V * (p.V + p.n_hops + 1) + p.G + p.n_hops * p.width);
  }

  // of_attention becomes that of the score, of_by_hop and of_source its sums; attention is mixed on the way.
  void of_softmax(const Head& head) {
    const int64_t V = p.V;
    const float* fixed = p.static_part + head.number * V * V;
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

  // What the frames give to the bias of the groups and, in the place of their keys, to these.
  void of_groups(const Head& head, const Vec* of_key) {
    const int64_t d = p.width, ld = p.columns();
    const float* bias = p.group_bias + head.number * d;
    for (int64_t g = 0; g < p.G; ++g) of_group[g] = Vec{};
    for (int64_t v = 0; v < p.V; ++v) of_group[p.groups[v]] += of_source[v];
    lane_product<Vec>({of_group, p.G, 1}, {head.group_key, ld, 1}, {work, d, 1}, 1, d, p.G);
    add_lane_sums(work, d, sums.group_bias + head.number * d);
    if (!g.group_key.data) return;
    for (int64_t g = 0; g < p.G; ++g)
      for (int64_t c = 0; c < d; ++c) head.group_key[g * ld + c] = of_group[g] * bias[c];
    for (int64_t v = 0; v < p.V; ++v)
      for (int64_t c = 0; c < d; ++c) head.group_key[p.groups[v] * ld + c] += of_key[v * ld + c];
  }

  // Gradients take the places of what is done with: that of the key the place of the upstream gradient, the others their own.
  void of_head(const Head& head) {
    const int64_t V = p.V, d = p.width, n = p.n_hops, ld = p.columns();
    tiles.softmax(head);
    lane_product<Vec>({head.upstream, ld, 1}, {head.value, 1, ld}, {of_attention, V, 1}, V, V, d);
    if (sums.static_part) add_lane_sums(of_attention, V * V, sums.static_part + head.number * V * V);
    of_softmax(head);
    if (g.qkv.data) lane_product<Vec>({tiles.attention, 1, V}, {head.upstream, ld, 1}, {head.value, ld, 1}, V, d, V);
    lane_product<Vec>({of_attention, 1, V}, {head.query, ld, 1}, {head.upstream, ld, 1}, V, d, V);
    lane_product<Vec>({of_by_hop, 1, n}, {head.query, ld, 1}, {work, d, 1}, n, d, V);
    add_lane_sums(work, n * d, sums.hop_key + head.number * n * d);
    of_groups(head, head.upstream);
    if (!g.qkv.data) return;
    lane_product<Vec>({of_attention, V, 1}, {head.key, ld, 1}, {head.query, ld, 1}, V, d, V);
    lane_product<float>({of_by_hop, n, 1}, tiles.hop_key(head), {head.query, ld, 1}, V, d, n, true);
  }

  template <typename T>
  void run(const Place& at) {
    tiles.load<T>(at);
    load_frames<T>(p, g.upstream, p.V, at, tiles.upstream);
    for (int64_t i = 0; i < p.together; ++i) of_head(tiles.head(at, i));
    if (g.qkv.data) {
      store_frames<T>(p, tiles.query, g.qkv, p.V, at);
      store_frames<T>(p, tiles.upstream, g.qkv, p.V, at.key(p));
      store_frames<T>(p, tiles.value, g.qkv, p.V, at.value(p));
    }
    if (g.group_key.data) store_frames<T>(p, tiles.group_key, g.group_key, p.G, at);
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
