// Means inside and outside a mask from one read of the map, and the gradient to the map in one write.
#include "mask_sums.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

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

}  // namespace skelops::SKELOPS_LEVEL
