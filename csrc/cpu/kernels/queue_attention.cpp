// Attention whose keys are its values, the queue. Lanes run along the rows of the query: logits and sums then lie as
// (slot, row) and (dimension, row), the softmax needs no sum across lanes, and the queue enters both matrix products by
// scalars, so that either layout of it is read without a transposition.
#include "queue_attention.h"

#include "gemm.h"
#include "map.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

constexpr int64_t kTile = 96;     // slots at a time: a multiple of the rows of a gemm block and of kLanes
constexpr int kWidest = kLanes == 16 ? 4 : 3;  // vectors in a panel of rows, as wide as a gemm block
constexpr float kLog2 = 0.693147181f;
constexpr float kLowest = -3.0e38f;  // below every logit, and finite: an infinite one less itself would be NaN

// 2^x for x <= 0 to one unit in the last place, and 1 for 0; -inf gives 2^-126, which is nothing beside the largest term, 1.
inline Vec exp2_negative(Vec x) {
  const Vec clamped = x < -126.0f ? splat(-126.0f) : x;
  const Vec shifted = clamped + 12582912.0f;  // 1.5 * 2^23: the low bits of the sum are x rounded to an integer
  const Vec r = clamped - (shifted - 12582912.0f);
  Vec p = splat(1.534581205e-4f);
  p = p * r + 1.339993127e-3f;
  p = p * r + 9.618488957e-3f;
  p = p * r + 5.550328777e-2f;
  p = p * r + 2.402264689e-1f;
  p = p * r + 6.931472057e-1f;
  p = p * r + 1.0f;
  return p * reinterpret_cast<Vec>((reinterpret_cast<IntVec>(shifted) << 23) + 0x3f800000);
}

inline float exp2_negative(float x) { return exp2_negative(splat(x))[0]; }

inline bool any(IntVec mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(mask));
#else
  int32_t all = 0;
  for (int i = 0; i < kLanes; ++i) all |= mask[i];
  return all;
#endif
}

// Row block b of all is rows begin..end, cut into panels of nearly equal width.
struct Rows {
  int64_t begin, end, panels, vectors;
  Rows(int64_t N, int64_t blocks, int64_t block) {
    const int64_t all = (N + kLanes - 1) / kLanes, size = (all + blocks - 1) / blocks;
    begin = smaller(N, block * size * kLanes);
    end = smaller(N, begin + size * kLanes);
    vectors = (end - begin + kLanes - 1) / kLanes;
    panels = (vectors + kWidest - 1) / kWidest;
  }
  int64_t first(int64_t panel) const { return (vectors * panel + panels - 1) / panels; }  // its first vector
};

// Panel after panel, each (D, width): rows of x with lanes along the rows.
template <typename T>
void pack_rows(const T* x, const Rows& rows, int64_t D, float* packed) {
  for (int64_t panel = 0; panel < rows.panels; ++panel) {
    const int64_t v0 = rows.first(panel), width = (rows.first(panel + 1) - v0) * kLanes;
    const int64_t n0 = rows.begin + v0 * kLanes, n = smaller(width, rows.end - n0);
    transpose_tile(x + n0 * D, D, n, D, packed + v0 * kLanes * D, width, true);
  }
}

// A tile of the queue in float32, in the orientation in which it lies; slot j, dimension d is data[j * slot + d * dim].
struct Tile {
  float* data;
  int64_t slot, dim;
};

template <typename T>
void copy_rows(const T* from, int64_t stride, int64_t rows, int64_t columns, float* to, int64_t ld) {
  for (int64_t r = 0; r < rows; ++r, from += stride, to += ld) {
    int64_t c = 0;
    for (; c + kLanes <= columns; c += kLanes) store(to + c, load(from + c));
    if (c < columns) store(to + c, load_first(from + c, columns - c));
  }
}

template <typename T>
Tile load_tile(const QueuePass& p, int64_t j0, int64_t slots, float* data) {
  const T* from = static_cast<const T*>(p.queue) + j0 * p.slot_stride;
  if (p.dim_stride == 1) {
    copy_rows(from, p.slot_stride, slots, p.D, data, odd_pitch(p.D));
    return {data, odd_pitch(p.D), 1};
  }
  if (p.slot_stride == 1) {
    copy_rows(from, p.dim_stride, p.D, slots, data, odd_pitch(slots));
    return {data, 1, odd_pitch(slots)};
  }
  for (int64_t j = 0; j < slots; ++j)
    for (int64_t d = 0; d < p.D; ++d) data[j * odd_pitch(p.D) + d] = to_float(from[j * p.slot_stride + d * p.dim_stride]);
  return {data, odd_pitch(p.D), 1};
}

