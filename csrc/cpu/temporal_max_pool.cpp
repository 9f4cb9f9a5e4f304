// skelops::temporal_max_pool on torch tensors.
#include "kernels/temporal_max_pool.h"

#include "tensors.h"

namespace skelops {
namespace {

void forward(const Tensor& input, const Tensor& scale, const Tensor& shift, int64_t stride, bool stats, std::vector<Tensor> outputs) {
  const Map x = as_map(input, Slices::all), y = as_map(outputs[0], Slices::all);
  const std::vector<float> scales = padded_rows(scale, 1, padded(x.C)), shifts = padded_rows(shift, 1, padded(x.C));
  const TemporalMaxPool p{x.C, x.T, x.V, stride, dtype_of(x.tensor), x.input(), y.output(), scales.data(), shifts.data(), {}, {}};
  const auto kernel = temporal_max_pool_at_level();
  StatsSums sums(stats, x.C);
  const int64_t chunks = for_chunks(x.B, [&](int64_t chunk, int64_t begin, int64_t end) { kernel(p, begin, end, sums.of(chunk)); });
  if (stats) sums.store(chunks, outputs[1], outputs[2]);
}

void backward(const Tensor& grad, const Tensor& input, const Tensor& scale, const Tensor& shift, const std::optional<Tensor>& grad_sum,
              const std::optional<Tensor>& grad_square_sum, int64_t stride, std::vector<Tensor> outputs) {
  const Map x = as_map(input, Slices::all), g = as_map(grad, Slices::all);
  const std::vector<float> scales = padded_rows(scale, 1, padded(x.C)), shifts = padded_rows(shift, 1, padded(x.C));
  // The kernel has the pooled values at hand; any map stands for them.
  const StatsTerms stats(grad, grad_sum, grad_square_sum, x.C);
  const TemporalMaxPool p{x.C,       x.T,           x.V,           stride,       dtype_of(x.tensor),              x.input(),
                          g.input(), scales.data(), shifts.data(), stats.view(), as_map(outputs[0], Slices::all).output()};
  const auto kernel = temporal_max_pool_backward_at_level();
  StatsSums sums(true, x.C);
  const int64_t chunks = for_chunks(x.B, [&](int64_t chunk, int64_t begin, int64_t end) { kernel(p, begin, end, sums.of(chunk)); });
  sums.store(chunks, outputs[1], outputs[2]);
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cpu, CPU, m) {
  m.impl("temporal_max_pool", TORCH_BOX(&skelops::forward));
  m.impl("temporal_max_pool_backward", TORCH_BOX(&skelops::backward));
}
