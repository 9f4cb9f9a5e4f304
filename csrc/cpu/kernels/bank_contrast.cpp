// Contrast with a memory bank. The similarities of a block of anchors come from a matrix product whose lanes run along the
// anchors, so that the bank is read by scalars and needs no transposition. An anchor then walks once through its row of
// similarities and keeps the smallest keys of three kinds; what it chose it gathers from the bank.
#include "bank_contrast.h"

#include "gemm.h"
#include "hash.h"
#include "unit.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

inline UintVec load_bits(const uint32_t* p) { return reinterpret_cast<UintVec>(load(reinterpret_cast<const float*>(p))); }
inline void store_bits(uint32_t* p, UintVec x) { store(reinterpret_cast<float*>(p), reinterpret_cast<Vec>(x)); }

// A bit per lane of a mask.
inline uint32_t bits_of(IntVec mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= (mask[i] & 1u) << i;
  return bits;
#endif
}

// Numbers in the order of the floats: zeros of both signs are equal, and a NaN comes last.
inline UintVec ordered(Vec x) {
  const UintVec bits = reinterpret_cast<UintVec>(x == x ? x + 0.0f : splat(__builtin_nanf("")));
  return bits ^ (reinterpret_cast<UintVec>(reinterpret_cast<IntVec>(bits) >> 31) | 0x80000000u);
}

// Of a stream of keys the k smallest, and where they stood; of equal keys the first. Whatever is not above a limit is
// collected; when there is no more room, the limit falls to where little more than k keys are below it.
class Smallest {
 public:
  static int64_t words(int64_t k) { return 2 * (room(k) + kLanes); }

  Smallest(int64_t k, uint32_t* memory) : k_(k), room_(room(k)), keys_(memory), places_(memory + room_ + kLanes) {
    for (int i = 0; i < kLanes; ++i) lanes_[i] = static_cast<uint32_t>(i);
  }

  // The keys of those lanes that are in the mask; lane 0 stands at place. Appending none costs less than a wrong guess whether
  // there are any.
  void add(UintVec keys, IntVec mask, int64_t place) {
    const uint32_t bits = bits_of(mask & reinterpret_cast<IntVec>(keys <= limit_));
    append(keys, lanes_ + static_cast<uint32_t>(place), bits);
    if (count_ > room_ - kLanes) select(k_ + k_ / 4);
  }

  // The places of the k smallest of at least k keys, in ascending order.
  const uint32_t* finish() {
    if (count_ > k_ + k_ / 4) select(k_ + k_ / 4);
    if (count_ > k_) select(k_);
    return places_;
  }

 private:
  static int64_t room(int64_t k) { return round_up(larger(4 * k, 1024), kLanes); }

  void append(UintVec keys, UintVec places, uint32_t bits) {
#if defined(__AVX512F__)
    const __mmask16 mask = static_cast<__mmask16>(bits);
    _mm512_storeu_si512(keys_ + count_, _mm512_maskz_compress_epi32(mask, reinterpret_cast<__m512i>(keys)));
    _mm512_storeu_si512(places_ + count_, _mm512_maskz_compress_epi32(mask, reinterpret_cast<__m512i>(places)));
    count_ += __builtin_popcount(bits);
#else
    uint32_t of_lanes[2][kLanes];
    store_bits(of_lanes[0], keys), store_bits(of_lanes[1], places);
    for (; bits; bits &= bits - 1) {
      const int lane = __builtin_ctz(bits);
      keys_[count_] = of_lanes[0][lane], places_[count_++] = of_lanes[1][lane];
    }
#endif
  }

  int64_t below(uint32_t key) const {
    IntVec total{};
    for (int64_t i = 0; i < count_; i += kLanes) total -= load_bits(keys_ + i) < key;
    int64_t sum = 0;
    for (int i = 0; i < kLanes; ++i) sum += total[i];
    return sum;
  }

  // Leaves the smallest keys, k to most of them. The k-th smallest is the largest number that fewer than k keys are below:
  // it is found bit by bit, from the first in which the keys differ and as far as is needed.
  void select(int64_t most) {
    store_bits(keys_ + count_, UintVec{} + keys_[0]);  // what fills the last vector differs from no key
    UintVec ones = ~UintVec{}, any{};
    for (int64_t i = 0; i < count_; i += kLanes) ones &= load_bits(keys_ + i), any |= load_bits(keys_ + i);
    uint32_t common = ~0u, differing = 0;
    for (int i = 0; i < kLanes; ++i) common &= ones[i], differing |= any[i];
    differing ^= common;
    store_bits(keys_ + count_, ~UintVec{});  // and is below none
    const uint32_t top = differing ? 1u << (31 - __builtin_clz(differing)) : 0;
    uint32_t key = top ? common & ~(2 * top - 1) : common;
    for (uint32_t bit = top; bit; bit >>= 1) {
      const int64_t n = below(key | bit);
      if (n < k_) key |= bit;
      if (n >= k_ && n <= most) return keep((key | bit) - 1, n);
    }
    keep(key, k_);
  }

