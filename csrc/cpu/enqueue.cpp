// skelops::enqueue_ on torch tensors.
#include "kernels/enqueue.h"

#include "tensors.h"

namespace skelops {
namespace {

void enqueue_(Tensor queue, const Tensor& keys, Tensor pointer) {
  const int64_t Q = queue.size(0), n = keys.size(0);
  if (Q == 0) return;
  STD_TORCH_CHECK(pointer.scalar_type() == torch::headeronly::ScalarType::Long, "pointer: expected int64");
  auto* next = static_cast<int64_t*>(pointer.mutable_data_ptr());
  const int64_t kept = n < Q ? n : Q, first = (*next % Q + Q + n - kept) % Q;
  Enqueue p{queue.mutable_data_ptr(), keys.const_data_ptr(), Q, queue.size(1), kept, first};
  p.queue_slot = queue.stride(0), p.queue_dim = queue.stride(1), p.key_row = keys.stride(0), p.key_dim = keys.stride(1);
  p.queue_dtype = dtype_of(queue), p.key_dtype = dtype_of(keys);
  p.keys = static_cast<const char*>(p.keys) + (n - kept) * p.key_row * (p.key_dtype == Dtype::f32 ? 4 : 2);
  const auto kernel = enqueue_at_level();
  const int64_t grain = (1 << 16) / (p.D + 1) + 1;
  parallel_for(0, kept, grain, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  *next = (first + kept) % Q;
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cpu, CPU, m) {
  m.impl("enqueue_", TORCH_BOX(&skelops::enqueue_));
}
