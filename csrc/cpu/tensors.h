// What the bindings share: torch tensors turned into the plain pointers and strides that kernels take.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <optional>
#include <vector>

#include "kernels/map.h"

namespace skelops {

using torch::stable::Tensor;
using torch::stable::parallel_for;

inline Dtype dtype_of(const Tensor& x) {
  const auto type = x.scalar_type();
  if (type == torch::headeronly::ScalarType::Float) return Dtype::f32;
  STD_TORCH_CHECK(type == torch::headeronly::ScalarType::BFloat16, "kernels take float32 and bfloat16");
  return Dtype::bf16;
}

// The memory of a tensor about to be written whole. A fresh large tensor costs a page fault per 4 KB when first touched,
// which is most of the time of a memory-bound kernel; huge pages cost one per 2 MB.
inline void* output_data(const Tensor& x) {
  auto* data = static_cast<char*>(x.mutable_data_ptr());
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t huge = 2 << 20;
  const int64_t bytes = x.numel() * (x.scalar_type() == torch::headeronly::ScalarType::BFloat16 ? 2 : 4);
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + huge - 1) / huge * huge;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / huge * huge;
  if (last > first)
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return data;
}

// A (B, C, T, V) map in one of the two formats that kernels read; any other is copied to a contiguous one.
struct Map {
  Tensor tensor;
  bool channels_last;
  int64_t B, C, T, V;
  int64_t pitch;

  MapData input() const { return {const_cast<void*>(tensor.const_data_ptr()), channels_last, pitch}; }
  MapData output() const { return {output_data(tensor), channels_last, pitch}; }
};

// Which slices of the channels of wider maps a kernel takes in place: none, those of channels_last maps, or of both formats.
enum class Slices { none, of_rows, all };

inline Map as_map(const Tensor& x, Slices slices = Slices::none) {
  const int64_t B = x.size(0), C = x.size(1), T = x.size(2), V = x.size(3);
  const int64_t sizes[4] = {B, C, T, V};
  const auto has_strides = [&](int64_t b, int64_t c, int64_t t, int64_t v) {
    const int64_t strides[4] = {b, c, t, v};
    for (int i = 0; i < 4; ++i)
      if (sizes[i] > 1 && x.stride(i) != strides[i]) return false;
    return true;
  };
  const int64_t channels = slices == Slices::all && B > 1 && T * V > 0 ? x.stride(0) / (T * V) : C;
  if (channels >= C && has_strides(channels * T * V, T * V, V, 1)) return {x, false, B, C, T, V, channels};
  const int64_t pitch = slices == Slices::none ? C : V > 1 ? x.stride(3) : T > 1 ? x.stride(2) : B > 1 ? x.stride(0) : C;
  if (pitch >= C && has_strides(pitch * T * V, 1, V * pitch, pitch)) return {x, true, B, C, T, V, pitch};
  return {torch::stable::contiguous(x), false, B, C, T, V, C};
}

// A contiguous tensor of the type, which is the given one where it is that already (without the cost of asking torch).
inline Tensor dense(const Tensor& x, torch::headeronly::ScalarType type) {
  const Tensor typed = x.scalar_type() == type ? x : torch::stable::to(x, type);
  return typed.is_contiguous() ? typed : torch::stable::contiguous(typed);
}

inline Tensor to_float(const Tensor& x) { return dense(x, torch::headeronly::ScalarType::Float); }

inline Tensor to_int64(const Tensor& x) { return dense(x, torch::headeronly::ScalarType::Long); }

inline const void* input_data(const Tensor& x) { return x.const_data_ptr(); }

inline const float* floats(const Tensor& x) { return static_cast<const float*>(x.const_data_ptr()); }

// Writes float values into a contiguous tensor of either dtype.
inline void store_as(const Tensor& target, const float* values) {
  const int64_t n = target.numel();
  if (dtype_of(target) == Dtype::f32) {
    std::copy_n(values, n, static_cast<float*>(target.mutable_data_ptr()));
  } else {
    Tensor out = target;
    torch::stable::copy_(out, torch::stable::from_blob(const_cast<float*>(values), target.sizes(), target.strides(), target.device(), torch::headeronly::ScalarType::Float));
  }
}