  // Leaves the first n of the keys that are not above a limit, and before them those that are below it.
  void keep(uint32_t limit, int64_t n) {
    const int64_t all = count_;
    int64_t equal = n - below(limit);
    limit_ = limit, count_ = 0;
    for (int64_t i = 0; i < all; i += kLanes) {
      const UintVec keys = load_bits(keys_ + i), places = load_bits(places_ + i);
      uint32_t bits = bits_of(reinterpret_cast<IntVec>(keys <= limit));
      if (all - i < kLanes) bits &= (1u << (all - i)) - 1;
      for (uint32_t ties = bits & bits_of(reinterpret_cast<IntVec>(keys == limit)); ties; ties &= ties - 1)
        if (--equal < 0) bits &= ~(ties & -ties);
      append(keys, places, bits);
    }
  }

  const int64_t k_, room_;
  uint32_t *const keys_, *const places_;
  int64_t count_ = 0;
  uint32_t limit_ = 0xffffffffu;
  UintVec lanes_;  // 0, 1, 2, ...
};

float unit_of(const BankContrast& p, int64_t n, float* unit) {
  return p.features_dtype == Dtype::f32 ? to_unit(static_cast<const float*>(p.features) + n * p.D, p.D, unit)
                                        : to_unit(static_cast<const bf16*>(p.features) + n * p.D, p.D, unit);
}

// The rows of a tile of slots in float32; those of bfloat16 are converted into memory.
const float* rows_of(const float* bank, int64_t, float*) { return bank; }
const float* rows_of(const bf16* bank, int64_t size, float* memory) {
  for (int64_t i = 0; i < size; i += kLanes) store(memory + i, load_some(bank + i, size - i));
  return memory;
}

// Asks for a tile in the order of memory, which the product does not read it in.
template <typename T>
void prefetch_tile(const BankContrast& p, int64_t tile) {
  const T* bank = static_cast<const T*>(p.bank);
  const T* end = bank + smaller((tile + 1) * kSlotTile, p.Q) * p.D;
  for (const T* at = bank + tile * kSlotTile * p.D; at < end; at += 64 / sizeof(T)) __builtin_prefetch(at, 0, 2);
}

template <typename T>
void similarity(const BankContrast& p, int64_t begin, int64_t end) {
  constexpr int64_t piece = 128;  // of D: short sums round less, and such a part of the anchors fits the first cache
  const int64_t width = round_up(p.count, kLanes);
  float* products = scratch(0, kSlotTile * width);
  float* memory = scratch(1, kSlotTile * p.D + kLanes);
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * kSlotTile, slots = smaller(kSlotTile, p.Q - first);
    const float* rows = rows_of(static_cast<const T*>(p.bank) + first * p.D, slots * p.D, memory);
    prefetch_tile<T>(p, tile + 1);
    int64_t d = 0;
    do {
      gemm(rows + d, p.D, 1, p.units + d * width, width, products, width, slots, width, smaller(piece, p.D - d), d > 0);
    } while ((d += piece) < p.D);
    transpose_tile(products, width, slots, p.count, p.similarity + first, p.pitch, false);
  }
}

// What an anchor has chosen of one kind: slots and their logits, which become weights of the gradient.
struct Choice {
  const uint32_t* slots;
  int64_t count;
  float* logits;
};

Choice choose(Smallest& smallest, int64_t count, const float* row, float scale, float* logits) {
  const uint32_t* slots = smallest.finish();
  for (int64_t i = 0; i < count; ++i) logits[i] = scale * row[slots[i]];
  return {slots, count, logits};
}

// Logits become their softmax; returns the log of the sum of their exponentials.
float softmax(const Choice& c) {
  float most = c.logits[0];
  for (int64_t i = 1; i < c.count; ++i) most = c.logits[i] > most ? c.logits[i] : most;
  Vec total{};
  for (int64_t i = 0; i < c.count; i += kLanes) {
    const int64_t n = smaller(kLanes, c.count - i);
    store_first(c.logits + i, exp(load_some(c.logits + i, n) - most), n);
    total += load_some(c.logits + i, n);
  }
  const float all = sum(total);
  for (int64_t i = 0; i < c.count; ++i) c.logits[i] /= all;
  return most + __builtin_logf(all);
}

