// Means inside and outside a mask from one read of the map. Both sides have sums of their own: the difference to the plain
// sum would lose digits where one side is small, and gains nothing, for the kernels wait for memory.
// Frames and joints are one axis of P = T V positions here.
#include "mask_pool.h"

#include "pool.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

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

SideRows rows(float*& memory, int64_t n) {
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
  return pool(P, [=](int64_t i, int64_t n) { return load_some(x + i, n); }, mask);
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

template <typename T, typename M>
void forward(const MaskPool& p, int64_t begin, int64_t end) {
  SharedMask<M> shared(p.mask, p.P);
  for (int64_t i = begin; i < end; ++i) {
    const T* x = static_cast<const T*>(p.x) + i * p.P;
    Sides total, size;
    if (p.mask.per_channel) {
      const M* mask = static_cast<const M*>(p.mask.data) + i * p.P;
      total = pool(x, mask, p.P);
      size = sizes(mask, p.P, p.mask.by_size);
    } else {
      shared.read(i / (p.C * p.mask.rows));
      total = pool(x, shared.data, p.P);
      size = shared.size;
    }
    put(static_cast<T*>(p.inside) + i, divide(total.inside, size.inside));
    put(static_cast<T*>(p.outside) + i, divide(total.outside, size.outside));
  }
}

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
  return [=](int64_t position, int64_t c) { return load_within(row + position * C + c, end); };
}

void fill(SideRows row, int64_t ld, Sides value) {
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

template <typename T, typename M>
void forward_channels_last(const MaskPool& p, int64_t begin, int64_t end) {
  const int64_t blocks = (p.C + p.width - 1) / p.width, all = p.B * p.C * p.P;
  const T* x = static_cast<const T*>(p.x);
  const M* masks = static_cast<const M*>(p.mask.data);
  const int64_t widest = round_up(p.width, kLanes);
  float* spare = scratch(1, (4 + 2 * kHalvings) * widest);
  const SideRows total = rows(spare, widest), size = rows(spare, widest);
  SharedMask<M> shared(p.mask, p.P);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / blocks, c = i % blocks * p.width, width = smaller(p.width, p.C - c), ld = round_up(width, kLanes);
    const int64_t start = b * p.P * p.C + c;
    const auto value = reader(x + start, p.C, x + all);
    const auto mask = reader(masks + start, p.C, masks + all);
    if (p.mask.per_channel) {
      pool_channels_last(0, p.P, ld, value, mask, total, spare);
    } else {
      shared.read(b / p.mask.rows);
      pool_channels_last(0, p.P, ld, value, [&](int64_t i, int64_t) { return splat(shared.data[i]); }, total, spare);
    }
    channel_sizes(p.mask, p.P, ld, mask, shared, size, spare);
    const int64_t first = b * p.C + c;
    for (int64_t k = 0; k < width; k += kLanes) {
      store_some(static_cast<T*>(p.inside) + first + k, divide(load(total.inside + k), load(size.inside + k)), width - k);
      store_some(static_cast<T*>(p.outside) + first + k, divide(load(total.outside + k), load(size.outside + k)), width - k);
    }
  }
}

// The gradients of the two sides of one plane, divided by their sizes.
template <typename T, typename Params>
Sides plane_weights(const Params& p, int64_t plane, Sides size) {
  return {divide(to_float(static_cast<const T*>(p.grad_inside)[plane]), size.inside),
          divide(to_float(static_cast<const T*>(p.grad_outside)[plane]), size.outside)};
}

