// The unit in which kernels with an adjacency per channel take the channels.
#pragma once

#include <cstdint>

namespace skelops {

constexpr int64_t kBlock = 32;
inline int64_t blocks_of(int64_t channels) { return (channels + kBlock - 1) / kBlock; }

}  // namespace skelops
