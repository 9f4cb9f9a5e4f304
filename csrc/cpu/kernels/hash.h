// Random numbers without a state: a 32-bit hash of a 64-bit index and two keys.
#pragma once

#include "simd.h"

namespace skelops::SKELOPS_LEVEL {

class Hash {
 public:
  // step: from the index of one lane to that of the next.
  Hash(const uint32_t* keys, int64_t step) : keys_{keys[0], keys[1]}, span_(static_cast<uint32_t>((kLanes - 1) * step)) {
    for (int i = 0; i < kLanes; ++i) lanes_[i] = static_cast<uint32_t>(i * step);
  }

  UintVec operator()(int64_t index) const {
    const uint32_t low = static_cast<uint32_t>(index), high = static_cast<uint32_t>(index >> 32);
    UintVec h = (lanes_ + low) ^ keys_[0];
    h ^= h >> 16;
    h *= 0x7feb352du;
    h ^= h >> 15;
    h += keys_[1] + high * kGolden;
    // Lanes that have passed 2^32: the upper half of their index is one more.
    if (low + span_ < low) [[unlikely]] h += reinterpret_cast<UintVec>(lanes_ + low < lanes_) & kGolden;
    h *= 0x846ca68bu;
    return h ^ h >> 16;
  }

 private:
  static constexpr uint32_t kGolden = 0x9e3779b9u;

  uint32_t keys_[2], span_;
  UintVec lanes_;
};

}  // namespace skelops::SKELOPS_LEVEL
