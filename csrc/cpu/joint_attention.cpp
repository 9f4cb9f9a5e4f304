// skelops::joint_attention on torch tensors.
#include "kernels/joint_attention.h"

#include "tensors.h"

namespace skelops {
namespace {

JointAttention pass(const Map& source, const Map& target, const std::optional<Tensor>& alpha, int64_t heads, bool frames, bool softmax,
                    double scale) {
  return {source.B, source.T, source.V, heads, source.C / heads, frames, softmax, dtype_of(source.tensor),
          source.input(), target.input(), alpha ? floats(*alpha) : nullptr, static_cast<float>(scale)};
}

void forward(const Tensor& source, const Tensor& target, std::optional<Tensor> static_part, std::optional<Tensor> alpha, int64_t heads,
             bool frames, bool softmax, double scale, std::vector<Tensor> outputs) {
  const Map x = as_map(source, Slices::all), h = as_map(target, Slices::all);
  if (static_part) static_part = to_float(*static_part);
  if (alpha) alpha = to_float(*alpha);
  const JointAttention p = pass(x, h, alpha, heads, frames, softmax, scale);
  const bool plain = !static_part && !alpha;
  const JointAttentionOutput out{static_part ? floats(*static_part) : nullptr, output_data(outputs[0]), plain ? nullptr : output_data(outputs[1])};
  const auto kernel = joint_attention_at_level();
  for_chunks(p.items(), [&](int64_t, int64_t begin, int64_t end) { kernel(p, out, begin, end); });
}

void backward(const Tensor& grad, const Tensor& source, const Tensor& target, const Tensor& active, std::optional<Tensor> alpha, int64_t heads,
              bool frames, bool softmax, double scale, bool needs_source, bool needs_target, bool needs_static, bool needs_alpha,
              std::vector<Tensor> outputs) {
  const Map x = as_map(source, Slices::all), h = as_map(target, Slices::all);
  if (alpha) alpha = to_float(*alpha);
  const JointAttention p = pass(x, h, alpha, heads, frames, softmax, scale);
  const Tensor upstream = dense(grad, source.scalar_type()), kept = dense(active, source.scalar_type());
  const JointAttentionGradients g{upstream.const_data_ptr(), kept.const_data_ptr(), needs_source ? as_map(outputs[0]).output() : MapData{},
                                  needs_target ? as_map(outputs[1]).output() : MapData{}};
  const int64_t threads = torch::stable::get_num_threads(), of_static = needs_static ? heads * p.pairs() : 0;
  std::vector<float> static_sums(threads * of_static, 0.0f), total(heads);
  std::vector<double> alpha_sums(threads * heads, 0.0);
  const auto kernel = joint_attention_backward_at_level();
  const int64_t chunks = for_chunks(p.items(), [&](int64_t chunk, int64_t begin, int64_t end) {
    kernel(p, g, begin, end, {needs_static ? static_sums.data() + chunk * of_static : nullptr, alpha_sums.data() + chunk * heads});
  });
  for (int64_t chunk = 1; chunk < chunks; ++chunk) {
    for (int64_t i = 0; i < of_static; ++i) static_sums[i] += static_sums[chunk * of_static + i];
    for (int64_t s = 0; s < heads; ++s) alpha_sums[s] += alpha_sums[chunk * heads + s];
  }
  if (needs_static) store_as(outputs[2], static_sums.data());
  std::copy_n(alpha_sums.begin(), heads, total.begin());
  if (needs_alpha) store_as(outputs[3], total.data());
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cpu, CPU, m) {
  m.impl("joint_attention", TORCH_BOX(&skelops::forward));
  m.impl("joint_attention_backward", TORCH_BOX(&skelops::backward));
}
