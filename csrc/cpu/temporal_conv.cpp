// skelops::temporal_conv on torch tensors.
#include "kernels/temporal_conv.h"

#include <algorithm>

#include "pairs.h"
#include "tensors.h"

namespace skelops {
namespace {

// The tiles of an item fill a good half of a 1 MB L2 cache, and their float sums stay short.
constexpr int64_t kTileFloats = 160 * 1024, kMaxRows = 512;
constexpr int64_t kItemsPerThread = 4;

// Minimal filtering pays from so many channels on, which its transforms touch once and its products many times.
int64_t least_filtered(const TemporalConvShape& s) { return s.k >= 9 && s.stride == 1 ? 16 : 32; }

TemporalConvShape shape_of(const Map& x, const Tensor& weight, int64_t stride, int64_t dilation, int64_t groups, bool backward) {
  TemporalConvShape s{x.B, x.C, x.T, x.V, weight.size(0), weight.size(2), stride, dilation, groups, 1, false, false};
  // Of a pair, both channels belong to the group, or the second is padding.
  const bool even = s.group_in() % 2 == 0 && s.group_out() % 2 == 0;
  s.pairs = multiplies_pairs(x.tensor) && (groups == 1 || even);
  const bool filtered = s.k >= (stride == 1 ? 3 : 7) && stride <= 2 && dilation == 1 && groups == 1;
  s.is_minimal = !s.pairs && filtered && std::min(s.C, s.O) >= least_filtered(s) && s.minimal().tiles(s.out_frames()) > 0;
  const int64_t input = s.width_in() * stride, output = s.width_out();
  const int64_t halo = 2 * s.halo() * (backward ? output : input), row = backward ? 3 * input + output : input + output;
  const int64_t fit = std::min(kMaxRows / s.V, (kTileFloats / s.V - halo) / row);
  const int64_t frames = std::max<int64_t>(1, s.out_frames());
  const int64_t wanted = (kItemsPerThread * torch::stable::get_num_threads() + s.B - 1) / std::max<int64_t>(1, s.B);
  const int64_t tiles = std::max((frames + std::max<int64_t>(1, fit) - 1) / std::max<int64_t>(1, fit), std::min(wanted, frames));
  s.tile_frames = (frames + tiles - 1) / tiles;
  if (s.is_minimal) s.tile_frames = (s.tile_frames + kTileFrames - 1) / kTileFrames * kTileFrames;
  return s;
}

template <typename T>
T* part(std::vector<T>& sums, bool needed, int64_t chunk, int64_t n) {
  return needed ? sums.data() + chunk * n : nullptr;
}

// Of packed matrices of that size, those of the taps to the ones after them.
void transform_weights(const TemporalConvShape& s, int64_t size, float* packed) {
  const auto kernel = temporal_conv_minimal_weights_at_level();
  parallel_for(0, size / kChannelPad, 256, [&](int64_t begin, int64_t end) { kernel(s, size, begin * kChannelPad, end * kChannelPad, packed); });
}

void forward(const Tensor& input, const Tensor& weight, std::optional<Tensor> bias, std::optional<Tensor> scale, std::optional<Tensor> shift, int64_t stride,
             int64_t dilation, int64_t groups, bool stats, std::vector<Tensor> outputs) {
  const Map x = as_map(input, Slices::all), y = as_map(outputs[0], Slices::all);
  const TemporalConvShape s = shape_of(x, weight, stride, dilation, groups, false);
  const Tensor source = to_float(weight);
  float* packed = scratch(kPackedSlot, s.packed_size());
  const auto pack = temporal_conv_pack_at_level();
  parallel_for(0, padded(s.group_out()) / kChannelPad, 1,
               [&](int64_t begin, int64_t end) { pack(floats(source), s, begin * kChannelPad, end * kChannelPad, packed); });
  if (s.pairs) pair_weights(packed, s.groups * s.k, s.group_in(), padded(s.group_out()));
  if (s.is_minimal) transform_weights(s, s.C * padded(s.O), packed);
  const std::vector<float> biases = padded_rows(bias, groups, padded(s.group_out()));
  const std::vector<float> scales = padded_rows(scale, 1, padded(s.C)), shifts = padded_rows(shift, 1, padded(s.C));
  const TemporalConv p{s, dtype_of(x.tensor), x.input(), y.output(), packed, data_of(biases), data_of(scales), data_of(shifts)};
  const auto kernel = s.is_minimal ? temporal_conv_minimal_at_level() : temporal_conv_at_level();
  StatsSums sums(stats, s.O);
  const int64_t chunks = for_chunks(s.items(), [&](int64_t chunk, int64_t begin, int64_t end) { kernel(p, begin, end, sums.of(chunk)); });
  if (stats) sums.store(chunks, outputs[1], outputs[2]);
}

// Adds up the chunks' sums of the gradient of the weight (O, C / groups, k) in their order.
void unpack(const TemporalConvShape& s, float* sums, int64_t chunks, const Tensor& gradient) {
  const int64_t size = s.sums_size();
  for (int64_t chunk = 1; chunk < chunks; ++chunk)
    parallel_for(0, size, 1 << 14, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) sums[i] += sums[chunk * size + i];
    });
  if (s.is_minimal) {
    const int64_t matrix = s.sums_rows() * s.sums_width();
    const auto add = temporal_conv_minimal_gradients_at_level();
    parallel_for(0, matrix / kChannelPad, 256, [&](int64_t begin, int64_t end) { add(s, matrix, begin * kChannelPad, end * kChannelPad, sums); });
  }
  FloatOutput result(gradient);
  float* values = result.data();
  const auto kernel = temporal_conv_unpack_at_level();
  parallel_for(0, s.O, 16, [&](int64_t begin, int64_t end) { kernel(sums, s, begin, end, values); });
  result.store();
}

