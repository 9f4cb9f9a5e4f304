// skelops::ema_update_ on torch tensors.
#include "kernels/ema_update.h"

#include <algorithm>

#include "tensors.h"

namespace skelops {
namespace {

// Whether the tensor fills its memory without gaps or overlap, and the other lies in the same order.
bool same_dense_memory(const Tensor& x, const Tensor& y) {
  std::vector<std::pair<int64_t, int64_t>> axes;  // stride, size
  for (int64_t i = 0; i < x.dim(); ++i)
    if (x.size(i) > 1) {
      if (x.stride(i) != y.stride(i)) return false;
      axes.emplace_back(x.stride(i), x.size(i));
    }
  std::sort(axes.begin(), axes.end());
  int64_t dense = 1;
  for (const auto& [stride, size] : axes) {
    if (stride != dense) return false;
    dense *= size;
  }
  return true;
}

void ema_update_(std::vector<Tensor> targets, std::vector<Tensor> sources, double momentum) {
  const size_t count = targets.size();
  std::vector<Tensor> copies;  // contiguous stand-ins of targets with gaps, and of what does not lie like its target
  std::vector<std::pair<size_t, Tensor>> strided;
  std::vector<EmaPair> pairs(count);
  std::vector<int64_t> ends(count);
  int64_t total = 0;
  for (size_t i = 0; i < count; ++i) {
    Tensor target = targets[i], source = sources[i];
    if (!same_dense_memory(target, source)) {
      source = torch::stable::contiguous(source);
      copies.push_back(source);
      if (!target.is_contiguous()) {
        target = torch::stable::contiguous(target);
        strided.emplace_back(i, target);
      }
    }
    pairs[i] = {target.mutable_data_ptr(), source.const_data_ptr(), dtype_of(target)};
    ends[i] = total += target.numel();
  }
  const auto kernel = ema_update_at_level();
  const float keep = static_cast<float>(momentum), take = static_cast<float>(1 - momentum);
  // Elements of all pairs, one after the other.
  parallel_for(0, total, 1 << 15, [&](int64_t begin, int64_t end) {
    size_t i = std::upper_bound(ends.begin(), ends.end(), begin) - ends.begin();
    for (; i < count && begin < end; ++i) {
      const int64_t start = i ? ends[i - 1] : 0, stop = std::min(end, ends[i]);
      if (stop > begin) kernel(pairs[i], keep, take, begin - start, stop - start);
      begin = std::max(begin, stop);
    }
  });
  for (auto& [i, target] : strided) torch::stable::copy_(targets[i], target);
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cpu, CPU, m) {
  m.impl("ema_update_", TORCH_BOX(&skelops::ema_update_));
}
