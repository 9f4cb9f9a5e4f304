// skelops::channel_graph_conv on torch tensors.
#include "kernels/channel_graph_conv.h"

#include <algorithm>

#include "kernels/block.h"
#include "tensors.h"

namespace skelops {
namespace {

// The arguments of both passes, as float and packed.
struct Arguments {
  Tensor query, key, weight, bias, adjacency;
  Map x;
  ChannelGraphConvShape shape;
  float alpha;
  std::vector<float> packed;

  Arguments(const Tensor& input, const Tensor& query, const Tensor& key, const Tensor& weight, const Tensor& bias, const Tensor& alpha,
            const Tensor& adjacency)
      : query(to_float(query)),
        key(to_float(key)),
        weight(to_float(weight)),
        bias(to_float(bias)),
        adjacency(to_float(adjacency)),
        x(as_map(input, Slices::of_rows)),
        shape{x.B, weight.size(0), weight.size(1), weight.size(2), x.T, x.V, blocks_of(weight.size(1))},
        alpha(*floats(to_float(alpha))) {
    pack();
  }

  ChannelGraphConv kernel(const MapData& y) const {
    return {shape, dtype_of(x.tensor), x.input(), y, floats(query), floats(key), floats(adjacency), packed.data()};
  }

  // (K, blocks, R + 2, kBlock): alpha * weight, alpha * bias and one, zero past the last channel.
  void pack() {
    const int64_t R = shape.R, C = shape.C, rows = R + 2;
    packed.assign(shape.K * shape.blocks * rows * kBlock, 0.0f);
    for (int64_t k = 0; k < shape.K; ++k)
      for (int64_t c = 0; c < C; ++c) {
        float* column = packed.data() + (k * shape.blocks + c / kBlock) * rows * kBlock + c % kBlock;
        for (int64_t r = 0; r < R; ++r) column[r * kBlock] = alpha * floats(weight)[(k * C + c) * R + r];
        column[R * kBlock] = alpha * floats(bias)[k * C + c];
        column[(R + 1) * kBlock] = 1.0f;
      }
  }

