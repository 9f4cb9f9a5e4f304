// mask_pool: a block reads the cells of a plane and of its mask once, as flat rows.
#pragma once

#include "block.cuh"

namespace skelops {

struct Masks {
  int64_t C, rows_per_mask;
  int cells;  // T * V
  bool per_channel, by_size;

  __device__ static float share(float total, float size) { return size != 0 ? total / size : 0.0f; }
};

// Sums of x * m, x * (1 - m), m and 1 - m become the two means.
template <typename T>
__device__ inline void store_means(const float (&sums)[4], const Masks& p, T* inside, T* outside) {
  const float cells = static_cast<float>(p.cells);
  *inside = from_float<T>(p.by_size ? sums[0] / cells : Masks::share(sums[0], sums[2]));
  *outside = from_float<T>(p.by_size ? sums[1] / cells : Masks::share(sums[1], sums[3]));
}

__device__ inline void add_cell(float (&sums)[4], float value, float m) {
  sums[0] += value * m;
  sums[1] += value * (1 - m);
  sums[2] += m;
  sums[3] += 1 - m;
}

template <typename M>
__device__ inline const M* mask_of(const M* mask, const Masks& p, int64_t b, int64_t c) {
  const int64_t row = b / p.rows_per_mask;
  return mask + (p.per_channel ? row * p.C + c : row) * p.cells;
}

// One block per (row, channel).
template <typename T, typename M>
__global__ void mask_pool_kernel(const T* x, const M* mask, Masks p, T* inside, T* outside) {
  const int64_t plane = blockIdx.x;
  const M* m = mask_of(mask, p, plane / p.C, plane % p.C);
  float sums[4] = {};
  read(x + plane * p.cells, p.cells, [&](int i, float value) { add_cell(sums, value, to_float(m[i])); });
  block_sums(sums);
  if (threadIdx.x == 0) store_means(sums, p, inside + plane, outside + plane);
}

// Walks a plane in memory order: the gradient of a cell.
template <typename M>
struct MaskCursor {
  const M* mask;
  float pull_in, pull_out;
  int i = 0;

  __device__ void seek(int from) { i = from; }
  __device__ float next() {
    const float m = to_float(mask[i++]);
    return pull_in * m + pull_out * (1 - m);
  }
};

// One block per (row, channel).
template <typename T, typename M>
__global__ void mask_pool_backward_kernel(const T* inside, const T* outside, const M* mask, Masks p, T* grad) {
  const int64_t plane = blockIdx.x;
  const M* m = mask_of(mask, p, plane / p.C, plane % p.C);
  float sizes[2] = {};
  if (!p.by_size) {
    for (int i = threadIdx.x; i < p.cells; i += kThreads) sizes[0] += to_float(m[i]), sizes[1] += 1 - to_float(m[i]);
    block_sums(sizes);
  } else {
    sizes[0] = sizes[1] = static_cast<float>(p.cells);
  }
  const float pull_in = Masks::share(to_float(inside[plane]), sizes[0]);
  const float pull_out = Masks::share(to_float(outside[plane]), sizes[1]);
  write(grad + plane * p.cells, p.cells, MaskCursor<M>{m, pull_in, pull_out});
}

// channels_last (a mask per channel, too), one block per row and 32 channels: lanes run along channels, warps take turns
// at cells.
template <typename M>
__device__ inline float mask_at(const M* mask, const Masks& p, int64_t b, int64_t c, int i) {
  const int64_t row = b / p.rows_per_mask * p.cells + i;
  return to_float(p.per_channel ? mask[row * p.C + c] : mask[row]);
}

// Sums over the warps of a block, per lane; every thread gets them.
template <int N>
__device__ inline void sums_of_lane(float (&values)[N]) {
  __shared__ float of_warp[kWarps][N][kLanes];
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  for (int n = 0; n < N; ++n) of_warp[warp][n][lane] = values[n];
  __syncthreads();
  for (int n = 0; n < N; ++n) {
    values[n] = 0;
    for (int w = 0; w < kWarps; ++w) values[n] += of_warp[w][n][lane];
  }
}

template <typename T, typename M>
__global__ void mask_pool_channels_last_kernel(const T* x, const M* mask, Masks p, T* inside, T* outside) {
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int64_t b = blockIdx.x, c = static_cast<int64_t>(blockIdx.y) * kLanes + lane;
  float sums[4] = {};
  if (c < p.C) {
#pragma unroll 4
    for (int i = warp; i < p.cells; i += kWarps)
      add_cell(sums, to_float(x[(b * p.cells + i) * p.C + c]), mask_at(mask, p, b, c, i));
  }
  sums_of_lane(sums);
  if (warp == 0 && c < p.C) store_means(sums, p, inside + b * p.C + c, outside + b * p.C + c);
}

template <typename T, typename M>
__global__ void mask_pool_backward_channels_last_kernel(const T* inside, const T* outside, const M* mask, Masks p, T* grad) {
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int64_t b = blockIdx.x, c = static_cast<int64_t>(blockIdx.y) * kLanes + lane;
  float sizes[2] = {};
  if (p.by_size) {
    sizes[0] = sizes[1] = static_cast<float>(p.cells);
  } else {
    for (int i = warp; i < p.cells && c < p.C; i += kWarps) {
      const float m = mask_at(mask, p, b, c, i);
      sizes[0] += m, sizes[1] += 1 - m;
    }
    sums_of_lane(sizes);
  }
  if (c >= p.C) return;
  const float pull_in = Masks::share(to_float(inside[b * p.C + c]), sizes[0]);
  const float pull_out = Masks::share(to_float(outside[b * p.C + c]), sizes[1]);
  for (int i = warp; i < p.cells; i += kWarps) {
    const float m = mask_at(mask, p, b, c, i);
    grad[(b * p.cells + i) * p.C + c] = from_float<T>(pull_in * m + pull_out * (1 - m));
  }
}

}  // namespace skelops
