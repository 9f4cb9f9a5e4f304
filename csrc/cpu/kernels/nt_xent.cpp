// Contrast of the tokens of a clip. All sets of a clip are normalised once, and one matrix of products serves all pairs: the
// block of two sets is the own block of a pair, or the one between its sets. Blocks are symmetric twins, of which the upper is
// computed: its rows and its columns give the sums of either set. Backward, a block becomes the (symmetric) weights of the two
// sets in each other's gradient, in place.
#include "nt_xent.h"

#include "gemm.h"
#include "unit.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

constexpr float kLowest = -3.0e38f;  // below every product, and finite: an infinite one less itself would be NaN
constexpr float kInfinity = __builtin_inff();
constexpr int64_t kPiece = 128;      // terms of a sum at a time: panels that fit the first cache, and less rounding
constexpr int64_t kTokens = NTXent::kTokens, kVectors = kTokens / kLanes;

// Tokens of a set.
struct Block {
  int64_t set, first, count;
  Block(const NTXent& p, int64_t item) : set(item % p.S), first(item / p.S * kTokens), count(smaller(kTokens, p.P - first)) {}
  int64_t vectors() const { return (count + kLanes - 1) / kLanes; }
};

// The sets of a pair as the tokens of one see it; side says which of the two that is.
struct Side {
  int64_t pair, side, other;
};

// Calls body for all pairs that a set is in.
template <typename Body>
void for_pairs(const NTXent& p, int64_t set, const Body& body) {
  for (int64_t g = 0; g < p.G; ++g)
    for (int64_t side = 0; side < 2; ++side)
      if (p.pairs[2 * g + side] == set) body(Side{g, side, p.pairs[2 * g + 1 - side]});
}

// Whether tokens of u are contrasted with those of w.
bool meet(const NTXent& p, int64_t u, int64_t w) {
  bool found = false;
  for_pairs(p, u, [&](const Side& s) { found |= u == w || s.other == w; });
  return found;
}

// The last set that u meets, itself included; -1 where it is in no pair.
int64_t last_met(const NTXent& p, int64_t u) {
  int64_t last = -1;
  for_pairs(p, u, [&](const Side& s) { last = larger(last, larger(u, s.other)); });
  return last;
}

// Where the tokens of one set of a pair are in tensors (G, 2, N, P).
int64_t place(const NTXent& p, const NTXentClip& clip, const Side& s) { return ((2 * s.pair + s.side) * p.N + clip.n) * p.P; }

// Where the products of token i of u with the tokens of w begin, u <= w.
float* products_of(const NTXent& p, const NTXentClip& clip, int64_t u, int64_t i, int64_t w) {
  return clip.products + (u * p.P + i) * p.column_pitch() + w * p.width();
}

// The token at unit length, padded; returns what it was divided by.
template <typename T>
float read_unit(const T* from, int64_t D, float* to) {
  for (int64_t d = D / kLanes * kLanes; d < padded(D); d += kLanes) store(to + d, Vec{});
  return divisor(to_unit(from, D, to));
}

template <typename T>
void normalize(const NTXent& p, const NTXentClip& clip, const Block& block) {
  const T* tokens = static_cast<const T*>(p.tokens) + block.set * p.set_stride + clip.n * p.clip_stride;
  for (int64_t i = block.first; i < block.first + block.count; i += kChannelPad) {
    const int64_t count = smaller(kChannelPad, block.first + block.count - i), row = block.set * p.P + i;
    for (int64_t k = 0; k < count; ++k)
      clip.lengths[row + k] = read_unit(tokens + (i + k) * p.token_stride, p.D, clip.rows + (row + k) * p.row_pitch());
    float* columns = clip.columns + block.set * p.width() + i;
    transpose_tile(clip.rows + row * p.row_pitch(), p.row_pitch(), count, p.D, columns, p.column_pitch(), true);
    for (int64_t k = round_up(count, kLanes); k < kChannelPad; k += kLanes)
      for (int64_t d = 0; d < p.D; ++d) store(columns + d * p.column_pitch() + k, Vec{});
  }
}

void multiply(const NTXent& p, const NTXentClip& clip, const Block& block) {
  const int64_t u = block.set, last = last_met(p, u), ld = p.column_pitch();
  if (last < 0) return;
  const float* columns = clip.columns + u * p.width();
  float* products = products_of(p, clip, u, block.first, u);
  int64_t d = 0;
  do {
    const float* piece = columns + d * ld;
    gemm(piece + block.first, 1, ld, piece, ld, products, ld, block.count, (last - u + 1) * p.width(), smaller(kPiece, p.D - d), d > 0);
  } while ((d += kPiece) < p.D);
  // A token has no share in its own sum, nor has what is behind the tokens of a set.
  for (int64_t i = 0; i < block.count; ++i, products += ld) {
    products[block.first + i] = -kInfinity;
    for (int64_t w = 0; w <= last - u; ++w)
      for (int64_t j = p.P; j < p.width(); ++j) products[w * p.width() + j] = -kInfinity;
  }
}