  // (K, blocks * kBlock, padded(R)): alpha * weight by rows.
  std::vector<float> packed_rows() const {
    const int64_t R = shape.R, C = shape.C, Cp = shape.blocks * kBlock, Rp = padded(R);
    std::vector<float> rows(shape.K * Cp * Rp, 0.0f);
    for (int64_t k = 0; k < shape.K; ++k)
      for (int64_t c = 0; c < C; ++c)
        for (int64_t r = 0; r < R; ++r) rows[(k * Cp + c) * Rp + r] = alpha * floats(weight)[(k * C + c) * R + r];
    return rows;
  }
};

void forward(const Tensor& input, const Tensor& query, const Tensor& key, const Tensor& weight, const Tensor& bias, const Tensor& alpha,
             const Tensor& adjacency, bool stats, std::vector<Tensor> outputs) {
  const Arguments arguments(input, query, key, weight, bias, alpha, adjacency);
  const ChannelGraphConvShape& shape = arguments.shape;
  const ChannelGraphConv p = arguments.kernel(as_map(outputs[0]).output());
  const auto kernel = channel_graph_conv_at_level();
  StatsSums sums(stats, shape.C);
  const int64_t chunks = for_chunks(shape.items(), [&](int64_t chunk, int64_t begin, int64_t end) { kernel(p, begin, end, sums.of(chunk)); });
  if (stats) sums.store(chunks, outputs[1], outputs[2]);
}

void store_topology_gradients(const Arguments& a, const std::vector<double>& of_weight, const std::vector<double>& of_adjacency,
                              const std::vector<Tensor>& outputs) {
  const int64_t K = a.shape.K, C = a.shape.C, R = a.shape.R, Cp = a.shape.blocks * kBlock, edges = K * a.shape.edges();
  std::vector<float> weight(K * C * R), bias(K * C), adjacency(of_adjacency.begin(), of_adjacency.begin() + edges);
  double alpha = 0;
  for (int64_t k = 0; k < K; ++k)
    for (int64_t c = 0; c < C; ++c) {
      const double* sums = of_weight.data() + k * (R + 1) * Cp + c;
      for (int64_t r = 0; r < R; ++r) {
        weight[(k * C + c) * R + r] = a.alpha * sums[r * Cp];
        alpha += sums[r * Cp] * floats(a.weight)[(k * C + c) * R + r];
      }
      bias[k * C + c] = a.alpha * sums[R * Cp];
      alpha += sums[R * Cp] * floats(a.bias)[k * C + c];
    }
  const float total = static_cast<float>(alpha);
  store_as(outputs[3], weight.data());
  store_as(outputs[4], bias.data());
  store_as(outputs[5], &total);
  store_as(outputs[6], adjacency.data());
}

void backward(const Tensor& grad, const Tensor& input, const Tensor& query, const Tensor& key, const Tensor& weight, const Tensor& bias,
              const Tensor& alpha, const Tensor& adjacency, std::optional<Tensor> output, std::optional<Tensor> grad_sum,
              std::optional<Tensor> grad_square_sum, bool needs_x, bool needs_topology, std::vector<Tensor> outputs) {
  const Arguments arguments(input, query, key, weight, bias, alpha, adjacency);
  const ChannelGraphConvShape& shape = arguments.shape;
  const Map grad_y = as_map(grad, Slices::of_rows);
  std::optional<Map> y;
  if (output) y = as_map(*output, Slices::of_rows);
  const int64_t Cp = shape.blocks * kBlock;
  const std::vector<float> rows = arguments.packed_rows(), of_sum = padded_rows(grad_sum, 1, Cp), of_square_sum = padded_rows(grad_square_sum, 1, Cp);
  const ChannelGraphConvBackward p{arguments.kernel(y ? y->input() : MapData{}),
                                   grad_y.input(),
                                   needs_x ? as_map(outputs[0]).output() : MapData{},
                                   data_of(of_sum),
                                   data_of(of_square_sum),
                                   rows.data(),
                                   needs_topology};
  const auto kernel = channel_graph_conv_backward_at_level();
  const int64_t threads = torch::stable::get_num_threads(), K = shape.K;
  const int64_t weights = K * (shape.R + 1) * Cp, edges = K * shape.edges(), vectors = K * shape.R * shape.V;
  std::vector<double> of_weight(threads * weights, 0.0), of_adjacency(threads * edges, 0.0);
  std::vector<float> heads(threads * 2 * vectors, 0.0f), of_query(shape.B * vectors), of_key(shape.B * vectors);
  const int64_t chunks = for_chunks(shape.items(), [&](int64_t chunk, int64_t begin, int64_t end) {
    float* head = heads.data() + chunk * 2 * vectors;
    kernel(p, begin, end,
           {of_weight.data() + chunk * weights, of_adjacency.data() + chunk * edges, of_query.data(), of_key.data(), head, head + vectors});
  });
  if (!needs_topology) return;
  for (int64_t chunk = 1; chunk < chunks; ++chunk) {
    for (int64_t i = 0; i < weights; ++i) of_weight[i] += of_weight[chunk * weights + i];
    for (int64_t i = 0; i < edges; ++i) of_adjacency[i] += of_adjacency[chunk * edges + i];
    const int64_t sample = shape.items() * chunk / chunks / shape.blocks;
    const float* head = heads.data() + chunk * 2 * vectors;
    for (int64_t i = 0; i < vectors; ++i) of_query[sample * vectors + i] += head[i], of_key[sample * vectors + i] += head[vectors + i];
  }
  store_as(outputs[1], of_query.data());
  store_as(outputs[2], of_key.data());
  store_topology_gradients(arguments, of_weight, of_adjacency, outputs);
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cpu, CPU, m) {
  m.impl("channel_graph_conv", TORCH_BOX(&skelops::forward));
  m.impl("channel_graph_conv_backward", TORCH_BOX(&skelops::backward));
}
