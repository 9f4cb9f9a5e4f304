// skelops::norm_act on torch tensors.
#include "kernels/norm_act.h"

#include <cmath>

#include "hash.h"
#include "lines.h"

namespace skelops {
namespace {

std::optional<Dropout> dropout_of(double dropout, const std::optional<Tensor>& seed) {
  if (!seed) return std::nullopt;
  const auto keys = hash_keys(*seed);
  const double threshold = std::min(std::ceil(dropout * 4294967296.0), 4294967295.0);
  return Dropout{static_cast<float>(1 / (1 - dropout)),
                 static_cast<uint32_t>(threshold),
                 {keys[0], keys[1]}};
}

std::optional<Map> optional_map(const std::optional<Tensor>& x, bool channels_last) {
  return x ? std::optional(as_map_in(*x, channels_last)) : std::nullopt;
}

bool is_dense(const std::optional<Map>& map) { return !map || map->pitch == map->C; }

void forward(const Tensor& map, const Tensor& scale, const Tensor& shift, std::optional<Tensor> residual_map,
             std::optional<Tensor> residual_scale, std::optional<Tensor> residual_shift, double negative_slope, double dropout,
             std::optional<Tensor> seed, std::vector<Tensor> outputs) {
  const bool channels_last = along_channels(as_map(outputs[0]));
  const Map x = as_map_in(map, channels_last);
  const auto residual = optional_map(residual_map, channels_last);
  const Lines lines = lines_of(x, channels_last, is_dense(x) && is_dense(residual));
  const auto scales = table(scale, lines), shifts = table(shift, lines);
  const auto residual_scales = table(residual_scale, lines), residual_shifts = table(residual_shift, lines);
  const auto mask = dropout_of(dropout, seed);
  const NormAct p{lines,
                  dtype_of(x.tensor),
                  lines_in(x, lines),
                  lines_in(residual, lines),
                  lines_out(outputs[0], lines),
                  scales.data(),
                  shifts.data(),
                  residual_scale ? residual_scales.data() : nullptr,
                  residual_scale ? residual_shifts.data() : nullptr,
                  static_cast<float>(negative_slope),
                  mask ? &*mask : nullptr};
  const auto kernel = norm_act_at_level();
  for_lines(lines, [&](int64_t, int64_t begin, int64_t end) { kernel(p, begin, end); });
}

void backward(const Tensor& grad_map, const Tensor& map, std::optional<Tensor> y_map, const Tensor& scale,
              std::optional<Tensor> residual_map, std::optional<Tensor> residual_scale, double negative_slope, double dropout,
              std::optional<Tensor> seed, std::vector<bool> needs, std::vector<Tensor> outputs) {
  const bool needs_x = needs[0], needs_affine = needs[1], needs_residual = needs[2], needs_residual_affine = needs[3];
  const bool channels_last = along_channels(as_map(needs_x ? outputs[0] : needs_residual ? outputs[3] : map, Slices::of_rows));
  const Map grad = as_map_in(grad_map, channels_last);
  if (!needs_residual_affine) residual_map.reset();
  const auto x = needs_affine ? std::optional(as_map_in(map, channels_last)) : std::nullopt;
  const auto y = optional_map(y_map, channels_last), residual = optional_map(residual_map, channels_last);
  const Lines lines = lines_of(grad, channels_last, is_dense(grad) && is_dense(x) && is_dense(y) && is_dense(residual));
  const auto scales = table(scale, lines), residual_scales = table(residual_scale, lines);
  const auto mask = dropout_of(dropout, seed);
  const NormActBackward p{lines,
                          dtype_of(grad.tensor),
                          lines_in(grad, lines),
                          lines_in(x, lines),
                          lines_in(y, lines),
                          lines_in(residual, lines),
                          lines_out(outputs[0], lines),
                          lines_out(outputs[3], lines),
                          scales.data(),
                          residual_scale ? residual_scales.data() : nullptr,
                          static_cast<float>(negative_slope),
                          mask ? &*mask : nullptr};
  const auto kernel = norm_act_backward_at_level();
  const auto sums = sum_lines(lines, 4, [&](int64_t begin, int64_t end, double* part) { kernel(p, begin, end, part); });
  for (int64_t n = 0; n < 4; ++n) {
    const Tensor& output = outputs[n < 2 ? 1 + n : 2 + n];
    if (output.numel()) std::copy_n(sums.data() + n * lines.C, lines.C, static_cast<float*>(output.mutable_data_ptr()));
  }
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cpu, CPU, m) {
  m.impl("norm_act", TORCH_BOX(&skelops::forward));
  m.impl("norm_act_backward", TORCH_BOX(&skelops::backward));
}
