// What the kernels of mask_pool share: the sums over the two sides of a mask. Each side has sums of its own: the difference to
// the plain sum would lose digits where one side is small, and gains nothing, for the kernels wait for memory.
// Frames and joints are one axis of P = T V positions here.
#pragma once

#include "mask_pool.h"

#include "pool.h"

namespace skelops::SKELOPS_LEVEL {

// Elements of one lane, positions of a channels_last map or planes that are summed one after the other; sums of such blocks
// are added up in turn, so that rounding errors stay near those of a pairwise sum.
constexpr int64_t kBlock = 64;
constexpr int64_t kHalvings = 40;

// An empty side gives 0, and no gradient.
inline float divide(float total, float size) { return size != 0 ? total / size : 0; }
inline Vec divide(Vec total, Vec size) { return size != 0.0f ? total / size : Vec{}; }

// What belongs to the two sides of a mask: sums, sizes or weights.
struct Sides {
  float inside, outside;
};

struct SideRows {
  float *inside, *outside;
};

inline SideRows rows(float*& memory, int64_t n) {
  memory += 2 * n;
  return {memory - 2 * n, memory - n};
}

// Sums of value * mask and value * (1 - mask); value(i, n) gives the vector at i, of which n elements count and others are 0.
template <typename M>
inline Sides pool(int64_t P, auto value, const M* mask) {
  constexpr int unroll = 4;
  Sides total{};
  for (int64_t i = 0; i < P;) {
    Vec inside[unroll] = {}, outside[unroll] = {};
    const auto add = [&](int u, Vec x, Vec m) {
      inside[u] += x * m;
      outside[u] += x * (1.0f - m);
    };
    const int64_t end = smaller(i + kBlock * unroll * kLanes, P);
    for (; i + unroll * kLanes <= end; i += unroll * kLanes)
      for (int u = 0; u < unroll; ++u) add(u, value(i + u * kLanes, kLanes), load(mask + i + u * kLanes));
    for (; i < end; i += kLanes) add(0, value(i, P - i), load_some(mask + i, P - i));
    total.inside += sum((inside[0] + inside[1]) + (inside[2] + inside[3]));
    total.outside += sum((outside[0] + outside[1]) + (outside[2] + outside[3]));
  }
  return total;
}

template <typename T, typename M>
Sides pool(const T* x, const M* mask, int64_t P) {
  return pool(P, [=](int64_t i, int64_t n) { return load_ahead(x + i, x + i + n); }, mask);
}

template <typename M>
Sides sizes(const M* mask, int64_t P, bool by_size) {
  if (by_size) return {static_cast<float>(P), static_cast<float>(P)};
  return pool(P, [](int64_t, int64_t n) { return n >= kLanes ? splat(1) : select(first_lanes(n), splat(1)); }, mask);
}

// A mask that channels share, as float32, and its sizes.
template <typename M>
struct SharedMask {
  const Mask& mask;
  int64_t P, current = -1;
  float* data;
  Sides size;

  SharedMask(const Mask& mask, int64_t P) : mask(mask), P(P), data(scratch(0, round_up(P, kLanes))) {}

  void read(int64_t n) {
    if (n == current) return;
    current = n;
    const M* source = static_cast<const M*>(mask.data) + n * P;
    for (int64_t i = 0; i < P; i += kLanes) store(data + i, load_some(source + i, P - i));
    size = sizes(data, P, mask.by_size);
  }
};

// Adds N positions to the sums of a row of channels; value and mask give the vector at (position, channel).
template <int N>
inline void add_positions(int64_t first, int64_t ld, auto value, auto mask, SideRows sums) {
  for (int64_t c = 0; c < ld; c += kLanes) {
    Vec inside{}, outside{};
    for (int n = 0; n < N; ++n) {
      const Vec x = value(first + n, c), m = mask(first + n, c);
      inside += x * m;
      outside += x * (1.0f - m);
    }
    add(sums.inside + c, inside);
    add(sums.outside + c, outside);
  }
}

// Sums over positions first..last of channels_last rows, by halves; `spare` holds 2 ld floats for every halving.
void pool_channels_last(int64_t first, int64_t last, int64_t ld, auto value, auto mask, SideRows total, float* spare) {
  if (last - first > kBlock) {
    const int64_t middle = first + round_up((last - first) / 2, kBlock);
    const SideRows rest = rows(spare, ld);
    pool_channels_last(first, middle, ld, value, mask, total, spare);
    pool_channels_last(middle, last, ld, value, mask, rest, spare);
    for (int64_t c = 0; c < ld; c += kLanes) {
      add(total.inside + c, load(rest.inside + c));
      add(total.outside + c, load(rest.outside + c));
    }
    return;
  }
  clear(total.inside, ld);
  clear(total.outside, ld);
  for (; first + 4 <= last; first += 4) add_positions<4>(first, ld, value, mask, total);
  for (; first < last; ++first) add_positions<1>(first, ld, value, mask, total);
}

// Reads (position, channel) of a row of a channels_last tensor.
template <typename T>
inline auto reader(const T* row, int64_t C, const T* end) {
  return [=](int64_t position, int64_t c) { return load_ahead(row + position * C + c, end); };
}

inline void fill(SideRows row, int64_t ld, Sides value) {
  for (int64_t c = 0; c < ld; c += kLanes) {
    store(row.inside + c, splat(value.inside));
    store(row.outside + c, splat(value.outside));
  }
}

// Sizes per channel: by position count, of one mask for all, or of a mask per channel read by `mask`.
template <typename M>
void channel_sizes(const Mask& how, int64_t P, int64_t ld, auto mask, const SharedMask<M>& shared, SideRows size, float* spare) {
  if (!how.per_channel || how.by_size)
    return fill(size, ld, how.by_size ? Sides{static_cast<float>(P), static_cast<float>(P)} : shared.size);
  pool_channels_last(0, P, ld, [](int64_t, int64_t) { return splat(1); }, mask, size, spare);
}

// The gradients of the two sides of one plane, divided by their sizes.
template <typename T, typename Params>
Sides plane_weights(const Params& p, int64_t plane, Sides size) {
  return {divide(to_float(static_cast<const T*>(p.grad_inside)[plane]), size.inside),
          divide(to_float(static_cast<const T*>(p.grad_outside)[plane]), size.outside)};
}

}  // namespace skelops::SKELOPS_LEVEL