template <typename T, typename M>
void backward(const MaskPoolBackward& p, int64_t begin, int64_t end) {
  SharedMask<M> shared(p.mask, p.P);
  const T* limit = static_cast<T*>(p.x) + end * p.P;
  const M *masks = static_cast<const M*>(p.mask.data), *masks_end = masks + p.B * p.C * p.P;
  for (int64_t i = begin; i < end; ++i) {
    T* x = static_cast<T*>(p.x) + i * p.P;
    const auto write = [&](Sides weight, auto mask) {
      for (int64_t k = 0; k < p.P; k += kLanes) {
        const Vec m = mask(k);
        store_within(x + k, weight.inside * m + weight.outside * (1.0f - m), limit);
      }
    };
    if (p.mask.per_channel) {
      const M* mask = masks + i * p.P;
      write(plane_weights<T>(p, i, sizes(mask, p.P, p.mask.by_size)), [=](int64_t k) { return load_within(mask + k, masks_end); });
    } else {
      shared.read(i / (p.C * p.mask.rows));
      write(plane_weights<T>(p, i, shared.size), [&](int64_t k) { return load(shared.data + k); });
    }
  }
}

// plane_weights of all channels of one row.
template <typename T, typename Params>
void row_weights(const Params& p, int64_t b, SideRows size, SideRows weight) {
  const T *inside = static_cast<const T*>(p.grad_inside) + b * p.C, *outside = static_cast<const T*>(p.grad_outside) + b * p.C;
  for (int64_t c = 0; c < p.C; c += kLanes) {
    store(weight.inside + c, divide(load_some(inside + c, p.C - c), load(size.inside + c)));
    store(weight.outside + c, divide(load_some(outside + c, p.C - c), load(size.outside + c)));
  }
}

template <typename T, typename M>
void backward_channels_last(const MaskPoolBackward& p, int64_t begin, int64_t end) {
  const int64_t ld = round_up(p.C, kLanes), all = p.B * p.C * p.P;
  const T* limit = static_cast<T*>(p.x) + end * p.C;
  const M* masks = static_cast<const M*>(p.mask.data);
  float* spare = scratch(1, (4 + 2 * kHalvings) * ld);
  const SideRows size = rows(spare, ld), weight = rows(spare, ld);
  SharedMask<M> shared(p.mask, p.P);
  while (begin < end) {
    const int64_t b = begin / p.P, first = begin % p.P, last = smaller(p.P, first + end - begin);
    T* x = static_cast<T*>(p.x) + b * p.P * p.C;
    const auto mask = reader(masks + b * p.P * p.C, p.C, masks + all);
    const auto write = [&](auto mask_at) {
      channel_sizes(p.mask, p.P, ld, mask, shared, size, spare);
      row_weights<T>(p, b, size, weight);
      for (int64_t i = first; i < last; ++i)
        for (int64_t c = 0; c < p.C; c += kLanes) {
          const Vec m = mask_at(i, c);
          store_within(x + i * p.C + c, load(weight.inside + c) * m + load(weight.outside + c) * (1.0f - m), limit);
        }
    };
    if (p.mask.per_channel) {
      write(mask);
    } else {
      shared.read(b / p.mask.rows);
      write([&](int64_t i, int64_t) { return splat(shared.data[i]); });
    }
    begin += last - first;
  }
}

// The gradient of a mask at one position is the sum of x * slope + shift over the planes that it serves; with sizes from the
// mask, shift carries the gradient of the denominators.
struct Line {
  float slope, shift;
};

template <typename T>
Line line(const MaskPoolBackwardMask& p, int64_t plane, Sides size) {
  const Sides weight = plane_weights<T>(p, plane, size);
  const float inside = to_float(static_cast<const T*>(p.inside)[plane]), outside = to_float(static_cast<const T*>(p.outside)[plane]);
  return {weight.inside - weight.outside, p.mask.by_size ? 0.0f : weight.outside * outside - weight.inside * inside};
}

template <typename T>
void backward_mask_per_channel(const MaskPoolBackwardMask& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const T* x = static_cast<const T*>(p.x) + i * p.P;
    T* grad = static_cast<T*>(p.grad) + i * p.P;
    const Line l = line<T>(p, i, sizes(static_cast<const T*>(p.mask.data) + i * p.P, p.P, p.mask.by_size));
    for (int64_t k = 0; k < p.P; k += kLanes) store_some(grad + k, load_some(x + k, p.P - k) * l.slope + l.shift, p.P - k);
  }
}

