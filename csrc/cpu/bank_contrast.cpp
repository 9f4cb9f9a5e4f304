// skelops::bank_contrast on torch tensors.
#include "kernels/bank_contrast.h"

#include <numeric>

#include "hash.h"

namespace skelops {
namespace {

// The classes of the anchors, ascending; a class is known by its place here, and any other by their number.
class Classes {
 public:
  Classes(const int64_t* labels, int64_t N) : labels_(labels, labels + N) {
    std::sort(labels_.begin(), labels_.end());
    labels_.erase(std::unique(labels_.begin(), labels_.end()), labels_.end());
    if (N && static_cast<uint64_t>(labels_.back()) - static_cast<uint64_t>(labels_.front()) < kTable) {
      table_.assign(labels_.back() - labels_.front() + 1, static_cast<int32_t>(labels_.size()));
      for (size_t i = 0; i < labels_.size(); ++i) table_[labels_[i] - labels_.front()] = static_cast<int32_t>(i);
    }
  }

  int32_t of(int64_t label) const {
    if (!table_.empty()) {
      const uint64_t place = static_cast<uint64_t>(label) - static_cast<uint64_t>(labels_.front());
      return place < table_.size() ? table_[place] : static_cast<int32_t>(labels_.size());
    }
    const auto found = std::lower_bound(labels_.begin(), labels_.end(), label);
    return static_cast<int32_t>((found != labels_.end() && *found == label ? found : labels_.end()) - labels_.begin());
  }

  int64_t count() const { return static_cast<int64_t>(labels_.size()) + 1; }

 private:
  static constexpr uint64_t kTable = 1 << 16;  // labels further apart are searched for
  std::vector<int64_t> labels_;
  std::vector<int32_t> table_;  // places by label, from the first on
};

void forward(const Tensor& features, const Tensor& labels, const Tensor& bank, const Tensor& bank_labels, const Tensor& visited, const Tensor& seed,
             int64_t positives, int64_t hard_negatives, int64_t random_negatives, double temperature, bool gradient, std::vector<Tensor> outputs) {
  const int64_t N = features.size(0), D = features.size(1), Q = bank.size(0);
  auto* loss = static_cast<float*>(outputs[0].mutable_data_ptr());
  auto* kept = static_cast<bool*>(outputs[1].mutable_data_ptr());
  auto* of_features = gradient ? static_cast<float*>(output_data(outputs[2])) : nullptr;
  *loss = 0;
  if (gradient) std::fill_n(of_features, N * D, 0.0f);

  const Tensor own_labels = to_int64(labels), slot_labels = to_int64(bank_labels), filled = torch::stable::contiguous(visited);
  const auto* label = static_cast<const int64_t*>(own_labels.const_data_ptr());
  const auto* slot_label = static_cast<const int64_t*>(slot_labels.const_data_ptr());
  const auto* is_filled = static_cast<const bool*>(filled.const_data_ptr());
  const Classes classes(label, N);
  const int64_t places = padded(Q);
  auto* of_slots = reinterpret_cast<int32_t*>(scratch(5, places));
  parallel_for(0, places, 1 << 12, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) of_slots[j] = j < Q && is_filled[j] ? classes.of(slot_label[j]) : kUnvisited;
  });
  std::vector<int64_t> members(classes.count(), 0);
  for (int64_t j = 0; j < Q; ++j)
    if (of_slots[j] != kUnvisited) ++members[of_slots[j]];
  const int64_t all = std::accumulate(members.begin(), members.end(), int64_t{0}), negatives = std::max(hard_negatives, random_negatives);

  std::vector<int64_t> anchors;
  std::vector<int32_t> of_anchors;
  for (int64_t n = 0; n < N; ++n) {
    const int32_t own = classes.of(label[n]);
    kept[n] = members[own] >= positives && all - members[own] >= negatives;
    if (kept[n]) anchors.push_back(n), of_anchors.push_back(own);
  }
  if (anchors.empty()) return;

  const Tensor rows = torch::stable::contiguous(features), slots = torch::stable::contiguous(bank);
  const auto count = static_cast<int64_t>(anchors.size());
  const int64_t pitch = odd_pitch(places);
  // So many anchors at a time that the similarities of a bank of usual size stay in the cache.
  const int64_t block = std::min(count, std::clamp<int64_t>((1 << 22) / pitch, kChannelPad, 64));
  std::vector<float> losses(count);
  const auto keys = hash_keys(seed);
  BankContrast p{};
  p.features = rows.const_data_ptr(), p.features_dtype = dtype_of(rows);
  p.bank = slots.const_data_ptr(), p.bank_dtype = dtype_of(slots);
  p.D = D, p.Q = Q, p.classes = of_slots;
  p.positives = positives, p.hard_negatives = hard_negatives, p.random_negatives = random_negatives;
  p.scale = static_cast<float>(1 / temperature), p.share = static_cast<float>(1.0 / (2.0 * positives * count));
  p.keys[0] = keys[0], p.keys[1] = keys[1];
  p.units = scratch(6, D * padded(block));
  p.pitch = pitch;
  p.similarity = scratch(7, block * p.pitch);
  p.gradient = of_features;
  const auto units = bank_units_at_level();
  const auto similarity = bank_similarity_at_level();
  const auto contrast = bank_contrast_at_level();
  for (int64_t first = 0; first < count; first += block) {
    p.anchors = anchors.data() + first, p.anchor_classes = of_anchors.data() + first, p.losses = losses.data() + first;
    p.count = std::min(block, count - first);
    units(p);
    parallel_for(0, (Q + kSlotTile - 1) / kSlotTile, 1, [&](int64_t begin, int64_t end) { similarity(p, begin, end); });
    parallel_for(0, p.count, 1, [&](int64_t begin, int64_t end) { contrast(p, begin, end); });
  }
  *loss = static_cast<float>(std::accumulate(losses.begin(), losses.end(), 0.0));
}

}  // namespace
}  // namespace skelops

STABLE_TORCH_LIBRARY_IMPL(skelops_cpu, CPU, m) {
  m.impl("bank_contrast", TORCH_BOX(&skelops::forward));
}
