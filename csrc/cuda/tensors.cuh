// What the bindings share: torch tensors turned into the plain pointers that kernels take, and where they are launched.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

#include "kernels/block.cuh"

namespace skelops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The device of a tensor made the current one, and torch's stream there.
class Launch {
 public:
  explicit Launch(const Tensor& x) : guard_(x.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }
  ~Launch() noexcept(false) {
    const cudaError_t error = cudaGetLastError();
    STD_TORCH_CHECK(error == cudaSuccess, "skelops: a CUDA kernel was not launched: ", cudaGetErrorString(error));
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

template <typename T>
struct Type {
  using type = T;
};

// Calls f(Type<element>{}) for the element type of a tensor.
template <typename F>
void dispatch(const Tensor& x, F f) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return f(Type<float>{});
    case ScalarType::BFloat16: return f(Type<__nv_bfloat16>{});
    case ScalarType::Half: return f(Type<__half>{});
    default: STD_TORCH_CHECK(false, "kernels take float32, bfloat16 and float16");
  }
}

template <typename T>
const T* input(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <typename T>
T* output(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

inline Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

// Whether a (B, C, T, V) map lies in memory in one of the two formats.
inline bool has_format(const Tensor& x, bool channels_last) {
  const int64_t C = x.size(1), T = x.size(2), V = x.size(3);
  const int64_t contiguous[4] = {C * T * V, T * V, V, 1}, last[4] = {C * T * V, 1, V * C, C};
  for (int i = 0; i < 4; ++i)
    if (x.size(i) > 1 && x.stride(i) != (channels_last ? last : contiguous)[i]) return false;
  return true;
}

// The map, copied to a contiguous one where it has neither format; and which one it has.
inline Tensor as_map(const Tensor& x, bool& channels_last) {
  channels_last = !has_format(x, false) && has_format(x, true);
  return channels_last || has_format(x, false) ? x : torch::stable::contiguous(x);
}

inline unsigned blocks(int64_t items, int64_t per_block = 1) { return static_cast<unsigned>((items + per_block - 1) / per_block); }

}  // namespace skelops
