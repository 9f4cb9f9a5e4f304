// Kernels of mask_pool; see mask_pool.cpp and mask_pool_backward_mask.cpp beside this file.
#pragma once

#include "level.h"

namespace skelops {

struct Mask {
  const void* data;
  bool boolean;      // one byte each; otherwise of the dtype of x
  bool per_channel;  // (B, C, P) in the format of x; otherwise (B / rows, P)
  int64_t rows;      // rows of x that share a mask
  bool by_size;      // sums are divided by P; otherwise by the sum of the mask on that side
};

struct MaskPool {
  const void* x;  // (B, C, P) contiguous or (B, P, C) channels_last, P = T V positions
  Mask mask;
  void *inside, *outside;
  int64_t B, C, P;
  int64_t width;  // channels of one piece of channels_last work
  Dtype dtype;
};

struct MaskPoolBackward {
  const void *grad_inside, *grad_outside;  // (B, C)
  Mask mask;
  void* x;  // the gradient
  int64_t B, C, P;
  Dtype dtype;
};

struct MaskPoolBackwardMask {
  const void *grad_inside, *grad_outside, *inside, *outside;  // (B, C)
  const void* x;
  Mask mask;
  void* grad;  // like the mask
  int64_t B, C, P;
  int64_t block;  // positions of one piece of work on a shared mask
  Dtype dtype;
};

// Pieces begin..end of one call: (row, channel), or (row, block of channels) of a channels_last map.
SKELOPS_KERNEL(mask_pool, (const MaskPool& p, int64_t begin, int64_t end))
SKELOPS_KERNEL(mask_pool_channels_last, (const MaskPool& p, int64_t begin, int64_t end))
// (row, channel), or (row, position): both in the order of memory.
SKELOPS_KERNEL(mask_pool_backward, (const MaskPoolBackward& p, int64_t begin, int64_t end))
SKELOPS_KERNEL(mask_pool_backward_channels_last, (const MaskPoolBackward& p, int64_t begin, int64_t end))
// (mask, block of positions) of shared masks; per channel as the backward of x.
SKELOPS_KERNEL(mask_pool_backward_mask, (const MaskPoolBackwardMask& p, int64_t begin, int64_t end))
SKELOPS_KERNEL(mask_pool_backward_mask_channels_last, (const MaskPoolBackwardMask& p, int64_t begin, int64_t end))

}  // namespace skelops
