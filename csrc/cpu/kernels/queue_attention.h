// Kernels of queue_attention, which info_nce runs, too; see queue_attention.cpp beside this file.
#pragma once

#include "level.h"

namespace skelops {

// One pass over the queue. The work is cut into blocks of rows times chunks of the queue, whose number depends on the
// shapes alone; each such unit leaves a partial result, and queue_merge adds up those of a row in the order of the chunks.
// A logit is a row's factor times its product with a slot. Maxima and thresholds are of the products: the difference of two
// of them is nearly exact, where logits would already be rounded.
struct QueuePass {
  const void* query;        // (N, D), contiguous
  const float* factors;     // (N), above zero
  const float* thresholds;  // (N): the slots whose product is above it are counted; or null
  const void* queue;        // (Q, D) with any strides; the first Q of its slots are used
  int64_t slot_stride, dim_stride;
  int64_t N, D, Q;
  int64_t blocks, chunks;
  float *most, *total;  // partials (chunks, N): the largest product, and the sum of exp(factor (product - most))
  int32_t* above;       // partials (chunks, N): slots above the threshold; or null
  float* out;           // partials (chunks, N, D): the sum of exp(factor (product - most)) slot; or null
  Dtype query_dtype, queue_dtype;
};

// The merged results of one pass.
struct QueueMerge {
  const float *factors, *most, *total;
  const int32_t* above;
  const float* parts;
  int64_t N, D, chunks;
  float* lse;      // (N); the largest logit where sum is given
  float* sum;      // (N) exp(lse - largest logit), or null
  int64_t* count;  // (N) or null
  float* mean;     // (N, D) or null
};

// The gradient of the mean: out[n] = sum_j p_nj (gradient_n . slot_j) slot_j, a second pass of the same shape.
struct QueueBackward {
  QueuePass pass;         // most is not used; total gets the sum of p, which is 1 but for the rounding of lse
  const float* lse;       // (N)
  const float* gradient;  // (N, D), contiguous
};

// query (N, D) = scale * (sum of parts / total + mean (lse_gradient - mean . gradient))
struct QueueBackwardMerge {
  const float *total, *parts, *mean, *gradient;
  const float* lse_gradient;  // (N) or null
  int64_t N, D, chunks;
  float scale;
  void* query;
  Dtype query_dtype;
};

// Units begin..end of blocks * chunks.
SKELOPS_KERNEL(queue_pass, (const QueuePass& p, int64_t begin, int64_t end))
SKELOPS_KERNEL(queue_backward, (const QueueBackward& p, int64_t begin, int64_t end))
// Rows begin..end.
SKELOPS_KERNEL(queue_merge, (const QueueMerge& p, int64_t begin, int64_t end))
SKELOPS_KERNEL(queue_backward_merge, (const QueueBackwardMerge& p, int64_t begin, int64_t end))

}  // namespace skelops