// C (M, N) = A (M, D) B (D, N), the sum over D in pieces: less rounding, and panels of B that fit the first cache.
void multiply(const float* a, int64_t am, int64_t ad, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t M, int64_t N, int64_t D) {
  constexpr int64_t piece = 128;
  for (int64_t d = 0; d < D; d += piece)
    gemm(a + d * ad, am, ad, b + d * ldb, ldb, c, ldc, M, N, smaller(piece, D - d), d > 0);
}

// What a block of rows has gathered so far, a vector per kLanes rows.
struct State {
  float *most, *total, *factor, *threshold;  // the factor over log 2: exp is 2^x here
  int32_t* above;
};

// Products (slots, W vectors) become weights 2^(factor (product - most)); sums (D, W vectors) follow a larger maximum.
template <int W>
void softmax(float* products, int64_t slots, const State& state, bool count, float* sums, int64_t D) {
  constexpr int64_t width = W * kLanes;
  Vec before[W], most[W], total[W], factor[W];
  for (int w = 0; w < W; ++w) most[w] = before[w] = load(state.most + w * kLanes), factor[w] = load(state.factor + w * kLanes);
  if (count) {
    Vec threshold[W];
    IntVec above[W] = {};
    for (int w = 0; w < W; ++w) threshold[w] = load(state.threshold + w * kLanes);
    for (int64_t j = 0; j < slots; ++j)
      for (int w = 0; w < W; ++w) {
        const Vec x = load(products + j * width + w * kLanes);
        most[w] = maximum(most[w], x);
        above[w] -= x > threshold[w];
      }
    for (int64_t i = 0; i < width; ++i) state.above[i] += above[i / kLanes][i % kLanes];
  } else {
    for (int64_t j = 0; j < slots; ++j)
      for (int w = 0; w < W; ++w) most[w] = maximum(most[w], load(products + j * width + w * kLanes));
  }
  for (int w = 0; w < W; ++w) {
    total[w] = load(state.total + w * kLanes);
    if (any(most[w] != before[w])) {
      const Vec shrink = exp2_negative((before[w] - most[w]) * factor[w]);
      total[w] *= shrink;
      if (sums)
        for (int64_t d = 0; d < D; ++d) store(sums + d * width + w * kLanes, load(sums + d * width + w * kLanes) * shrink);
    }
    store(state.most + w * kLanes, most[w]);
  }
  for (int64_t j = 0; j < slots; ++j)
    for (int w = 0; w < W; ++w) {
      const Vec weight = exp2_negative((load(products + j * width + w * kLanes) - most[w]) * factor[w]);
      total[w] += weight;
      if (sums) store(products + j * width + w * kLanes, weight);
    }
  for (int w = 0; w < W; ++w) store(state.total + w * kLanes, total[w]);
}

// Products become the weights of the gradient: 2^(factor (product - most)) (gradient . slot), the latter given as shares.
void gradient_weights(float* products, const float* shares, int64_t slots, int64_t width, const State& state) {
  for (int64_t v = 0; v < width; v += kLanes) {
    const Vec most = load(state.most + v), factor = load(state.factor + v);
    Vec total = load(state.total + v);
    for (int64_t at = v; at < slots * width; at += width) {
      const Vec weight = exp2_negative((load(products + at) - most) * factor);
      total += weight;
      store(products + at, weight * load(shares + at));
    }
    store(state.total + v, total);
  }
}

template <typename TQuery>
void pack(const QueuePass& p, const float* gradient, const Rows& rows, float* query, float* upstream) {
  pack_rows(static_cast<const TQuery*>(p.query), rows, p.D, query);
  if (gradient) pack_rows(gradient, rows, p.D, upstream);
}

