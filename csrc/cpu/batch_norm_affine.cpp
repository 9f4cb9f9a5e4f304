// skelops::batch_norm_affine on torch tensors.
#include "kernels/batch_norm_affine.h"

#include "tensors.h"

namespace skelops {
namespace {

using torch::headeronly::ScalarType;

const double* doubles(const Tensor& x) { return static_cast<const double*>(x.const_data_ptr()); }

float* writable(const Tensor& x) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "kernels give float32");
  return static_cast<float*>(x.mutable_data_ptr());
}

std::optional<Tensor> floating(const std::optional<Tensor>& x) { return x ? std::optional(to_float(*x)) : std::nullopt; }

void forward(const Tensor& total, const Tensor& square_total, int64_t count, std::optional<Tensor> weight,
             std::optional<Tensor> bias, double eps, ScalarType, std::vector<Tensor> outputs) {
  const Tensor sum = dense(total, ScalarType::Double), square_sum = dense(square_total, ScalarType::Double);
  const auto weights = floating(weight), biases = floating(bias);
  const BatchNormAffine p{doubles(sum), doubles(square_sum), static_cast<double>(count), eps, weights ? floats(*weights) : nullptr,
                          biases ? floats(*biases) : nullptr, sum.numel()};
  batch_norm_affine_at_level()(p, writable(outputs[0]), writable(outputs[1]), writable(outputs[2]), writable(outputs[3]));
}

void backward(const Tensor& grad_scale, const Tensor& grad_shift, const Tensor& total, const Tensor& square_total, int64_t count,
              std::optional<Tensor> weight, double eps, ScalarType, std::vector<Tensor> outputs) {
  const Tensor sum = dense(total, ScalarType::Double), square_sum = dense(square_total, ScalarType::Double);
  const Tensor of_scale = to_float(grad_scale), of_shift = to_float(grad_shift);
  const auto weights = floating(weight);
  const BatchNormAffine p{doubles(sum), doubles(square_sum), static_cast<double>(count), eps, weights ? floats(*weights) : nullptr,
                          nullptr, sum.numel()};
  std::vector<float> grad_weight(weight ? p.C : 0);
  batch_norm_affine_backward_at_level()(p, {floats(of_scale), floats(of_shift), static_cast<double*>(outputs[0].mutable_data_ptr()),
                                            static_cast<double*>(outputs[1].mutable_data_ptr()), weight ? grad_weight.data() : nullptr});
  if (weight) store_as(outputs[2], grad_weight.data());
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cpu, CPU, m) {
  m.impl("batch_norm_affine", TORCH_BOX(&skelops::forward));
  m.impl("batch_norm_affine_backward", TORCH_BOX(&skelops::backward));
}
