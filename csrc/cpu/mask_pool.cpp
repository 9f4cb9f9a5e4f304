// skelops::mask_pool on torch tensors.
#include "kernels/mask_pool.h"

#include "pool.h"

namespace skelops {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

// A (B, C, T, V) tensor in a format that is given rather than its own.
Tensor in_format(const Tensor& x, bool channels_last) {
  const Map map = as_map(x);
  if (map.channels_last == channels_last) return map.tensor;
  return torch::stable::contiguous(x, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// `kept` holds what the kernels read: a mask per channel in the format of the map.
Mask as_mask(const Tensor& mask, int64_t B, bool channels_last, bool by_size, Tensor& kept) {
  const bool per_channel = mask.dim() == 4;
  kept = per_channel ? in_format(mask, channels_last) : dense(mask);
  const int64_t masks = mask.dim() == 3 ? mask.size(0) : 1;
  return {input_data(kept), mask.scalar_type() == ScalarType::Bool, per_channel, masks ? B / masks : 0, by_size};
}

void forward(const Tensor& map, const Tensor& mask, bool by_size, std::vector<Tensor> outputs) {
  const Map x = as_map(map);
  Tensor kept;
  const MaskPool p{input_data(x.tensor),
                   as_mask(mask, x.B, x.channels_last, by_size, kept),
                   output_data(outputs[0]),
                   output_data(outputs[1]),
                   x.B,
                   x.C,
                   x.T * x.V,
                   piece(x.B, x.C),
                   dtype_of(x.tensor)};
  const int64_t width = x.channels_last ? p.width : 1;
  const auto kernel = x.channels_last ? mask_pool_channels_last_at_level() : mask_pool_at_level();
  parallel_for(0, p.B * pieces(p.C, width), grain(width * p.P), [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

void backward(const Tensor& inside, const Tensor& outside, const Tensor& mask, bool by_size, bool channels_last, std::vector<Tensor> outputs) {
  const Tensor i = dense(inside), o = dense(outside);
  const Tensor& x = outputs[0];
  Tensor kept;
  const MaskPoolBackward p{input_data(i),
                           input_data(o),
                           as_mask(mask, x.size(0), channels_last, by_size, kept),
                           output_data(x),
                           x.size(0),
                           x.size(1),
                           x.size(2) * x.size(3),
                           dtype_of(x)};
  const int64_t count = channels_last ? p.P : p.C;
  const auto kernel = channels_last ? mask_pool_backward_channels_last_at_level() : mask_pool_backward_at_level();
  parallel_for(0, p.B * count, grain(p.C * p.P / std::max<int64_t>(count, 1)), [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

void backward_mask(const Tensor& grad_inside, const Tensor& grad_outside, const Tensor& inside, const Tensor& outside, const Tensor& map,
                   const Tensor& mask, bool by_size, std::vector<Tensor> outputs) {
  const Tensor gi = dense(grad_inside), go = dense(grad_outside);
  const Tensor i = dense(inside), o = dense(outside);
  const bool per_channel = mask.dim() == 4;
  Map x = as_map(map);
  if (per_channel) {
    // The gradient has the format of the mask, and the map is read in it.
    x.channels_last = as_map(outputs[0]).channels_last;
    x.tensor = in_format(map, x.channels_last);
  }
  Tensor kept;
  const Mask how = as_mask(mask, x.B, x.channels_last, by_size, kept);
  const int64_t masks = mask.dim() == 3 ? mask.size(0) : 1, P = x.T * x.V;
  // Up to 2048 positions at once, whose sums stay in the first-level cache.
  const int64_t block = std::min<int64_t>(piece(masks, P), 2048);
  const MaskPoolBackwardMask p{input_data(gi), input_data(go), input_data(i), input_data(o), input_data(x.tensor), how,
                               output_data(outputs[0]), x.B, x.C, P, block, dtype_of(x.tensor)};
  const int64_t count = !per_channel ? masks * pieces(P, block) : x.B * (x.channels_last ? P : x.C);
  const auto kernel = x.channels_last ? mask_pool_backward_mask_channels_last_at_level() : mask_pool_backward_mask_at_level();
  parallel_for(0, count, grain(x.B * x.C * P / std::max<int64_t>(count, 1)), [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cpu, CPU, m) {
  m.impl("mask_pool", TORCH_BOX(&skelops::forward));
  m.impl("mask_pool_backward", TORCH_BOX(&skelops::backward));
  m.impl("mask_pool_backward_mask", TORCH_BOX(&skelops::backward_mask));
}
