// Kernels of info_nce around the pass over the queue; see info_nce.cpp beside this file.
#pragma once

#include "level.h"

namespace skelops {

// Rows of one contiguous tensor, and where their gradient goes (null where none is wanted).
struct Vectors {
  const void* data;
  void* gradient;
  Dtype dtype;
};

struct InfoNCE {
  Vectors query, key, extra_positives, extra_negatives;  // (N, D), (N, D), (N, P, D), (N, E, D)
  int64_t N, D, P, E;
  double temperature;
  bool normalize;
  float* logits;  // (N, 1 + P + E): key, extra positives, extra negatives; made log-probabilities by info_nce_finish
};

struct InfoNCEPass {
  float *factors, *thresholds;  // (N): what the pass over the queue wants to know
};

// The queue's share on entry (lse is its largest logit, sum the rest), the results on exit.
struct InfoNCEResult {
  float* loss;
  float* lse;
  const float* sum;
  int64_t* rank;
  float* mean;  // (N, D), the mean of all that is contrasted under the softmax, or null
};

struct InfoNCEUpstream {
  const float *loss, *lse;  // gradients (N), or null
  int64_t loss_stride;      // 0 where the loss was reduced to one number
  float loss_factor;
  const float* mean;  // of the forward pass
};

// Rows begin..end.
SKELOPS_KERNEL(info_nce_prepare, (const InfoNCE& p, const InfoNCEPass& to, int64_t begin, int64_t end))
SKELOPS_KERNEL(info_nce_finish, (const InfoNCE& p, const InfoNCEResult& r, int64_t begin, int64_t end))
SKELOPS_KERNEL(info_nce_backward, (const InfoNCE& p, const InfoNCEUpstream& g, int64_t begin, int64_t end))

}  // namespace skelops