// Adds N planes times their slopes to the gradient at `count` positions.
template <int N, typename T>
inline void add_planes(const T* x, int64_t P, const float* slopes, int64_t count, float* grad) {
  for (int64_t k = 0; k < count; k += kLanes) {
    Vec total = load(grad + k);
    for (int n = 0; n < N; ++n) total += slopes[n] * load_some(x + n * P + k, count - k);
    store(grad + k, total);
  }
}

template <typename T>
void backward_mask(const MaskPoolBackwardMask& p, int64_t begin, int64_t end) {
  const int64_t blocks = (p.P + p.block - 1) / p.block, ld = round_up(p.block, kLanes), planes = p.mask.rows * p.C;
  SharedMask<T> shared(p.mask, p.P);
  float *total = scratch(1, 2 * ld + kBlock), *part = total + ld, *slopes = part + ld;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t n = i / blocks, first = i % blocks * p.block, count = smaller(p.block, p.P - first);
    shared.read(n);
    clear(total, ld);
    float shift = 0;
    for (int64_t plane = n * planes; plane < (n + 1) * planes;) {
      const int64_t left = smaller(kBlock, (n + 1) * planes - plane);
      const T* x = static_cast<const T*>(p.x) + plane * p.P + first;
      float part_shift = 0;
      for (int64_t j = 0; j < left; ++j) {
        const Line l = line<T>(p, plane + j, shared.size);
        slopes[j] = l.slope;
        part_shift += l.shift;
      }
      shift += part_shift;
      clear(part, ld);
      int64_t j = 0;
      for (; j + 4 <= left; j += 4) add_planes<4>(x + j * p.P, p.P, slopes + j, count, part);
      for (; j < left; ++j) add_planes<1>(x + j * p.P, p.P, slopes + j, count, part);
      for (int64_t k = 0; k < count; k += kLanes) add(total + k, load(part + k));
      plane += left;
    }
    T* grad = static_cast<T*>(p.grad) + n * p.P + first;
    for (int64_t k = 0; k < count; k += kLanes) store_some(grad + k, load(total + k) + shift, count - k);
  }
}

// line() of all channels of one row.
template <typename T>
void row_lines(const MaskPoolBackwardMask& p, int64_t b, SideRows size, float* slopes, float* shifts) {
  for (int64_t c = 0; c < p.C; ++c) {
    const Line l = line<T>(p, b * p.C + c, {size.inside[c], size.outside[c]});
    slopes[c] = l.slope;
    shifts[c] = l.shift;
  }
}

template <typename T>
void backward_mask_per_channel_channels_last(const MaskPoolBackwardMask& p, int64_t begin, int64_t end) {
  const int64_t ld = round_up(p.C, kLanes), all = p.B * p.C * p.P;
  const T *x = static_cast<const T*>(p.x), *masks = static_cast<const T*>(p.mask.data);
  const T* limit = static_cast<T*>(p.grad) + end * p.C;
  float* spare = scratch(1, (4 + 2 * kHalvings) * ld);
  const SideRows size = rows(spare, ld);
  float *slopes = spare, *shifts = spare + ld;
  spare += 2 * ld;
  SharedMask<T> shared(p.mask, p.P);
  while (begin < end) {
    const int64_t b = begin / p.P, first = begin % p.P, last = smaller(p.P, first + end - begin), start = b * p.P * p.C;
    channel_sizes(p.mask, p.P, ld, reader(masks + start, p.C, masks + all), shared, size, spare);
    row_lines<T>(p, b, size, slopes, shifts);
    const auto value = reader(x + start, p.C, x + all);
    for (int64_t i = first; i < last; ++i)
      for (int64_t c = 0; c < p.C; c += kLanes)
        store_within(static_cast<T*>(p.grad) + start + i * p.C + c, value(i, c) * load(slopes + c) + load(shifts + c), limit);
    begin += last - first;
  }
}

