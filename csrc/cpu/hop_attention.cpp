// skelops::hop_attention on torch tensors.
#include "kernels/hop_attention.h"

#include "tensors.h"

namespace skelops {
namespace {

// Of a tile of the joints and channels of some heads; there are four, of up to 64 bytes per vector.
constexpr int64_t kTileVectors = 2048;
constexpr int64_t kItemsPerThread = 2;

// The arguments as kernels take them, and the memory that the pointers lead to.
struct Inputs {
  Map qkv, group_key;
  Tensor hop_key, group_bias, static_part;
  std::vector<int32_t> hops, groups;
  HopAttention p;

  Inputs(const Tensor& x, const Tensor& g, const Tensor& of_hop, const Tensor& bias, const Tensor& fixed, const Tensor& alpha,
         const Tensor& hop_indices, const Tensor& group_indices, int64_t heads, double scale)
      : qkv(as_map(x, Slices::of_rows)), group_key(as_map(g, Slices::of_rows)), hop_key(to_float(of_hop)), group_bias(to_float(bias)),
        static_part(to_float(fixed)) {
    const int64_t V = qkv.V, n_hops = hop_key.size(1);
    const Tensor hop_of = to_int64(hop_indices), group_of = to_int64(group_indices);
    const auto* hop = static_cast<const int64_t*>(hop_of.const_data_ptr());
    const auto* group = static_cast<const int64_t*>(group_of.const_data_ptr());
    // Values out of range are refused before, but not in compiled code, which must not leave the memory either.
    const auto within = [](int64_t value, int64_t count) { return static_cast<int32_t>(std::clamp<int64_t>(value, 0, count - 1)); };
    hops.resize(V * V);
    groups.resize(V);
    for (int64_t v = 0; v < V; ++v) {
      groups[v] = within(group[v], group_key.V);
      for (int64_t w = 0; w < V; ++w) hops[w * V + v] = within(hop[v * V + w], n_hops);
    }
    p = {qkv.B, qkv.T, V, group_key.V, heads, group_key.C / heads, n_hops, 1, dtype_of(x), qkv.input(), group_key.input(), floats(hop_key),
         floats(group_bias), floats(static_part), hops.data(), groups.data(), floats(to_float(alpha))[0], static_cast<float>(scale)};
  }

  // The frames of all samples lie at equal distances where every map is channels_last. Heads go together as far as their tiles
  // leave room in the L2 cache and enough items for all threads.
  void arrange(std::initializer_list<const Map*> others) {
    bool all = true;
    for (const auto& maps : {std::initializer_list<const Map*>{&qkv, &group_key}, others})
      for (const Map* map : maps) all = all && map->channels_last;
    if (all) p.T *= p.B, p.B = 1;
    const int64_t threads = torch::stable::get_num_threads(), items = p.items();
    for (int64_t heads = 2; heads <= p.heads; ++heads)
      if (p.heads % heads == 0 && heads * p.V * p.width <= kTileVectors && items / heads >= kItemsPerThread * threads) p.together = heads;
  }
};

void forward(const Tensor& qkv, const Tensor& group_key, const Tensor& hop_key, const Tensor& group_bias, const Tensor& static_part,
             const Tensor& alpha, const Tensor& hops, const Tensor& groups, int64_t heads, double scale, std::vector<Tensor> outputs) {
  Inputs inputs(qkv, group_key, hop_key, group_bias, static_part, alpha, hops, groups, heads, scale);
  const Map out = as_map(outputs[0]);
  inputs.arrange({&out});
  const MapData y = out.output();
  const auto kernel = hop_attention_at_level();
  for_chunks(inputs.p.items(), [&](int64_t, int64_t begin, int64_t end) { kernel(inputs.p, y, begin, end); });
}

void backward(const Tensor& grad, const Tensor& qkv, const Tensor& group_key, const Tensor& hop_key, const Tensor& group_bias,
              const Tensor& static_part, const Tensor& alpha, const Tensor& hops, const Tensor& groups, int64_t heads, double scale,
              std::vector<bool> needs, std::vector<Tensor> outputs) {
  Inputs inputs(qkv, group_key, hop_key, group_bias, static_part, alpha, hops, groups, heads, scale);
  const Map upstream = as_map(grad, Slices::of_rows);
  const Map of_qkv = needs[0] ? as_map(outputs[0]) : inputs.qkv, of_group_key = needs[1] ? as_map(outputs[1]) : inputs.group_key;
  inputs.arrange({&upstream, &of_qkv, &of_group_key});
  const HopAttention& p = inputs.p;
  const HopGradients gradients{upstream.input(), needs[0] ? of_qkv.output() : MapData{}, needs[1] ? of_group_key.output() : MapData{}};
  const int64_t of_hops = p.heads * p.n_hops * p.width, of_bias = p.heads * p.width, pairs = p.V * p.V;
  const int64_t of_static = needs[4] ? p.heads * pairs : 0, size = of_hops + of_bias + of_static;
  const int64_t threads = torch::stable::get_num_threads();
  std::vector<float> partials(threads * size, 0.0f);
  std::vector<double> of_alpha(threads, 0.0);
  const auto kernel = hop_attention_backward_at_level();
  const int64_t chunks = for_chunks(p.items(), [&](int64_t chunk, int64_t begin, int64_t end) {
    float* part = partials.data() + chunk * size;
    HopSums sums{part, part + of_hops, of_static ? part + of_hops + of_bias : nullptr, 0.0};
    kernel(p, gradients, begin, end, sums);
    of_alpha[chunk] = sums.alpha;
  });
  float* total = partials.data();
  for (int64_t chunk = 1; chunk < chunks; ++chunk) {
    for (int64_t i = 0; i < size; ++i) total[i] += total[chunk * size + i];
    of_alpha[0] += of_alpha[chunk];
  }
  if (needs[2]) store_as(outputs[2], total);
  if (needs[3]) store_as(outputs[3], total + of_hops);
  if (needs[4]) {
    std::vector<float> by_source(of_static);
    for (int64_t h = 0; h < p.heads; ++h)
      for (int64_t i = 0; i < pairs; ++i) by_source[h * pairs + i % p.V * p.V + i / p.V] = total[of_hops + of_bias + h * pairs + i];
    store_as(outputs[4], by_source.data());
  }
  const float last = static_cast<float>(of_alpha[0]);
  if (needs[5]) store_as(outputs[5], &last);
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cpu, CPU, m) {
  m.impl("hop_attention", TORCH_BOX(&skelops::forward));
  m.impl("hop_attention_backward", TORCH_BOX(&skelops::backward));
}
