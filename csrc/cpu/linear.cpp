// skelops::linear on torch tensors.
#include "kernels/linear.h"

#include "tensors.h"

namespace skelops {
namespace {

// A matrix by rows, or its transpose.
struct Operand {
  const float* data;
  int64_t row, column;
};

Operand by_rows(const Tensor& x) { return {floats(x), x.size(1), 1}; }
Operand transposed(const Tensor& x) { return {floats(x), 1, x.size(1)}; }

void multiply(const Operand& a, const Operand& b, int64_t K, const Tensor& c, int64_t M, const float* bias) {
  const int64_t N = M ? c.numel() / M : 0;
  if (!N) return;
  const MatrixProduct p{M, N, K, a.data, a.row, a.column, b.data, b.row, b.column, static_cast<float*>(c.mutable_data_ptr()), bias};
  const auto kernel = matrix_product_at_level();
  for_chunks(p.items(), [&](int64_t, int64_t begin, int64_t end) { kernel(p, begin, end); });
}

void forward(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, std::vector<Tensor> outputs) {
  const Tensor rows = to_float(x), matrix = to_float(weight);
  const Tensor added = bias ? to_float(*bias) : matrix;
  multiply(by_rows(rows), transposed(matrix), rows.size(1), outputs[0], rows.size(0), bias ? floats(added) : nullptr);
}

void backward(const Tensor& grad, const Tensor& x, const Tensor& weight, std::vector<bool> needs, std::vector<Tensor> outputs) {
  const Tensor g = to_float(grad), rows = to_float(x), matrix = to_float(weight);
  const int64_t R = g.size(0), O = g.size(1);
  const float one = 1.0f;
  if (needs[0]) multiply(by_rows(g), by_rows(matrix), O, outputs[0], R, nullptr);
  if (needs[1]) multiply(transposed(g), by_rows(rows), R, outputs[1], O, nullptr);
  if (needs[2]) multiply({&one, 0, 0}, by_rows(g), R, outputs[2], 1, nullptr);
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cpu, CPU, m) {
  m.impl("linear", TORCH_BOX(&skelops::forward));
  m.impl("linear_backward", TORCH_BOX(&skelops::backward));
}