// The memory of a contiguous tensor about to be written as floats; one of another dtype is written by `store`.
class FloatOutput {
 public:
  explicit FloatOutput(const Tensor& target) : target_(target), is_float_(dtype_of(target) == Dtype::f32), values_(is_float_ ? 0 : target.numel()) {}

  float* data() { return is_float_ ? static_cast<float*>(output_data(target_)) : values_.data(); }
  void store() const {
    if (!is_float_) store_as(target_, values_.data());
  }

 private:
  Tensor target_;
  bool is_float_;
  std::vector<float> values_;
};

// (rows * n) values as (rows, width) floats, zero past n; empty where there are none.
inline std::vector<float> padded_rows(const std::optional<Tensor>& values, int64_t rows, int64_t width) {
  if (!values) return {};
  const Tensor source = to_float(*values);
  const int64_t n = source.numel() / rows;
  std::vector<float> result(rows * width, 0.0f);
  for (int64_t row = 0; row < rows; ++row) std::copy_n(floats(source) + row * n, n, result.data() + row * width);
  return result;
}

inline const float* data_of(const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); }

// Keeps what a StatsGradient points to: grad_sum and 2 grad_square_sum in float, padded.
class StatsTerms {
 public:
  StatsTerms(const std::optional<Tensor>& y, const std::optional<Tensor>& grad_sum, const std::optional<Tensor>& grad_square_sum, int64_t channels)
      : used_(grad_sum || grad_square_sum), terms_(used_ ? 2 * padded(channels) : 0, 0.0f) {
    if (grad_sum) fill(*grad_sum, 1, terms_.data());
    if (!grad_square_sum) return;
    fill(*grad_square_sum, 2, terms_.data() + padded(channels));
    y_ = as_map(*y, Slices::all);
  }

  StatsGradient view() const {
    return {y_ ? y_->input() : MapData{}, used_ ? terms_.data() : nullptr, used_ ? terms_.data() + terms_.size() / 2 : nullptr};
  }

 private:
  static void fill(const Tensor& x, double factor, float* to) {
    const Tensor source = dense(x, torch::headeronly::ScalarType::Double);
    const auto* values = static_cast<const double*>(source.const_data_ptr());
    for (int64_t i = 0; i < source.numel(); ++i) to[i] = static_cast<float>(factor * values[i]);
  }

  bool used_;
  std::vector<float> terms_;
  std::optional<Map> y_;
};

// Runs body(chunk, begin, end) over equal ranges of items, one per thread: the ranges, and so the sums over them, repeat.
template <typename Body>
int64_t for_chunks(int64_t items, const Body& body) {
  const int64_t chunks = std::max<int64_t>(1, std::min<int64_t>(items, torch::stable::get_num_threads()));
  parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) body(i, items * i / chunks, items * (i + 1) / chunks);
  });
  return chunks;
}

// out[i] = sums[i] + sums[n + i] + ...: what the chunks summed, in their order.
template <typename T>
void merge(const std::vector<double>& sums, int64_t chunks, int64_t n, T* out) {
  for (int64_t i = 0; i < n; ++i) {
    double total = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) total += sums[chunk * n + i];
    out[i] = static_cast<T>(total);
  }
}

// The sums of the channels of a map and of their squares, (2, channels) for each chunk, where they are asked for.
class StatsSums {
 public:
  StatsSums(bool asked, int64_t channels) : size_(asked ? 2 * channels : 0), sums_(size_ * torch::stable::get_num_threads(), 0.0) {}

  double* of(int64_t chunk) { return size_ ? sums_.data() + chunk * size_ : nullptr; }

  void store(int64_t chunks, const Tensor& sum, const Tensor& square_sum) const {
    std::vector<double> merged(size_);
    merge(sums_, chunks, size_, merged.data());
    put(merged.data(), sum);
    put(merged.data() + size_ / 2, square_sum);
  }

 private:
  void put(const double* from, const Tensor& to) const {
    const int64_t channels = size_ / 2;
    if (to.scalar_type() == torch::headeronly::ScalarType::Double)
      std::copy_n(from, channels, static_cast<double*>(to.mutable_data_ptr()));
    else
      std::copy_n(from, channels, static_cast<float*>(to.mutable_data_ptr()));
  }

  int64_t size_;
  std::vector<double> sums_;
};

inline const void* input_data(const std::optional<Tensor>& x) { return x ? x->const_data_ptr() : nullptr; }

}  // namespace skelops
