// skelops::queue_attention on torch tensors.
#include "queue_pass.h"

namespace skelops {
namespace {

// The same factor for every row, in the calling thread's scratch.
const float* constant(int64_t N, double value) {
  float* factors = scratch(6, N);
  for (int64_t n = 0; n < N; ++n) factors[n] = static_cast<float>(value);
  return factors;
}

void forward(const Tensor& query, const Tensor& queue, double scale, std::optional<Tensor> valid, std::vector<Tensor> outputs) {
  const Tensor rows = torch::stable::contiguous(query);
  QueuePass p = plan_pass(rows, queue, filled(queue, valid));
  if (p.N == 0) return;
  auto* lse = static_cast<float*>(output_data(outputs[0]));
  auto* out = static_cast<float*>(output_data(outputs[1]));
  p.factors = constant(p.N, scale);
  give_partials(p, false, out);
  const auto pass = queue_pass_at_level();
  parallel_for(0, p.blocks * p.chunks, 1, [&](int64_t begin, int64_t end) { pass(p, begin, end); });
  const QueueMerge m = merge_of(p, lse, nullptr, nullptr, out);
  const auto merge = queue_merge_at_level();
  parallel_for(0, p.N, row_grain(p.D * p.chunks), [&](int64_t begin, int64_t end) { merge(m, begin, end); });
}

void backward(std::optional<Tensor> lse_gradient, const Tensor& gradient, const Tensor& query, const Tensor& queue, const Tensor& lse, const Tensor& out, double scale,
              std::optional<Tensor> valid, std::vector<Tensor> outputs) {
  const Tensor rows = torch::stable::contiguous(query), upstream = torch::stable::contiguous(gradient);
  const Tensor sums = torch::stable::contiguous(lse), means = torch::stable::contiguous(out);
  if (lse_gradient) lse_gradient = torch::stable::contiguous(*lse_gradient);
  QueuePass p = plan_pass(rows, queue, filled(queue, valid));
  if (p.N == 0) return;
  p.factors = constant(p.N, scale);
  p.total = scratch(7, p.chunks * p.N * (p.D + 1));
  p.out = p.total + p.chunks * p.N;
  const QueueBackward b{p, static_cast<const float*>(input_data(sums)), static_cast<const float*>(input_data(upstream))};
  const auto pass = queue_backward_at_level();
  parallel_for(0, p.blocks * p.chunks, 1, [&](int64_t begin, int64_t end) { pass(b, begin, end); });
  const QueueBackwardMerge m{p.total, p.out, static_cast<const float*>(input_data(means)), b.gradient, static_cast<const float*>(input_data(lse_gradient)), p.N, p.D, p.chunks,
                             static_cast<float>(scale), output_data(outputs[0]), p.query_dtype};
  const auto merge = queue_backward_merge_at_level();
  parallel_for(0, p.N, row_grain(p.D * p.chunks), [&](int64_t begin, int64_t end) { merge(m, begin, end); });
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cpu, CPU, m) {
  m.impl("queue_attention", TORCH_BOX(&skelops::forward));
  m.impl("queue_attention_backward", TORCH_BOX(&skelops::backward));
}
