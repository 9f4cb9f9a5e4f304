// skelops::linear on torch tensors.
#include "kernels/linear.h"

#include "pairs.h"
#include "tensors.h"

namespace skelops {
namespace {

// A matrix by its strides along the axis that stays and along the one that is summed over.
struct Operand {
  const void* data;
  int64_t kept, summed;
};

Operand by_rows(const Tensor& x) { return {x.const_data_ptr(), x.size(1), 1}; }
Operand transposed(const Tensor& x) { return {x.const_data_ptr(), 1, x.size(1)}; }

Dtype operand_type(const Tensor& x) {
  const Dtype type = dtype_of(x);
  STD_TORCH_CHECK(type == Dtype::f32 || multiplies_pairs(x), "linear: this CPU does not multiply bfloat16");
  return type;
}

void multiply(const Operand& a, Dtype a_type, const Operand& b, int64_t K, const Tensor& c, int64_t M, const float* bias) {
  const int64_t N = M ? c.numel() / M : 0;
  if (!N) return;
  const MatrixProduct p{M, N, K, a.data, a.kept, a.summed, b.data, b.summed, b.kept, output_data(c), bias, a_type, dtype_of(c)};
  const auto kernel = matrix_product_at_level();
  for_chunks(p.items(), [&](int64_t, int64_t begin, int64_t end) { kernel(p, begin, end); });
}

void forward(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, std::vector<Tensor> outputs) {
  const Dtype type = operand_type(x);
  const Tensor rows = dense(x, x.scalar_type()), matrix = to_float(weight);
  const Tensor added = bias ? to_float(*bias) : matrix;
  multiply(by_rows(rows), type, by_rows(matrix), rows.size(1), outputs[0], rows.size(0), bias ? floats(added) : nullptr);
}

void backward(const Tensor& grad, const Tensor& x, const Tensor& weight, std::vector<bool> needs, std::vector<Tensor> outputs) {
  const Dtype type = operand_type(grad);
  const Tensor g = dense(grad, grad.scalar_type()), rows = dense(x, grad.scalar_type()), matrix = to_float(weight);
  if (needs[0]) multiply(by_rows(g), type, transposed(matrix), g.size(1), outputs[0], g.size(0), nullptr);
  if (needs[1]) multiply(transposed(g), type, transposed(rows), g.size(0), outputs[1], g.size(1), nullptr);
  const float one = 1;
  const bf16 ones[2] = {{0x3f80}, {0x3f80}};
  const void* constant = type == Dtype::f32 ? static_cast<const void*>(&one) : ones;
  if (needs[2]) multiply({constant, 0, 0}, type, transposed(g), g.size(0), outputs[2], 1, nullptr);
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cpu, CPU, m) {
  m.impl("linear", TORCH_BOX(&skelops::forward));
  m.impl("linear_backward", TORCH_BOX(&skelops::backward));
}