template <typename T>
void backward_mask_channels_last(const MaskPoolBackwardMask& p, int64_t begin, int64_t end) {
  const int64_t blocks = (p.P + p.block - 1) / p.block, ld = round_up(p.C, kLanes);
  const T* x = static_cast<const T*>(p.x);
  const T* limit = x + p.B * p.C * p.P;
  const IntVec whole = first_lanes(kLanes), rest = first_lanes(p.C - (ld - kLanes));
  SharedMask<T> shared(p.mask, p.P);
  float *memory = scratch(1, 4 * ld + round_up(p.block, kLanes)), *slopes = memory + 2 * ld, *shifts = memory + 3 * ld,
        *total = memory + 4 * ld;
  const SideRows size = rows(memory, ld);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t n = i / blocks, first = i % blocks * p.block, count = smaller(p.block, p.P - first);
    shared.read(n);
    fill(size, ld, shared.size);
    clear(slopes, 2 * ld);
    clear(total, round_up(count, kLanes));
    float shift = 0;
    for (int64_t b = n * p.mask.rows; b < (n + 1) * p.mask.rows; ++b) {
      row_lines<T>(p, b, size, slopes, shifts);
      Vec row_shift{};
      for (int64_t c = 0; c < ld; c += kLanes) row_shift += load(shifts + c);
      shift += sum(row_shift);
      const auto value = reader(x + (b * p.P + first) * p.C, p.C, limit);
      for (int64_t k = 0; k < count; k += kLanes) {
        Vec sums[kLanes] = {};
        for (int64_t j = 0; j < smaller(kLanes, count - k); ++j)
          for (int64_t c = 0; c < ld; c += kLanes) sums[j] += select(c + kLanes < ld ? whole : rest, value(k + j, c)) * load(slopes + c);
        add(total + k, row_sums(sums));
      }
    }
    T* grad = static_cast<T*>(p.grad) + n * p.P + first;
    for (int64_t k = 0; k < count; k += kLanes) store_some(grad + k, load(total + k) + shift, count - k);
  }
}

template <typename Params>
void typed(const Params& p, auto run) {
  if (p.dtype == Dtype::f32)
    p.mask.boolean ? run(float{}, Bool{}) : run(float{}, float{});
  else
    p.mask.boolean ? run(bf16{}, Bool{}) : run(bf16{}, bf16{});
}

}  // namespace

void mask_pool(const MaskPool& p, int64_t begin, int64_t end) {
  typed(p, [&](auto x, auto mask) { forward<decltype(x), decltype(mask)>(p, begin, end); });
}

void mask_pool_channels_last(const MaskPool& p, int64_t begin, int64_t end) {
  typed(p, [&](auto x, auto mask) { forward_channels_last<decltype(x), decltype(mask)>(p, begin, end); });
}

void mask_pool_backward(const MaskPoolBackward& p, int64_t begin, int64_t end) {
  typed(p, [&](auto x, auto mask) { backward<decltype(x), decltype(mask)>(p, begin, end); });
}

void mask_pool_backward_channels_last(const MaskPoolBackward& p, int64_t begin, int64_t end) {
  typed(p, [&](auto x, auto mask) { backward_channels_last<decltype(x), decltype(mask)>(p, begin, end); });
}

void mask_pool_backward_mask(const MaskPoolBackwardMask& p, int64_t begin, int64_t end) {
  const auto run = [&]<typename T>(T) {
    p.mask.per_channel ? backward_mask_per_channel<T>(p, begin, end) : backward_mask<T>(p, begin, end);
  };
  p.dtype == Dtype::f32 ? run(float{}) : run(bf16{});
}

void mask_pool_backward_mask_channels_last(const MaskPoolBackwardMask& p, int64_t begin, int64_t end) {
  const auto run = [&]<typename T>(T) {
    p.mask.per_channel ? backward_mask_per_channel_channels_last<T>(p, begin, end) : backward_mask_channels_last<T>(p, begin, end);
  };
  p.dtype == Dtype::f32 ? run(float{}) : run(bf16{});
}

}  // namespace skelops::SKELOPS_LEVEL
