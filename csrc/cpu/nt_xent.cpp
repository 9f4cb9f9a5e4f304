// skelops::nt_xent on torch tensors.
#include "kernels/nt_xent.h"

#include <cmath>
#include <numeric>

#include "tensors.h"

namespace skelops {
namespace {

using Step = void (*)(const NTXent&, const NTXentClip&, int64_t, int64_t);

Tensor with_dense_rows(const Tensor& x) { return x.stride(3) == 1 || x.size(3) <= 1 ? x : torch::stable::contiguous(x); }

NTXent contrast(const Tensor& tokens, const std::vector<int64_t>& pairs, double temperature) {
  NTXent p{};
  p.tokens = tokens.const_data_ptr(), p.dtype = dtype_of(tokens);
  p.set_stride = tokens.stride(0), p.clip_stride = tokens.stride(1), p.token_stride = tokens.stride(2);
  p.S = tokens.size(0), p.N = tokens.size(1), p.P = tokens.size(2), p.D = tokens.size(3);
  p.G = static_cast<int64_t>(pairs.size()) / 2, p.pairs = pairs.data();
  p.scale = static_cast<float>(1 / temperature);
  return p;
}

// Runs the steps of every clip: many clips side by side, each in the cache of its core; of few clips the items of each.
template <typename... Steps>
void run(const NTXent& p, Steps... steps) {
  constexpr int64_t least = 1 << 18;  // products of two numbers that a thread should have to do
  const int64_t tokens = p.S * p.P, items = p.items(), products = tokens * (tokens + 32) * p.D + 1;
  const auto memory = [&] { return scratch(0, NTXentClip::floats(p)); };
  if (p.N >= torch::stable::get_num_threads()) {
    parallel_for(0, p.N, (least + products - 1) / products, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const NTXentClip clip(p, n, memory());
        (steps(p, clip, 0, items), ...);
      }
    });
    return;
  }
  for (int64_t n = 0; n < p.N; ++n) {
    const NTXentClip clip(p, n, memory());
    const auto share = [&](Step step) {
      parallel_for(0, items, (least * items + products - 1) / products, [&](int64_t begin, int64_t end) { step(p, clip, begin, end); });
    };
    (share(steps), ...);
  }
}

void forward(const Tensor& tokens, std::vector<int64_t> pairs, double temperature, std::vector<Tensor> outputs) {
  const Tensor x = with_dense_rows(tokens);
  NTXent p = contrast(x, pairs, temperature);
  auto* loss = static_cast<float*>(output_data(outputs[0]));
  const int64_t terms = 2 * p.N * p.P;
  p.losses = scratch(2, p.G * terms);
  p.most = static_cast<float*>(output_data(outputs[1])), p.log_total = static_cast<float*>(output_data(outputs[2]));
  if (terms) run(p, nt_xent_normalize_at_level(), nt_xent_multiply_at_level(), nt_xent_losses_at_level());
  for (int64_t g = 0; g < p.G; ++g)
    loss[g] = terms ? static_cast<float>(std::accumulate(p.losses + g * terms, p.losses + (g + 1) * terms, 0.0) / terms) : NAN;
}

void backward(const Tensor& grad, const Tensor& tokens, const Tensor& most, const Tensor& log_total, std::vector<int64_t> pairs,
              double temperature, std::vector<Tensor> outputs) {
  if (!tokens.numel()) return;
  const Tensor x = with_dense_rows(tokens), upstream = to_float(grad), kept[2] = {to_float(most), to_float(log_total)};
  NTXent p = contrast(x, pairs, temperature);
  p.most = const_cast<float*>(floats(kept[0])), p.log_total = const_cast<float*>(floats(kept[1]));
  std::vector<float> rates(floats(upstream), floats(upstream) + p.G);
  for (float& rate : rates) rate *= static_cast<float>(1 / (temperature * 2 * p.P * p.N));
  p.rates = rates.data(), p.gradient = output_data(outputs[0]);
  run(p, nt_xent_normalize_at_level(), nt_xent_multiply_at_level(), nt_xent_shares_at_level(), nt_xent_weights_at_level(),
      nt_xent_gradients_at_level());
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cpu, CPU, m) {
  m.impl("nt_xent", TORCH_BOX(&skelops::forward));
  m.impl("nt_xent_backward", TORCH_BOX(&skelops::backward));
}
