// skelops::channel_sums on torch tensors.
#include "kernels/channel_sums.h"

#include "lines.h"

namespace skelops {
namespace {

void forward(const Tensor& map, std::vector<Tensor> outputs) {
  const Map x = as_map(map, Slices::of_rows);
  const Lines lines = lines_of(x, along_channels(x), x.pitch == x.C);
  const ChannelSums p{lines, dtype_of(x.tensor), lines_in(x, lines)};
  const auto kernel = channel_sums_at_level();
  const auto sums = sum_lines(lines, 2, [&](int64_t begin, int64_t end, double* part) { kernel(p, begin, end, part); });
  for (int64_t n = 0; n < 2; ++n) std::copy_n(sums.data() + n * x.C, x.C, static_cast<double*>(outputs[n].mutable_data_ptr()));
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cpu, CPU, m) {
  m.impl("channel_sums", TORCH_BOX(&skelops::forward));
}
