// skelops::temporal_max_pool on torch tensors.
#include "kernels/temporal_max_pool.h"

#include "tensors.h"

namespace skelops {
namespace {

std::vector<float> padded_floats(const Tensor& vector) {
  const Tensor source = to_float(vector);
  std::vector<float> values(padded(source.numel()), 0.0f);
  std::copy_n(floats(source), source.numel(), values.data());
  return values;
}

// Runs body(begin, end, sums) over samples; merges the sums (2, C) of the chunks in their order.
template <typename Body>
std::vector<double> sum_samples(int64_t B, int64_t C, const Body& body) {
  std::vector<double> sums(torch::stable::get_num_threads() * 2 * C, 0.0);
  const int64_t chunks = for_chunks(B, [&](int64_t chunk, int64_t begin, int64_t end) { body(begin, end, sums.data() + chunk * 2 * C); });
  for (int64_t i = 2 * C; i < chunks * 2 * C; ++i) sums[i % (2 * C)] += sums[i];
  return sums;
}

void forward(const Tensor& input, const Tensor& scale, const Tensor& shift, int64_t stride, bool stats, std::vector<Tensor> outputs) {
  const Map x = as_map(input, Slices::all), y = as_map(outputs[0], Slices::all);
  const std::vector<float> scales = padded_floats(scale), shifts = padded_floats(shift);
  const TemporalMaxPool p{x.C, x.T, x.V, stride, dtype_of(x.tensor), x.input(), y.output(), scales.data(), shifts.data(), {}, {}};
  const auto kernel = temporal_max_pool_at_level();
  const auto sums = sum_samples(x.B, x.C, [&](int64_t begin, int64_t end, double* part) { kernel(p, begin, end, stats ? part : nullptr); });
  for (int64_t i = 0; stats && i < 2; ++i) std::copy_n(sums.data() + i * x.C, x.C, static_cast<double*>(outputs[1 + i].mutable_data_ptr()));
}

void backward(const Tensor& grad, const Tensor& input, const Tensor& scale, const Tensor& shift, const std::optional<Tensor>& grad_sum,
              const std::optional<Tensor>& grad_square_sum, int64_t stride, std::vector<Tensor> outputs) {
  const Map x = as_map(input, Slices::all), g = as_map(grad, Slices::all);
  const std::vector<float> scales = padded_floats(scale), shifts = padded_floats(shift);
  // The kernel has the pooled values at hand; any map stands for them.
  const StatsTerms stats(grad, grad_sum, grad_square_sum, x.C);
  const TemporalMaxPool p{x.C,       x.T,           x.V,           stride,       dtype_of(x.tensor),              x.input(),
                          g.input(), scales.data(), shifts.data(), stats.view(), as_map(outputs[0], Slices::all).output()};
  const auto kernel = temporal_max_pool_backward_at_level();
  const auto sums = sum_samples(x.B, x.C, [&](int64_t begin, int64_t end, double* part) { kernel(p, begin, end, part); });
  for (int64_t i = 0; i < 2; ++i) std::copy_n(sums.data() + i * x.C, x.C, static_cast<float*>(outputs[1 + i].mutable_data_ptr()));
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cpu, CPU, m) {
  m.impl("temporal_max_pool", TORCH_BOX(&skelops::forward));
  m.impl("temporal_max_pool_backward", TORCH_BOX(&skelops::backward));
}
