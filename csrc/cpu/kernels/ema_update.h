// Kernel of ema_update_; see ema_update.cpp beside this file.
#pragma once

#include "level.h"

namespace skelops {

struct EmaPair {
  void* target;
  const void* source;
  Dtype dtype;
};

// Elements begin..end of one pair: target = keep * target + take * source.
SKELOPS_KERNEL(ema_update, (const EmaPair& p, float keep, float take, int64_t begin, int64_t end))

}  // namespace skelops