// Sums of exponentials by token: exp(scale (x - most)) over the tokens of a set. The largest apart from the rest, differences
// of two sums lose nothing to cancellation.
struct Sums {
  Vec most[kVectors], total[kVectors];
};

// The sums of the tokens of a block over set w.
void add_up(const NTXent& p, const NTXentClip& clip, const Block& block, int64_t w, Sums& to) {
  const int64_t u = block.set;
  if (u < w) {
    float most[kTokens] = {}, total[kTokens] = {};
    for (int64_t i = 0; i < block.count; ++i) {
      const float* x = products_of(p, clip, u, block.first + i, w);
      Vec largest = splat(kLowest), sums{};
      for (int64_t j = 0; j < p.width(); j += kLanes) largest = maximum(largest, load(x + j));
      most[i] = maximum(largest);
      for (int64_t j = 0; j < p.width(); j += kLanes) sums += exp(p.scale * (load(x + j) - most[i]));
      total[i] = sum(sums);
    }
    for (int64_t v = 0; v < block.vectors(); ++v) to.most[v] = load(most + v * kLanes), to.total[v] = load(total + v * kLanes);
    return;
  }
  for (int64_t v = 0; v < block.vectors(); ++v) {
    const float* x = products_of(p, clip, w, 0, u) + block.first + v * kLanes;
    Vec most = splat(kLowest), total{};
    for (int64_t j = 0; j < p.P; ++j) most = maximum(most, load(x + j * p.column_pitch()));
    for (int64_t j = 0; j < p.P; ++j) total += exp(p.scale * (load(x + j * p.column_pitch()) - most));
    to.most[v] = most, to.total[v] = total;
  }
}

void write_losses(const NTXent& p, const NTXentClip& clip, const Block& block) {
  const int64_t u = block.set;
  if (last_met(p, u) < 0) return;
  Sums own, other;
  add_up(p, clip, block, u, own);
  for_pairs(p, u, [&](const Side& s) {
    add_up(p, clip, block, s.other, other);
    const int64_t at = place(p, clip, s) + block.first;
    float most[kTokens], total[kTokens];
    for (int64_t v = 0; v < block.vectors(); ++v) {
      const Vec largest = maximum(own.most[v], other.most[v]);
      store(most + v * kLanes, largest);
      store(total + v * kLanes, own.total[v] * exp(p.scale * (own.most[v] - largest)) + other.total[v] * exp(p.scale * (other.most[v] - largest)));
    }
    for (int64_t i = 0; i < block.count; ++i) {
      const int64_t token = block.first + i;
      const float positive = products_of(p, clip, smaller(u, s.other), token, larger(u, s.other))[token];
      p.most[at + i] = most[i], p.log_total[at + i] = __builtin_logf(total[i]);
      p.losses[at + i] = p.scale * (most[i] - positive) + p.log_total[at + i];
    }
  });
}

NTXentShares shares_of(const NTXent& p, const NTXentClip& clip, int64_t u, int64_t w) {
  const int64_t at = (u * p.S + w) * p.width();
  return {clip.shares.center + at, clip.shares.offset + at, clip.shares.factor + at};
}

// The shares of the tokens of a block in the softmax of each pair, added up over the pairs.
void write_shares(const NTXent& p, const NTXentClip& clip, const Block& block) {
  const NTXentShares own = shares_of(p, clip, block.set, block.set);
  for (int64_t v = 0; v < block.vectors(); ++v) {
    const int64_t i = block.first + v * kLanes, n = p.P - i;
    // The own block has a share in every pair. Exponentials relative to the least of the sums are at most one, and so are the
    // sums relative to each other.
    Vec center = splat(-kLowest), offset{}, factor{};
    for_pairs(p, block.set, [&](const Side& s) {
      const Vec most = load_some(p.most + place(p, clip, s) + i, n), log_total = load_some(p.log_total + place(p, clip, s) + i, n);
      const Vec above = p.scale * (most - center) + (log_total - offset);
      factor = above < 0.0f ? factor * exp(above) + p.rates[s.pair] : factor + p.rates[s.pair] * exp(-above);
      center = above < 0.0f ? most : center, offset = above < 0.0f ? log_total : offset;
      const NTXentShares between = shares_of(p, clip, block.set, s.other);
      store(between.center + i, most);
      store(between.offset + i, log_total);
      Vec rate{};
      for_pairs(p, block.set, [&](const Side& same) { rate += same.other == s.other ? p.rates[same.pair] : 0.0f; });
      store(between.factor + i, rate);
    });
    store(own.center + i, center);
    store(own.offset + i, offset);
    store(own.factor + i, factor);
  }
}

