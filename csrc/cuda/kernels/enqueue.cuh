// enqueue_: the write of a ring, whose pointer lies on the device.
#pragma once

#include "block.cuh"

namespace skelops {

struct Ring {
  int64_t Q, D, first, n;  // keys first..n-1 are written
  int64_t queue_slot, queue_dim, key_row, key_dim;

  __device__ int64_t slot(int64_t pointer, int64_t i) const { return ((pointer % Q + Q) % Q + i) % Q; }
};

// The last block to finish is not known, so a grid of several leaves the pointer to `advance_kernel`.
template <typename S, typename K>
__global__ void enqueue_kernel(S* queue, const K* keys, int64_t* pointer, Ring p, bool advance) {
  const int64_t at = *pointer, elements = (p.n - p.first) * p.D;
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; e < elements;
       e += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    // Neighbouring threads run along the axis of the queue that lies together in memory.
    const int64_t rows = p.n - p.first;
    const int64_t i = p.first + (p.queue_dim == 1 ? e / p.D : e % rows), d = p.queue_dim == 1 ? e % p.D : e / rows;
    queue[p.slot(at, i) * p.queue_slot + d * p.queue_dim] = from_float<S>(to_float(keys[i * p.key_row + d * p.key_dim]));
  }
  if (!advance) return;
  __syncthreads();
  if (threadIdx.x == 0) *pointer = p.slot(at, p.n);
}

static __global__ void advance_kernel(int64_t* pointer, Ring p) { *pointer = p.slot(*pointer, p.n); }

}  // namespace skelops
