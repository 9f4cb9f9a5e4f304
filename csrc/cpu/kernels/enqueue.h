// Kernel of enqueue_; see enqueue.cpp beside this file.
#pragma once

#include "level.h"

namespace skelops {

// n <= Q keys (n, D) go to the slots of a queue (Q, D) from start on, and around. Both have any strides.
struct Enqueue {
  void* queue;
  const void* keys;
  int64_t Q, D, n, start;
  int64_t queue_slot, queue_dim, key_row, key_dim;
  Dtype queue_dtype, key_dtype;
};

// Keys begin..end.
SKELOPS_KERNEL(enqueue, (const Enqueue& p, int64_t begin, int64_t end))

}  // namespace skelops
