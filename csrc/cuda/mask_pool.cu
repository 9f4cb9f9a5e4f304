// skelops::mask_pool on torch tensors. The gradient of a mask is left to Triton.
#include "kernels/mask_pool.cuh"

#include "tensors.cuh"

namespace skelops {
namespace {

// A mask of (T, V), (N, T, V) or (B, C, T, V) whose cells lie as those of the map do: copied where they do not.
Tensor as_mask(const Tensor& mask, bool channels_last) {
  if (mask.dim() < 4) return dense(mask);
  if (has_format(mask, channels_last)) return mask;
  if (!channels_last) return torch::stable::contiguous(mask);
  const Tensor by_frame = torch::stable::transpose(torch::stable::transpose(mask, 1, 2), 2, 3);  // (B, T, V, C)
  return torch::stable::transpose(torch::stable::transpose(torch::stable::contiguous(by_frame), 2, 3), 1, 2);
}

Masks masks_of(const Tensor& mask, const Tensor& map, bool by_size) {
  const int64_t B = map.size(0), rows = mask.dim() > 2 ? B / mask.size(0) : B;
  return {map.size(1), rows, static_cast<int>(map.size(2) * map.size(3)), mask.dim() == 4, by_size};
}

// Calls f(Type<element of the map>{}, Type<element of the mask>{}): the same, or bool.
template <typename F>
void dispatch_with_mask(const Tensor& x, const Tensor& mask, F f) {
  dispatch(x, [&](auto type) {
    if (mask.scalar_type() == ScalarType::Bool) return f(type, Type<bool>{});
    return f(type, type);
  });
}

void forward(const Tensor& map, const Tensor& given_mask, bool by_size, std::vector<Tensor> outputs) {
  bool channels_last;
  const Tensor x = as_map(map, channels_last);
  const int64_t B = x.size(0), C = x.size(1);
  if (B * C == 0) return;
  const Tensor mask = as_mask(given_mask, channels_last);
  const Masks p = masks_of(mask, x, by_size);
  const Launch launch(x);
  dispatch_with_mask(x, mask, [&](auto type, auto mask_type) {
    using E = typename decltype(type)::type;
    using M = typename decltype(mask_type)::type;
    E *inside = output<E>(outputs[0]), *outside = output<E>(outputs[1]);
    if (channels_last)
      mask_pool_channels_last_kernel<<<dim3(blocks(B), blocks(C, kLanes)), kThreads, 0, launch.stream()>>>(
          input<E>(x), input<M>(mask), p, inside, outside);
    else
      mask_pool_kernel<<<blocks(B * C), kThreads, 0, launch.stream()>>>(input<E>(x), input<M>(mask), p, inside, outside);
  });
}

void backward(const Tensor& grad_inside, const Tensor& grad_outside, const Tensor& given_mask, bool by_size, bool channels_last,
              std::vector<Tensor> outputs) {
  const Tensor grad = outputs[0], inside = dense(grad_inside), outside = dense(grad_outside);
  const int64_t B = grad.size(0), C = grad.size(1);
  if (B * C == 0) return;
  const Tensor mask = as_mask(given_mask, channels_last);
  const Masks p = masks_of(mask, grad, by_size);
  const Launch launch(grad);
  dispatch_with_mask(grad, mask, [&](auto type, auto mask_type) {
    using E = typename decltype(type)::type;
    using M = typename decltype(mask_type)::type;
    if (channels_last)
      mask_pool_backward_channels_last_kernel<<<dim3(blocks(B), blocks(C, kLanes)), kThreads, 0, launch.stream()>>>(
          input<E>(inside), input<E>(outside), input<M>(mask), p, output<E>(grad));
    else
      mask_pool_backward_kernel<<<blocks(B * C), kThreads, 0, launch.stream()>>>(
          input<E>(inside), input<E>(outside), input<M>(mask), p, output<E>(grad));
  });
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cuda, CUDA, m) {
  m.impl("mask_pool", TORCH_BOX(&skelops::forward));
  m.impl("mask_pool_backward", TORCH_BOX(&skelops::backward));
}
