// Kernel of channel_sums; see channel_sums.cpp beside this file.
#pragma once

#include "lines.h"

namespace skelops {

struct ChannelSums {
  Lines lines;
  Dtype dtype;
  LineData x;
};

// Adds lines begin..end to the sums (C) and the sums of squares (C).
SKELOPS_KERNEL(channel_sums, (const ChannelSums& p, int64_t begin, int64_t end, double* sums))

}  // namespace skelops
