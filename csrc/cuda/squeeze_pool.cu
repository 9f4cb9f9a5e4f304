// skelops::squeeze_pool on torch tensors.
#include "kernels/squeeze_pool.cuh"

#include "tensors.cuh"

namespace skelops {
namespace {

Tensor int64_lengths(const std::optional<Tensor>& lengths) {
  return dense(lengths->scalar_type() == ScalarType::Long ? *lengths : torch::stable::to(*lengths, ScalarType::Long));
}

// Lets a kernel have more shared memory than the default 48 KB.
template <typename Kernel>
void allow_shared(Kernel kernel, int64_t bytes) {
  if (bytes > 48 * 1024) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

void forward(const Tensor& map, std::optional<Tensor> lengths, int64_t bodies, std::vector<Tensor> outputs) {
  bool channels_last;
  const Tensor x = as_map(map, channels_last);
  if (lengths) lengths = int64_lengths(lengths);
  const int64_t N = x.size(0) / bodies, C = x.size(1);
  const int T = static_cast<int>(x.size(2)), V = static_cast<int>(x.size(3));
  if (N * C == 0) return;
  const Squeeze p{lengths ? input<int64_t>(*lengths) : nullptr, C, static_cast<int>(bodies), T, V};
  const Launch launch(x);
  dispatch(x, [&](auto type) {
    using E = typename decltype(type)::type;
    E *frames = output<E>(outputs[0]), *joints = output<E>(outputs[1]), *mean = output<E>(outputs[2]);
    if (channels_last) {
      const dim3 grid(blocks(N), blocks(C, kLanes));
      squeeze_pool_channels_last_kernel<<<grid, kThreads, 0, launch.stream()>>>(input<E>(x), p, frames, joints, mean);
    } else {
      const int64_t bytes = squeeze_shared_bytes(T, V);
      allow_shared(squeeze_pool_kernel<E>, bytes);
      squeeze_pool_kernel<<<blocks(N * C), kThreads, bytes, launch.stream()>>>(input<E>(x), p, staged_frames(T, V), frames,
                                                                               joints, mean);
    }
  });
}

void backward(const Tensor& frames, const Tensor& joints, const Tensor& mean, std::optional<Tensor> lengths, int64_t bodies,
              bool channels_last, std::vector<Tensor> outputs) {
  const Tensor f = dense(frames), j = dense(joints), m = dense(mean), grad = outputs[0];
  if (lengths) lengths = int64_lengths(lengths);
  const int64_t B = grad.size(0), C = grad.size(1);
  const int T = static_cast<int>(grad.size(2)), V = static_cast<int>(grad.size(3));
  if (B * C == 0) return;
  const Squeeze p{lengths ? input<int64_t>(*lengths) : nullptr, C, static_cast<int>(bodies), T, V};
  const Launch launch(grad);
  dispatch(grad, [&](auto type) {
    using E = typename decltype(type)::type;
    if (channels_last) {
      const dim3 grid(blocks(B), blocks(C, kLanes));
      squeeze_pool_backward_channels_last_kernel<<<grid, kThreads, 0, launch.stream()>>>(input<E>(f), input<E>(j), input<E>(m),
                                                                                         p, output<E>(grad));
    } else {
      const int staged = T < kStage ? T : kStage;
      const int64_t bytes = sizeof(float) * (static_cast<int64_t>(staged) + V);
      allow_shared(squeeze_pool_backward_kernel<E>, bytes);
      squeeze_pool_backward_kernel<<<blocks(B * C), kThreads, bytes, launch.stream()>>>(input<E>(f), input<E>(j), input<E>(m),
                                                                                        p, staged, output<E>(grad));
    }
  });
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cuda, CUDA, m) {
  m.impl("squeeze_pool", TORCH_BOX(&skelops::forward));
  m.impl("squeeze_pool_backward", TORCH_BOX(&skelops::backward));
}
