// skelops::squeeze_pool on torch tensors.
#include "kernels/squeeze_pool.h"

#include "pool.h"

namespace skelops {
namespace {

const int64_t* lengths_data(std::optional<Tensor>& lengths) {
  if (lengths) lengths = to_int64(*lengths);
  return static_cast<const int64_t*>(input_data(lengths));
}

void forward(const Tensor& map, std::optional<Tensor> lengths, int64_t bodies, std::vector<Tensor> outputs) {
  const Map x = as_map(map);
  const int64_t N = x.B / bodies;
  const SqueezePool p{input_data(x.tensor),
                      lengths_data(lengths),
                      output_data(outputs[0]),
                      output_data(outputs[1]),
                      output_data(outputs[2]),
                      N,
                      bodies,
                      x.C,
                      x.T,
                      x.V,
                      piece(N, x.C),
                      dtype_of(x.tensor)};
  const int64_t width = x.channels_last ? p.width : 1;
  const auto kernel = x.channels_last ? squeeze_pool_channels_last_at_level() : squeeze_pool_at_level();
  parallel_for(0, N * pieces(x.C, width), grain(bodies * width * x.T * x.V),
               [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

void backward(const Tensor& frames, const Tensor& joints, const Tensor& mean, std::optional<Tensor> lengths, int64_t bodies,
              bool channels_last, std::vector<Tensor> outputs) {
  const Tensor f = dense(frames), j = dense(joints), m = dense(mean);
  const SqueezePoolBackward p{input_data(f),
                              input_data(j),
                              input_data(m),
                              lengths_data(lengths),
                              output_data(outputs[0]),
                              f.size(0),
                              bodies,
                              f.size(1),
                              f.size(2),
                              j.size(2),
                              dtype_of(f)};
  const int64_t count = channels_last ? p.T : p.C;
  const auto kernel = channels_last ? squeeze_pool_backward_channels_last_at_level() : squeeze_pool_backward_at_level();
  parallel_for(0, p.N * bodies * count, grain(p.C * p.T * p.V / std::max<int64_t>(count, 1)),
               [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cpu, CPU, m) {
  m.impl("squeeze_pool", TORCH_BOX(&skelops::forward));
  m.impl("squeeze_pool_backward", TORCH_BOX(&skelops::backward));
}
