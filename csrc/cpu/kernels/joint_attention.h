// Kernels of joint_attention; see joint_attention.cpp beside this file.
#pragma once

#include "map.h"

namespace skelops {

struct JointAttention {
  int64_t B, T, V, heads, width;  // width: channels of a head
  bool frames, softmax;           // frames attend instead of joints; softmax instead of tanh
  Dtype dtype;
  MapData source, target;
  const float* alpha;  // (heads,) or null
  float scale;

  int64_t positions() const { return frames ? T : V; }
  int64_t steps() const { return frames ? V : T; }
  int64_t pairs() const { return positions() * positions(); }
  int64_t items() const { return B * heads; }  // the unit of work: a head of a sample
};

// (B, heads, P, P) each, in the dtype of the maps.
struct JointAttentionOutput {
  const float* static_part;  // (heads, P, P) or null
  void* attention;
  void* active;  // the activation alone; null where it is all there is
};

struct JointAttentionGradients {
  const void *upstream, *active;
  MapData source, target;  // data is null where not asked for
};

// What one chunk of items adds up; chunks are merged in their order, so that results repeat bit for bit.
struct JointAttentionSums {
  float* static_part;  // (heads, P, P), or null where not asked for
  double* alpha;       // (heads,)
};

SKELOPS_KERNEL(joint_attention, (const JointAttention& p, const JointAttentionOutput& out, int64_t begin, int64_t end))
SKELOPS_KERNEL(joint_attention_backward,
               (const JointAttention& p, const JointAttentionGradients& g, int64_t begin, int64_t end, const JointAttentionSums& sums))

}  // namespace skelops
