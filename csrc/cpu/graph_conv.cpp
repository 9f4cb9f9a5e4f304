// skelops::graph_conv on torch tensors.
#include "kernels/graph_conv.h"

#include <algorithm>

#include "pairs.h"
#include "tensors.h"

namespace skelops {
namespace {

// Frames per tile: the rows in work (x, y, Z and H) fill a 1 MB L2 cache if none is in place; more than some hundred gain nothing.
constexpr int64_t kTileFloats = 256 * 1024, kMaxRows = 400;
// Output channels that a thread packs at least.
constexpr int64_t kGrain = 16;

GraphConvShape shape_of(const Map& x, const Tensor& weight, const Tensor& adjacency, const std::optional<Tensor>& bias) {
  const int64_t K = weight.size(0), O = weight.size(1);
  const int64_t rows = std::min(kMaxRows, kTileFloats / (2 * (K + 1) * padded(x.C) + 2 * padded(O)));
  // Both threads get work also where there is one sample.
  const int64_t most = x.B > 1 ? x.T : (x.T + 1) / 2;
  const int64_t frames = std::clamp<int64_t>(rows / x.V, 1, std::max<int64_t>(most, 1));
  return {x.B, x.C, x.T, x.V, O, K, adjacency.dim() == 4, bias && bias->dim() == 1, frames};
}

// weight (K, O, C) -> (K * Cp, Op), padding zero.
float* pack_forward(const Tensor& weight) {
  const Tensor source = to_float(weight);
  const int64_t K = source.size(0), O = source.size(1), C = source.size(2), size = padded(C) * padded(O);
  float* packed = scratch(kPackedSlot, K * size);
  const auto kernel = graph_conv_pack_at_level();
  parallel_for(0, K, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) kernel(floats(source) + k * O * C, O, C, packed + k * size);
  });
  return packed;
}

// weight (K, O, C) -> (O, K * Cp), padding zero.
float* pack_backward(const Tensor& weight) {
  const Tensor source = to_float(weight);
  const int64_t K = source.size(0), O = source.size(1), C = source.size(2), Cp = padded(C);
  float* packed = scratch(kPackedSlot, O * K * Cp);
  parallel_for(0, O, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin * K; row < end * K; ++row) {
      float* end_of_row = std::copy_n(floats(source) + (row % K * O + row / K) * C, C, packed + row * Cp);
      std::fill_n(end_of_row, Cp - C, 0.0f);
    }
  });
  return packed;
}

// Adds up the chunks' sums (O, K * Cp) in their order: the gradient of the weight (K, O, C).
void unpack(const GraphConvShape& s, float* sums, int64_t chunks, const Tensor& gradient) {
  const int64_t width = s.K * padded(s.C), size = s.O * width;
  FloatOutput result(gradient);
  float* values = result.data();
  parallel_for(0, s.O, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = 1; chunk < chunks; ++chunk)
      for (int64_t i = begin * width; i < end * width; ++i) sums[i] += sums[chunk * size + i];
    for (int64_t row = begin * s.K; row < end * s.K; ++row)
      std::copy_n(sums + row * padded(s.C), s.C, values + (row % s.K * s.O + row / s.K) * s.C);
  });
  result.store();
}

void forward(const Tensor& input, const Tensor& weight, const Tensor& adjacency, std::optional<Tensor> bias, bool stats,
             std::vector<Tensor> outputs) {
  const Map x = as_map(input, Slices::all), y = as_map(outputs[0]);
  const GraphConvShape shape = shape_of(x, weight, adjacency, bias);
  float* packed = pack_forward(weight);
  if (multiplies_pairs(x.tensor)) pair_weights(packed, shape.K, padded(shape.C), padded(shape.O));
  const Tensor edges = to_float(adjacency);
  if (bias) bias = to_float(*bias);
  const GraphConv p{shape,         dtype_of(x.tensor), x.input(), y.output(),
                    packed,        floats(edges),      bias ? floats(*bias) : nullptr};
  const auto kernel = graph_conv_at_level();
  StatsSums sums(stats, shape.O);
  const int64_t chunks = for_chunks(shape.items(), [&](int64_t chunk, int64_t begin, int64_t end) { kernel(p, begin, end, sums.of(chunk)); });
  if (stats) sums.store(chunks, outputs[1], outputs[2]);
}

void backward(const Tensor& grad, const Tensor& input, const Tensor& weight, const Tensor& adjacency, std::optional<Tensor> bias,
              const std::optional<Tensor>& y, const std::optional<Tensor>& grad_sum, const std::optional<Tensor>& grad_square_sum,
              bool needs_x, bool needs_weight, bool needs_adjacency, bool needs_bias, std::vector<Tensor> outputs) {
  const Map x = as_map(input, Slices::all), grad_y = as_map(grad, Slices::all);
  const GraphConvShape shape = shape_of(x, weight, adjacency, bias);
  const int64_t K = shape.K, O = shape.O, C = shape.C, Cp = padded(C), subsets = K * shape.V * shape.V;
  float* packed = pack_backward(weight);
  if (multiplies_pairs(x.tensor)) pair_weights(packed, 1, O, K * Cp);
  const Tensor edges = to_float(adjacency);
  if (bias) bias = to_float(*bias);
  const MapData grad_x = needs_x ? as_map(outputs[0]).output() : MapData{};
  const StatsTerms stats(y, grad_sum, grad_square_sum, O);
  const GraphConvBackward p{shape,          dtype_of(x.tensor), x.input(),     grad_y.input(),
                            grad_x,         stats.view(),       packed,        floats(edges),
                            bias ? floats(*bias) : nullptr, needs_weight, needs_adjacency, needs_bias};
  const auto kernel = graph_conv_backward_at_level();
  const int64_t threads = torch::stable::get_num_threads(), weights = O * K * Cp;
  float* weight_sums = scratch(kSumsSlot, threads * weights);
  std::vector<float> bias_sums(threads * K * O, 0.0f);
  std::vector<float> adjacency_sums(shape.samples() * subsets, 0.0f), heads(threads * subsets, 0.0f);
  const int64_t chunks = for_chunks(shape.items(), [&](int64_t chunk, int64_t begin, int64_t end) {
    if (begin == end) std::fill_n(weight_sums + chunk * weights, weights, 0.0f);
    kernel(p, begin, end,
           {weight_sums + chunk * weights, bias_sums.data() + chunk * K * O, adjacency_sums.data(), heads.data() + chunk * subsets});
  });
  for (int64_t chunk = 1; chunk < chunks; ++chunk) {
    for (int64_t i = 0; i < K * O; ++i) bias_sums[i] += bias_sums[chunk * K * O + i];
    float* sample = adjacency_sums.data() + shape.sample_of(shape.items() * chunk / chunks) * subsets;
    for (int64_t i = 0; i < subsets; ++i) sample[i] += heads[chunk * subsets + i];
  }
  if (needs_weight) unpack(shape, weight_sums, chunks, outputs[1]);
  if (needs_adjacency) store_as(outputs[2], adjacency_sums.data());
  if (needs_bias) store_as(outputs[3], bias_sums.data());
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cpu, CPU, m) {
  m.impl("graph_conv", TORCH_BOX(&skelops::forward));
  m.impl("graph_conv_backward", TORCH_BOX(&skelops::backward));
}
