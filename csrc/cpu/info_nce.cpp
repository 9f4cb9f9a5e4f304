// skelops::info_nce on torch tensors.
#include "kernels/info_nce.h"

#include <cmath>
#include <numeric>

#include "queue_pass.h"

namespace skelops {
namespace {

using Optional = std::optional<Tensor>;

std::optional<Tensor> contiguous(const Optional& x) { return x ? Optional(torch::stable::contiguous(*x)) : x; }

// The rows of a call; the tensors hold the memory that p points to.
struct Rows {
  Tensor query, key;
  Optional extra_positives, extra_negatives;
  InfoNCE p;

  Rows(const Tensor& q, const Tensor& k, const Optional& positives, const Optional& negatives, double temperature, bool normalize)
      : query(torch::stable::contiguous(q)), key(torch::stable::contiguous(k)), extra_positives(contiguous(positives)),
        extra_negatives(contiguous(negatives)) {
    const auto vectors = [](const Tensor& x) { return Vectors{x.const_data_ptr(), nullptr, dtype_of(x)}; };
    p = {vectors(query), vectors(key), {}, {}, query.size(0), query.size(1), 0, 0, temperature, normalize, nullptr};
    if (extra_positives) p.extra_positives = vectors(*extra_positives), p.P = extra_positives->size(1);
    if (extra_negatives) p.extra_negatives = vectors(*extra_negatives), p.E = extra_negatives->size(1);
  }
};

void forward(const Tensor& query, const Tensor& key, const Tensor& queue, Optional extra_positives, Optional extra_negatives,
             Optional valid, double temperature, bool normalize, bool each, bool averaged, bool gradient, std::vector<Tensor> outputs) {
  Rows rows(query, key, extra_positives, extra_negatives, temperature, normalize);
  InfoNCE& p = rows.p;
  auto* loss = static_cast<float*>(output_data(outputs[0]));
  if (p.N == 0) {
    if (!each) *loss = averaged ? NAN : 0.0f;
    return;
  }
  float* memory = scratch(6, 3 * p.N);
  const InfoNCEResult result{each ? loss : scratch(5, p.N), static_cast<float*>(output_data(outputs[1])), memory + 2 * p.N,
                             static_cast<int64_t*>(outputs[2].mutable_data_ptr()),
                             gradient ? static_cast<float*>(output_data(outputs[4])) : nullptr};
  p.logits = static_cast<float*>(output_data(outputs[3]));
  const InfoNCEPass to{memory, memory + p.N};
  const auto prepare = info_nce_prepare_at_level();
  const int64_t grain = row_grain(p.D * (1 + p.P + p.E));
  parallel_for(0, p.N, grain, [&](int64_t begin, int64_t end) { prepare(p, to, begin, end); });

  QueuePass q = plan_pass(rows.query, queue, filled(queue, valid));
  q.factors = to.factors, q.thresholds = to.thresholds;
  give_partials(q, true, result.mean);
  const auto pass = queue_pass_at_level();
  parallel_for(0, q.blocks * q.chunks, 1, [&](int64_t begin, int64_t end) { pass(q, begin, end); });

  const QueueMerge m = merge_of(q, result.lse, memory + 2 * p.N, result.rank, result.mean);
  const auto merge = queue_merge_at_level();
  const auto finish = info_nce_finish_at_level();
  parallel_for(0, p.N, row_grain(p.D * (q.chunks + 1 + p.P + p.E)), [&](int64_t begin, int64_t end) {
    merge(m, begin, end);
    finish(p, result, begin, end);
  });
  if (!each) *loss = static_cast<float>(std::accumulate(result.loss, result.loss + p.N, 0.0) / (averaged ? p.N : 1));
}

void backward(Optional loss_gradient, Optional lse_gradient, const Tensor& query, const Tensor& key, Optional extra_positives,
              Optional extra_negatives, const Tensor& log_weights, const Tensor& mean, double temperature, bool normalize,
              bool each, bool averaged, std::vector<bool> needs, std::vector<Tensor> outputs) {
  Rows rows(query, key, extra_positives, extra_negatives, temperature, normalize);
  InfoNCE& p = rows.p;
  if (p.N == 0) return;
  const Tensor kept[2] = {torch::stable::contiguous(log_weights), torch::stable::contiguous(mean)};
  const Optional upstream[2] = {contiguous(loss_gradient), contiguous(lse_gradient)};
  const auto floats = [](const auto& x) { return static_cast<const float*>(input_data(x)); };
  Vectors* vectors[4] = {&p.query, &p.key, &p.extra_positives, &p.extra_negatives};
  for (int i = 0; i < 4; ++i)
    if (needs[i]) vectors[i]->gradient = output_data(outputs[i]);
  p.logits = const_cast<float*>(floats(kept[0]));
  const InfoNCEUpstream g{floats(upstream[0]), floats(upstream[1]), each, averaged ? 1.0f / p.N : 1.0f, floats(kept[1])};
  const auto kernel = info_nce_backward_at_level();
  parallel_for(0, p.N, row_grain(2 * p.D * (2 + p.P + p.E)), [&](int64_t begin, int64_t end) { kernel(p, g, begin, end); });
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cpu, CPU, m) {
  m.impl("info_nce", TORCH_BOX(&skelops::forward));
  m.impl("info_nce_backward", TORCH_BOX(&skelops::backward));
}
