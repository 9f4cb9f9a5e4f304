// skelops::enqueue_ on torch tensors.
#include "kernels/enqueue.cuh"

#include "tensors.cuh"

namespace skelops {
namespace {

constexpr int kRingThreads = 1024;
constexpr int64_t kOneBlock = 1 << 15;  // elements that one block writes sooner than a second launch starts

void enqueue_(Tensor queue, const Tensor& keys, Tensor pointer) {
  const int64_t Q = queue.size(0), n = keys.size(0);
  if (Q == 0) return;
  STD_TORCH_CHECK(pointer.scalar_type() == ScalarType::Long, "pointer: expected int64");
  // Of more keys than slots the last stay: two threads never write the same slot.
  const Ring p{Q, queue.size(1), n > Q ? n - Q : 0, n, queue.stride(0), queue.stride(1), keys.stride(0), keys.stride(1)};
  const int64_t elements = (n - p.first) * p.D;
  const bool alone = elements <= kOneBlock;
  const Launch launch(queue);
  dispatch(queue, [&](auto queue_type) {
    using S = typename decltype(queue_type)::type;
    dispatch(keys, [&](auto key_type) {
      using K = typename decltype(key_type)::type;
      enqueue_kernel<<<alone ? 1 : blocks(elements, kRingThreads), kRingThreads, 0, launch.stream()>>>(
          output<S>(queue), input<K>(keys), output<int64_t>(pointer), p, alone);
    });
  });
  if (!alone) advance_kernel<<<1, 1, 0, launch.stream()>>>(output<int64_t>(pointer), p);
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cuda, CUDA, m) {
  m.impl("enqueue_", TORCH_BOX(&skelops::enqueue_));
}