void run_unit(const QueuePass& p, const QueueBackward* backward, int64_t block, int64_t chunk) {
  const Rows rows(p.N, p.blocks, block);
  const int64_t padded_rows = rows.vectors * kLanes, n = rows.end - rows.begin;
  if (n <= 0) return;
  const int64_t size = padded_rows * p.D;
  float* query = scratch(0, 2 * size);
  float* upstream = query + size;
  float* sums = p.out ? scratch(1, size) : nullptr;
  float* tile_data = scratch(2, larger(kTile * odd_pitch(p.D), p.D * odd_pitch(kTile)));
  float* products = scratch(3, 2 * kTile * kWidest * kLanes);
  float* shares = products + kTile * kWidest * kLanes;
  float* lanes = scratch(4, 5 * padded_rows);
  const State state{lanes, lanes + padded_rows, lanes + 2 * padded_rows, lanes + 3 * padded_rows,
                    reinterpret_cast<int32_t*>(lanes + 4 * padded_rows)};

  p.query_dtype == Dtype::f32 ? pack<float>(p, backward ? backward->gradient : nullptr, rows, query, upstream)
                              : pack<bf16>(p, backward ? backward->gradient : nullptr, rows, query, upstream);
  for (int64_t i = 0; i < padded_rows; ++i) {
    const float factor = i < n ? p.factors[rows.begin + i] : 1.0f;
    state.most[i] = !backward ? kLowest : i < n ? backward->lse[rows.begin + i] / factor : 0.0f;
    state.factor[i] = factor / kLog2;
    state.threshold[i] = p.thresholds && i < n ? p.thresholds[rows.begin + i] : 0.0f;
    state.total[i] = 0;
    state.above[i] = 0;
  }
  if (sums) __builtin_memset(sums, 0, size * sizeof(float));

  const int64_t end = p.Q * (chunk + 1) / p.chunks;
  for (int64_t j = p.Q * chunk / p.chunks; j < end; j += kTile) {
    const int64_t slots = smaller(kTile, end - j);
    const Tile tile = p.queue_dtype == Dtype::f32 ? load_tile<float>(p, j, slots, tile_data) : load_tile<bf16>(p, j, slots, tile_data);
    for (int64_t panel = 0; panel < rows.panels; ++panel) {
      const int64_t first = rows.first(panel) * kLanes, width = rows.first(panel + 1) * kLanes - first;
      const State part{state.most + first, state.total + first, state.factor + first, state.threshold + first, state.above + first};
      float* columns = sums ? sums + first * p.D : nullptr;
      multiply(tile.data, tile.slot, tile.dim, query + first * p.D, width, products, width, slots, width, p.D);
      if (backward) {
        multiply(tile.data, tile.slot, tile.dim, upstream + first * p.D, width, shares, width, slots, width, p.D);
        gradient_weights(products, shares, slots, width, part);
      } else {
        const auto run = width == 4 * kLanes ? softmax<4> : width == 3 * kLanes ? softmax<3> : width == 2 * kLanes ? softmax<2> : softmax<1>;
        run(products, slots, part, p.thresholds, columns, p.D);
      }
      if (sums) gemm(tile.data, tile.dim, tile.slot, products, width, columns, width, p.D, width, slots, true);
    }
  }

  const int64_t at = chunk * p.N + rows.begin;
  __builtin_memcpy(p.total + at, state.total, n * sizeof(float));
  if (!backward) {
    __builtin_memcpy(p.most + at, state.most, n * sizeof(float));
    if (p.above) __builtin_memcpy(p.above + at, state.above, n * sizeof(int32_t));
  }
  for (int64_t panel = 0; sums && panel < rows.panels; ++panel) {
    const int64_t first = rows.first(panel) * kLanes, width = rows.first(panel + 1) * kLanes - first;
    transpose_tile(sums + first * p.D, width, p.D, smaller(width, n - first), p.out + (at + first) * p.D, p.D, false);
  }
}

// The same for a few rows, which would leave most lanes empty: lanes run along slots and dimensions instead, and the tile
// is held in both orientations.
constexpr int64_t kFew = 8;

