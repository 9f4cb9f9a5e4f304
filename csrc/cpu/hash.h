// Keys of the hash that random numbers are made of; see kernels/hash.h.
#pragma once

#include <array>

#include "tensors.h"

namespace skelops {

// Two 32-bit keys from a seed: splitmix64, so that neighbouring seeds have nothing in common.
inline std::array<uint32_t, 2> hash_keys(const Tensor& seed) {
  uint64_t z = *static_cast<const uint64_t*>(seed.const_data_ptr()) + 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return {static_cast<uint32_t>(z), static_cast<uint32_t>(z >> 32)};
}

}  // namespace skelops
