// The gradient of mask_pool to the mask.
#include "mask_sums.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

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

}  // namespace

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
