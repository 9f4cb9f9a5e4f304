// skelops::squeeze_pool on torch tensors.
#include "kernels/squeeze_pool.h"

#include "tensors.h"

namespace skelops {
namespace {

void forward(const Tensor& map, std::optional<Tensor> lengths, int64_t bodies, std::vector<Tensor> outputs) {
  const Map x = as_map(map);
  if (lengths) lengths = to_int64(*lengths);
  const SqueezePool p{input_data(x.tensor),
                      static_cast<const int64_t*>(input_data(lengths)),
                      output_data(outputs[0]),
                      output_data(outputs[1]),
                      output_data(outputs[2]),
                      x.B / bodies,
                      bodies,
                      x.C,
                      x.T,
                      x.V,
                      dtype_of(x.tensor),
                      x.channels_last};
  const auto kernel = squeeze_pool_at_level();
  parallel_for(0, p.N * x.C, 1, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

void backward(const Tensor& frames, const Tensor& joints, const Tensor& mean, std::optional<Tensor> lengths, int64_t bodies,
              bool channels_last, std::vector<Tensor> outputs) {
  const Tensor f = torch::stable::contiguous(frames), j = torch::stable::contiguous(joints), m = torch::stable::contiguous(mean);
  if (lengths) lengths = to_int64(*lengths);
  const SqueezePoolBackward p{input_data(f),
                              input_data(j),
                              input_data(m),
                              static_cast<const int64_t*>(input_data(lengths)),
                              output_data(outputs[0]),
                              f.size(0),
                              bodies,
                              f.size(1),
                              f.size(2),
                              j.size(2),
                              dtype_of(f),
                              channels_last};
  const auto kernel = squeeze_pool_backward_at_level();
  parallel_for(0, p.N * p.C, 1, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cpu, CPU, m) {
  m.impl("squeeze_pool", TORCH_BOX(&skelops::forward));
  m.impl("squeeze_pool_backward", TORCH_BOX(&skelops::backward));
}