// out (D) += sum of weight * slot over what was chosen.
template <typename T>
void gather(const BankContrast& p, const Choice& c, float factor, float* out) {
  const T* bank = static_cast<const T*>(p.bank);
  const int64_t whole = p.D / kLanes * kLanes;
  for (int64_t i = 0; i < c.count; ++i) {
    const T* row = bank + c.slots[i] * p.D;
    // The rows lie apart: nothing but the list of slots tells which comes next.
    const T* ahead = bank + c.slots[smaller(i + 8, c.count - 1)] * p.D;
    for (int64_t d = 0; d < p.D; d += 64 / sizeof(T)) __builtin_prefetch(ahead + d);
    const float weight = factor * c.logits[i];
    for (int64_t d = 0; d < whole; d += kLanes) store(out + d, load(out + d) + weight * load(row + d));
    for (int64_t d = whole; d < p.D; ++d) out[d] += weight * to_float(row[d]);
  }
}

void anchor(const BankContrast& p, int64_t a) {
  const float* row = p.similarity + a * p.pitch;
  const int32_t own = p.anchor_classes[a];
  const int64_t counts[3] = {p.positives, p.hard_negatives, p.random_negatives};
  int64_t words[4] = {0};
  for (int i = 0; i < 3; ++i) words[i + 1] = words[i] + Smallest::words(counts[i]);
  auto* memory = reinterpret_cast<uint32_t*>(scratch(2, words[3]));
  Smallest least_similar(counts[0], memory), most_similar(counts[1], memory + words[1]), drawn(counts[2], memory + words[2]);
  const Hash hash(p.keys, 1);
  const int64_t index = p.anchors[a] * p.Q;
  for (int64_t j = 0; j < p.Q; j += kLanes) {
    const IntVec classes = reinterpret_cast<IntVec>(load(reinterpret_cast<const float*>(p.classes + j)));
    const IntVec same = classes == own, other = (classes != own) & (classes != kUnvisited);
    const UintVec key = ordered(load(row + j));
    least_similar.add(key, same, j);
    most_similar.add(~key, other, j);
    drawn.add(hash(index + j), other, j);
  }

  float* logits = scratch(3, counts[0] + counts[1] + counts[2]);
  const Choice pulled_to = choose(least_similar, counts[0], row, p.scale, logits);
  const Choice pushed_from[2] = {choose(most_similar, counts[1], row, p.scale, logits + counts[0]),
                                 choose(drawn, counts[2], row, p.scale, logits + counts[0] + counts[1])};
  const float lse[2] = {softmax(pushed_from[0]), softmax(pushed_from[1])};
  double loss = 0, force[2] = {0, 0};
  for (int64_t i = 0; i < pulled_to.count; ++i) {
    float pull = 0;
    for (int k = 0; k < 2; ++k) {
      const float excess = lse[k] - pulled_to.logits[i], small = __builtin_expf(-__builtin_fabsf(excess));
      const float sigmoid = (excess > 0 ? 1.0f : small) / (1.0f + small);
      loss += (excess > 0 ? excess : 0.0f) + __builtin_log1pf(small);
      force[k] += sigmoid, pull += sigmoid;
    }
    pulled_to.logits[i] = -pull;
  }
  p.losses[a] = static_cast<float>(loss) * p.share;
  if (!p.gradient) return;

  float* unit = scratch(4, p.D + kLanes);
  float* gradient = p.gradient + p.anchors[a] * p.D;
  const float length = unit_of(p, p.anchors[a], unit), factor = p.scale * p.share;
  for (int64_t d = 0; d < p.D; ++d) gradient[d] = 0;
  const auto add = p.bank_dtype == Dtype::f32 ? gather<float> : gather<bf16>;
  add(p, pulled_to, factor, gradient);
  for (int k = 0; k < 2; ++k) add(p, pushed_from[k], factor * static_cast<float>(force[k]), gradient);
  // Through the normalisation; a vector too short for it was only scaled.
  float along = 0;
  for (int64_t d = 0; d < p.D; ++d) along += unit[d] * gradient[d];
  if (length < kSmallest) along = 0;
  for (int64_t d = 0; d < p.D; ++d) gradient[d] = (gradient[d] - along * unit[d]) / divisor(length);
}

}  // namespace

void bank_units(const BankContrast& p) {
  float* rows = scratch(0, p.count * p.D);
  for (int64_t a = 0; a < p.count; ++a) unit_of(p, p.anchors[a], rows + a * p.D);
  transpose_tile(rows, p.D, p.count, p.D, p.units, round_up(p.count, kLanes), true);
}

void bank_similarity(const BankContrast& p, int64_t begin, int64_t end) {
  p.bank_dtype == Dtype::f32 ? similarity<float>(p, begin, end) : similarity<bf16>(p, begin, end);
}

void bank_contrast(const BankContrast& p, int64_t begin, int64_t end) {
  for (int64_t a = begin; a < end; ++a) anchor(p, a);
}

}  // namespace skelops::SKELOPS_LEVEL