// Products (slots) of one row become weights.
void softmax_row(float* products, int64_t slots, float factor, const float* threshold, float* most, float* total, int32_t* above,
                 float* sums, int64_t D) {
  const int64_t padded_slots = round_up(slots, kLanes);
  for (int64_t j = slots; j < padded_slots; ++j) products[j] = kLowest;
  Vec top = splat(*most), sum_of_weights{};
  IntVec counted{};
  for (int64_t j = 0; j < padded_slots; j += kLanes) {
    const Vec x = load(products + j);
    top = maximum(top, x);
    if (threshold) counted -= x > *threshold;
  }
  for (int i = 0; i < kLanes; ++i) *above += counted[i];
  const float highest = maximum(top);
  if (highest != *most) {
    const float shrink = exp2_negative((*most - highest) * factor);
    *total *= shrink;
    for (int64_t d = 0; sums && d < D; ++d) sums[d] *= shrink;
    *most = highest;
  }
  for (int64_t j = 0; j < padded_slots; j += kLanes) {
    const Vec weight = exp2_negative((load(products + j) - highest) * factor);
    sum_of_weights += weight;
    store(products + j, weight);
  }
  *total += sum(sum_of_weights);
}

// Products (slots) of one row become the weights of its gradient, as above.
void gradient_weights_row(float* products, const float* shares, int64_t slots, float factor, float most, float* total) {
  const int64_t padded_slots = round_up(slots, kLanes);
  for (int64_t j = slots; j < padded_slots; ++j) products[j] = kLowest;
  Vec sum_of_weights{};
  for (int64_t j = 0; j < padded_slots; j += kLanes) {
    const Vec weight = exp2_negative((load(products + j) - most) * factor);
    sum_of_weights += weight;
    store(products + j, weight * load(shares + j));
  }
  *total += sum(sum_of_weights);
}

template <typename TQuery, typename TQueue>
void run_few(const QueuePass& p, const QueueBackward* backward, int64_t block, int64_t chunk) {
  const Rows rows(p.N, p.blocks, block);
  const int64_t n = rows.end - rows.begin, ld = odd_pitch(p.D), slot_ld = odd_pitch(kTile);
  if (n <= 0) return;
  float* query = scratch(0, n * p.D);
  float* sums = p.out ? scratch(1, n * ld) : nullptr;
  float* by_slot = scratch(2, kTile * ld + p.D * slot_ld);
  float* by_dim = by_slot + kTile * ld;
  float* products = scratch(3, 2 * n * slot_ld);
  float* shares = products + n * slot_ld;
  float* total = p.total + chunk * p.N + rows.begin;
  float most[kFew];
  int32_t above[kFew];
  for (int64_t i = 0; i < n; ++i) {
    most[i] = backward ? backward->lse[rows.begin + i] / p.factors[rows.begin + i] : kLowest;
    total[i] = 0, above[i] = 0;
    const TQuery* row = static_cast<const TQuery*>(p.query) + (rows.begin + i) * p.D;
    for (int64_t d = 0; d < p.D; ++d) query[i * p.D + d] = to_float(row[d]);
  }
  if (sums) __builtin_memset(sums, 0, n * ld * sizeof(float));

  const int64_t end = p.Q * (chunk + 1) / p.chunks;
  for (int64_t j = p.Q * chunk / p.chunks; j < end; j += kTile) {
    const int64_t slots = smaller(kTile, end - j), lanes = round_up(slots, kLanes);
    const TQueue* from = static_cast<const TQueue*>(p.queue) + j * p.slot_stride;
    if (p.slot_stride == 1 && p.dim_stride != 1) {
      copy_rows(from, p.dim_stride, p.D, slots, by_dim, slot_ld);
      if (sums) transpose_tile(by_dim, slot_ld, p.D, slots, by_slot, ld, true);
    } else {
      const Tile tile = load_tile<TQueue>(p, j, slots, by_slot);
      transpose_tile(tile.data, ld, slots, p.D, by_dim, slot_ld, true);
    }
    multiply(query, p.D, 1, by_dim, slot_ld, products, slot_ld, n, lanes, p.D);
    if (backward) multiply(backward->gradient + rows.begin * p.D, p.D, 1, by_dim, slot_ld, shares, slot_ld, n, lanes, p.D);
    for (int64_t i = 0; i < n; ++i) {
      const float factor = p.factors[rows.begin + i] / kLog2;
      if (backward)
        gradient_weights_row(products + i * slot_ld, shares + i * slot_ld, slots, factor, most[i], total + i);
      else
        softmax_row(products + i * slot_ld, slots, factor, p.thresholds ? p.thresholds + rows.begin + i : nullptr, most + i, total + i,
                    above + i, sums ? sums + i * ld : nullptr, p.D);
    }
    if (sums) gemm(products, slot_ld, 1, by_slot, ld, sums, ld, n, round_up(p.D, kLanes), slots, true);
  }
  const int64_t at = chunk * p.N + rows.begin;
  if (!backward) __builtin_memcpy(p.most + at, most, n * sizeof(float));
  if (p.above) __builtin_memcpy(p.above + at, above, n * sizeof(int32_t));
  for (int64_t i = 0; sums && i < n; ++i) __builtin_memcpy(p.out + (at + i) * p.D, sums + i * ld, p.D * sizeof(float));
}