Vec weight(Vec x, Vec center, Vec offset, Vec factor, float scale) { return factor * exp(scale * (x - center) - offset); }

// Products become weights: what a token has from another as one of its softmax, and as the other's partner in turn.
void write_weights(const NTXent& p, const NTXentClip& clip, const Block& block) {
  const int64_t u = block.set, last = last_met(p, u);
  for (int64_t w = u; w <= last; ++w) {
    if (!meet(p, u, w)) continue;
    const NTXentShares of_row = shares_of(p, clip, u, w), of_column = shares_of(p, clip, w, u);
    for (int64_t i = block.first; i < block.first + block.count; ++i) {
      float* x = products_of(p, clip, u, i, w);
      const Vec center = splat(of_row.center[i]), offset = splat(of_row.offset[i]), factor = splat(of_row.factor[i]);
      for (int64_t j = 0; j < p.width(); j += kLanes) {
        const Vec product = load(x + j);
        store(x + j, weight(product, center, offset, factor, p.scale) +
                         weight(product, load(of_column.center + j), load(of_column.offset + j), load(of_column.factor + j), p.scale));
      }
      if (w != u) x[i] -= 2 * of_row.factor[i];
    }
  }
}

template <typename T>
void write_gradients(const NTXent& p, const NTXentClip& clip, const Block& block) {
  const int64_t u = block.set, width = padded(p.D), pitch = p.row_pitch(), ld = p.column_pitch();
  float* sums = scratch(1, kTokens * pitch);
  bool begun = false;
  for (int64_t w = 0; w < p.S; ++w) {
    if (!meet(p, u, w)) continue;
    // Of the twin blocks, the upper one is there.
    const float* weights = u <= w ? products_of(p, clip, u, block.first, w) : products_of(p, clip, w, 0, u) + block.first;
    const int64_t of_token = u <= w ? ld : 1, of_other = u <= w ? 1 : ld;
    for (int64_t j = 0; j < p.P; j += kPiece) {
      gemm(weights + j * of_other, of_token, of_other, clip.rows + (w * p.P + j) * pitch, pitch, sums, pitch, block.count, width,
           smaller(kPiece, p.P - j), begun);
      begun = true;
    }
  }
  T* gradient = static_cast<T*>(p.gradient) + ((u * p.N + clip.n) * p.P + block.first) * p.D;
  for (int64_t i = 0; i < block.count; ++i, gradient += p.D, sums += pitch) {
    const int64_t row = u * p.P + block.first + i;
    const float* unit = clip.rows + row * pitch;
    Vec products{};
    for (int64_t d = 0; begun && d < width; d += kLanes) products += load(unit + d) * load(sums + d);
    // Through x / |x| only what is orthogonal to x remains; what was too short is not of unit length, and only scaled.
    const float length = clip.lengths[row], along = length > kSmallest ? sum(products) : 0.0f, factor = 1 / length;
    for (int64_t d = 0; d < p.D; d += kLanes)
      store_some(gradient + d, begun ? factor * (load(sums + d) - along * load(unit + d)) : Vec{}, p.D - d);
  }
}

template <typename Step>
void for_blocks(const NTXent& p, int64_t begin, int64_t end, const Step& step) {
  for (int64_t item = begin; item < end; ++item) step(Block(p, item));
}

}  // namespace

void nt_xent_normalize(const NTXent& p, const NTXentClip& clip, int64_t begin, int64_t end) {
  for_blocks(p, begin, end, [&](const Block& b) { p.dtype == Dtype::f32 ? normalize<float>(p, clip, b) : normalize<bf16>(p, clip, b); });
}

void nt_xent_multiply(const NTXent& p, const NTXentClip& clip, int64_t begin, int64_t end) {
  for_blocks(p, begin, end, [&](const Block& b) { multiply(p, clip, b); });
}

void nt_xent_losses(const NTXent& p, const NTXentClip& clip, int64_t begin, int64_t end) {
  for_blocks(p, begin, end, [&](const Block& b) { write_losses(p, clip, b); });
}

void nt_xent_shares(const NTXent& p, const NTXentClip& clip, int64_t begin, int64_t end) {
  for_blocks(p, begin, end, [&](const Block& b) { write_shares(p, clip, b); });
}

void nt_xent_weights(const NTXent& p, const NTXentClip& clip, int64_t begin, int64_t end) {
  for_blocks(p, begin, end, [&](const Block& b) { write_weights(p, clip, b); });
}

void nt_xent_gradients(const NTXent& p, const NTXentClip& clip, int64_t begin, int64_t end) {
  for_blocks(p, begin, end, [&](const Block& b) { p.dtype == Dtype::f32 ? write_gradients<float>(p, clip, b) : write_gradients<bf16>(p, clip, b); });
}

}  // namespace skelops::SKELOPS_LEVEL
