// skelops::aggregate on torch tensors.
#include "kernels/aggregate.h"

#include "kernels/block.h"
#include "tensors.h"

namespace skelops {
namespace {

AggregateShape shape_of(const Map& x, const Tensor& adjacency, bool per_subset, bool sum_subsets, bool frames) {
  const int64_t K = adjacency.size(1);
  return {x.B,
          K,
          per_subset ? x.C / K : x.C,
          x.T,
          x.V,
          adjacency.size(4),
          adjacency.size(5),
          per_subset,
          sum_subsets,
          frames,
          adjacency.size(0) > 1,
          adjacency.size(2) > 1,
          adjacency.size(3) > 1};
}

// The adjacency as it is where its matrices are dense, transposed or not; else a contiguous copy.
Tensor dense_edges(const Tensor& adjacency) {
  const int64_t sources = adjacency.size(4), targets = adjacency.size(5), v = adjacency.stride(4), w = adjacency.stride(5);
  const bool plain = w == 1 && v == targets, transposed = v == 1 && w == sources;
  return plain || transposed ? adjacency : torch::stable::contiguous(adjacency);
}

EdgeStrides strides_of(const Tensor& adjacency) {
  return {adjacency.stride(0), adjacency.stride(1), adjacency.stride(2), adjacency.stride(3), adjacency.stride(4), adjacency.stride(5)};
}

bool in_rows(const AggregateShape& shape, const Map& x, const Map& y) { return !x.channels_last && !y.channels_last && shape.has_groups(); }

void forward(const Tensor& input, const Tensor& adjacency, bool per_subset, bool sum_subsets, bool frames, std::vector<Tensor> outputs) {
  const Map x = as_map(input, Slices::of_rows), y = as_map(outputs[0]);
  const Tensor edges = dense_edges(adjacency);
  const AggregateShape shape = shape_of(x, edges, per_subset, sum_subsets, frames);
  const Aggregate p{shape, dtype_of(x.tensor), x.input(), y.output(), input_data(edges), strides_of(edges)};
  const auto kernel = in_rows(shape, x, y) ? aggregate_rows_at_level() : aggregate_at_level();
  for_chunks(shape.B * blocks_of(shape.C), [&](int64_t, int64_t begin, int64_t end) { kernel(p, begin, end); });
}

void backward_adjacency(const Tensor& grad, const Tensor& input, const Tensor& adjacency, bool per_subset, bool sum_subsets, bool frames,
                        std::vector<Tensor> outputs) {
  const Map x = as_map(input, Slices::of_rows), grad_y = as_map(grad, Slices::of_rows);
  const AggregateShape shape = shape_of(x, adjacency, per_subset, sum_subsets, frames);
  const Aggregate p{shape, dtype_of(x.tensor), x.input(), grad_y.input(), nullptr, {}};
  const auto kernel = in_rows(shape, x, grad_y) ? aggregate_rows_backward_adjacency_at_level() : aggregate_backward_adjacency_at_level();
  const bool shared = adjacency.size(0) == 1 && shape.B != 1;
  const int64_t size = shape.K * shape.sources * shape.targets;
  std::vector<double> sums(shared ? torch::stable::get_num_threads() * size : 0, 0.0);
  void* out = shared ? nullptr : output_data(outputs[0]);
  const int64_t chunks = for_chunks(shape.B * shape.K, [&](int64_t chunk, int64_t begin, int64_t end) {
    kernel(p, begin, end, out, shared ? sums.data() + chunk * size : nullptr);
  });
  if (!shared) return;
  std::vector<float> total(size);
  merge(sums, chunks, size, total.data());
  store_as(outputs[0], total.data());
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cpu, CPU, m) {
  m.impl("aggregate", TORCH_BOX(&skelops::forward));
  m.impl("aggregate_backward_adjacency", TORCH_BOX(&skelops::backward_adjacency));
}