void backward(const Tensor& grad, const Tensor& input, const Tensor& weight, std::optional<Tensor> scale, std::optional<Tensor> shift, std::optional<Tensor> y,
              std::optional<Tensor> grad_sum, std::optional<Tensor> grad_square_sum, int64_t stride, int64_t dilation, int64_t groups, bool needs_x,
              bool needs_weight, bool needs_bias, bool needs_affine, std::vector<Tensor> outputs) {
  const Map x = as_map(input, Slices::all), grad_y = as_map(grad, Slices::all);
  const TemporalConvShape s = shape_of(x, weight, stride, dilation, groups, true);
  float* packed = nullptr;
  if (needs_x || needs_affine) {
    const Tensor source = to_float(weight);
    packed = scratch(kPackedSlot, s.packed_backward_size());
    const auto pack = temporal_conv_pack_backward_at_level();
    parallel_for(0, s.O, 16, [&](int64_t begin, int64_t end) { pack(floats(source), s, begin, end, packed); });
    if (s.pairs) pair_weights(packed, s.groups * s.k, s.group_out(), padded(s.group_in()));
    if (s.is_minimal) transform_weights(s, s.O * padded(s.C), packed);
  }
  const std::vector<float> scales = padded_rows(scale, 1, padded(s.C)), shifts = padded_rows(shift, 1, padded(s.C));
  const StatsTerms stats(y, grad_sum, grad_square_sum, s.O);
  const TemporalConvBackward p{s,
                               dtype_of(x.tensor),
                               grad_y.input(),
                               x.input(),
                               needs_x ? as_map(outputs[0], Slices::all).output() : MapData{},
                               stats.view(),
                               packed,
                               data_of(scales),
                               data_of(shifts)};
  const auto kernel = s.is_minimal ? temporal_conv_minimal_backward_at_level() : temporal_conv_backward_at_level();
  const int64_t threads = torch::stable::get_num_threads();
  float* weights = needs_weight ? scratch(kSumsSlot, threads * s.sums_size()) : nullptr;
  std::vector<double> biases(threads * s.O, 0.0), of_scale(threads * s.C, 0.0), of_shift(threads * s.C, 0.0);
  const int64_t chunks = for_chunks(s.items(), [&](int64_t chunk, int64_t begin, int64_t end) {
    kernel(p, begin, end,
           {needs_weight ? weights + chunk * s.sums_size() : nullptr, part(biases, needs_bias, chunk, s.O), part(of_scale, needs_affine, chunk, s.C),
            part(of_shift, needs_affine, chunk, s.C)});
  });
  if (needs_weight) unpack(s, weights, chunks, outputs[1]);
  if (needs_bias) {
    std::vector<float> merged(s.O);
    merge(biases, chunks, s.O, merged.data());
    store_as(outputs[2], merged.data());
  }
  if (needs_affine) {
    merge(of_scale, chunks, s.C, static_cast<float*>(outputs[3].mutable_data_ptr()));
    merge(of_shift, chunks, s.C, static_cast<float*>(outputs[4].mutable_data_ptr()));
  }
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cpu, CPU, m) {
  m.impl("temporal_conv", TORCH_BOX(&skelops::forward));
  m.impl("temporal_conv_backward", TORCH_BOX(&skelops::backward));
}