void run(const QueuePass& p, const QueueBackward* backward, int64_t begin, int64_t end) {
  const bool query = p.query_dtype == Dtype::f32, queue = p.queue_dtype == Dtype::f32;
  const auto few = query ? (queue ? run_few<float, float> : run_few<float, bf16>) : (queue ? run_few<bf16, float> : run_few<bf16, bf16>);
  for (int64_t unit = begin; unit < end; ++unit) (p.N <= kFew ? few : run_unit)(p, backward, unit / p.chunks, unit % p.chunks);
}

// x (D) (+)= factor * y
void add_row(float* x, const float* y, float factor, int64_t D, bool accumulate) {
  for (int64_t d = 0; d < D; ++d) x[d] = factor * y[d] + (accumulate ? x[d] : 0.0f);
}

template <typename T>
void merge_gradient(const QueueBackwardMerge& p, int64_t begin, int64_t end) {
  float* sum = scratch(0, p.D);
  for (int64_t n = begin; n < end; ++n) {
    const float *mean = p.mean + n * p.D, *gradient = p.gradient + n * p.D;
    T* query = static_cast<T*>(p.query) + n * p.D;
    float product = 0;
    for (int64_t d = 0; d < p.D; ++d) product += mean[d] * gradient[d];
    float total = 0;
    for (int64_t c = 0; c < p.chunks; ++c) total += p.total[c * p.N + n];
    add_row(sum, mean, (p.lse_gradient ? p.lse_gradient[n] : 0.0f) - product, p.D, false);
    for (int64_t c = 0; total > 0 && c < p.chunks; ++c) add_row(sum, p.parts + (c * p.N + n) * p.D, 1 / total, p.D, true);
    for (int64_t d = 0; d < p.D; ++d) put(query + d, p.scale * sum[d]);
  }
}

}  // namespace

void queue_pass(const QueuePass& p, int64_t begin, int64_t end) { run(p, nullptr, begin, end); }

void queue_backward(const QueueBackward& p, int64_t begin, int64_t end) { run(p.pass, &p, begin, end); }

void queue_merge(const QueueMerge& p, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    float most = kLowest, total = 0;
    for (int64_t c = 0; c < p.chunks; ++c) {
      const float part = p.most[c * p.N + n];
      most = most > part ? most : part;
    }
    const float factor = p.factors[n];
    const auto share = [&](int64_t c) { return exp2_negative((p.most[c * p.N + n] - most) * (factor / kLog2)); };
    for (int64_t c = 0; c < p.chunks; ++c) total += p.total[c * p.N + n] * share(c);
    const bool empty = total == 0;
    p.lse[n] = empty ? -__builtin_inff() : most * factor + (p.sum ? 0.0f : __builtin_logf(total));
    if (p.sum) p.sum[n] = total;
    if (p.count) {
      p.count[n] = 0;
      for (int64_t c = 0; c < p.chunks; ++c) p.count[n] += p.above[c * p.N + n];
    }
    for (int64_t c = 0; p.mean && c < p.chunks; ++c) {
      add_row(p.mean + n * p.D, p.parts + (c * p.N + n) * p.D, empty ? 0.0f : share(c) / total, p.D, c > 0);
    }
  }
}

void queue_backward_merge(const QueueBackwardMerge& p, int64_t begin, int64_t end) {
  p.query_dtype == Dtype::f32 ? merge_gradient<float>(p, begin, end) : merge_gradient<bf16>(p, begin, end);
}

}  // namespace skelops::SKELOPS_LEVEL
