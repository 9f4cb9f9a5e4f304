// What the kernels share: element types, 16-byte access to rows that start anywhere, sums over a block of threads.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef SKELOPS_EMULATE
#include "emulate.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define DYNAMIC_SHARED(name) extern __shared__ float4 name[]
#endif

namespace skelops {

constexpr int kLanes = 32, kWarps = 4, kThreads = kLanes * kWarps;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bool x) { return x ? 1.0f : 0.0f; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

template <typename T> __device__ inline T from_float(float x);
template <> __device__ inline float from_float<float>(float x) { return x; }
template <> __device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16(x); }
template <> __device__ inline __half from_float<__half>(float x) { return __float2half(x); }

// Rows of 25 floats start at any multiple of their element, so a flat range is cut into a head up to the first address
// that 16 divides, vectors of 16 bytes, and a tail.
template <typename T>
struct Range {
  static constexpr int kVector = 16 / sizeof(T);
  int head, vectors, count;

  __device__ Range(const T* data, int count) : count(count) {
    const int to_aligned = static_cast<int>((16 - reinterpret_cast<uintptr_t>(data) % 16) % 16 / sizeof(T));
    head = to_aligned < count ? to_aligned : count;
    vectors = (count - head) / kVector;
  }
  __device__ int vector_at(int i) const { return head + i * kVector; }
  // The elements outside the vectors, numbered: index of the i-th, or count where there are no more.
  __device__ int single_at(int i) const { return i < head ? i : i + vectors * kVector; }
};

template <typename T>
__device__ inline void load_vector(const T* data, float* values) {
  const uint4 raw = *reinterpret_cast<const uint4*>(data);
  T typed[Range<T>::kVector];
  memcpy(typed, &raw, 16);
#pragma unroll
  for (int j = 0; j < Range<T>::kVector; ++j) values[j] = to_float(typed[j]);
}

// Calls f(i, value) for every element of data[0..count), each by one thread of the block.
template <typename T, typename F>
__device__ inline void read(const T* data, int count, F f) {
  const Range<T> range(data, count);
  for (int i = threadIdx.x; range.single_at(i) < count; i += blockDim.x) {
    const int at = range.single_at(i);
    f(at, to_float(data[at]));
  }
#pragma unroll 2
  for (int i = threadIdx.x; i < range.vectors; i += blockDim.x) {
    float values[Range<T>::kVector];
    load_vector(data + range.vector_at(i), values);
#pragma unroll
    for (int j = 0; j < Range<T>::kVector; ++j) f(range.vector_at(i) + j, values[j]);
  }
}

// Copies data[0..count) as floats into shared memory; returns where they start: up to 3 floats after `stage`, so that
// vectors stay aligned. `stage` is aligned to 16 bytes and has room for count + 4.
template <typename T>
__device__ inline const float* stage_range(const T* data, int count, float* stage) {
  const Range<T> range(data, count);
  float* start = stage + (4 - range.head % 4) % 4;
  for (int i = threadIdx.x; range.single_at(i) < count; i += blockDim.x) {
    const int at = range.single_at(i);
    start[at] = to_float(data[at]);
  }
#pragma unroll 2
  for (int i = threadIdx.x; i < range.vectors; i += blockDim.x) {
    float values[Range<T>::kVector];
    load_vector(data + range.vector_at(i), values);
    auto* to = reinterpret_cast<float4*>(start + range.vector_at(i));
#pragma unroll
    for (int j = 0; j < Range<T>::kVector / 4; ++j)
      to[j] = float4{values[4 * j], values[4 * j + 1], values[4 * j + 2], values[4 * j + 3]};
  }
  return start;
}

// data[i] = the values of a cursor from i on, for every i < count: cursor.seek(i), then cursor.next() for each element.
template <typename T, typename Cursor>
__device__ inline void write(T* data, int count, Cursor cursor) {
  const Range<T> range(data, count);
  for (int i = threadIdx.x; range.single_at(i) < count; i += blockDim.x) {
    cursor.seek(range.single_at(i));
    data[range.single_at(i)] = from_float<T>(cursor.next());
  }
  for (int i = threadIdx.x; i < range.vectors; i += blockDim.x) {
    cursor.seek(range.vector_at(i));
    T typed[Range<T>::kVector];
#pragma unroll
    for (int j = 0; j < Range<T>::kVector; ++j) typed[j] = from_float<T>(cursor.next());
    uint4 raw;
    memcpy(&raw, typed, 16);
    *reinterpret_cast<uint4*>(data + range.vector_at(i)) = raw;
  }
}

// Sums over the kThreads threads of a block, in an order of their own; every thread gets them.
template <int N>
__device__ inline void block_sums(float (&values)[N]) {
  __shared__ float of_warp[kWarps][N];
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
#pragma unroll
  for (int n = 0; n < N; ++n)
    for (int offset = kLanes / 2; offset > 0; offset /= 2) values[n] += __shfl_xor_sync(0xffffffffu, values[n], offset);
  __syncthreads();  // of_warp may still be read by an earlier call
  if (lane == 0)
    for (int n = 0; n < N; ++n) of_warp[warp][n] = values[n];
  __syncthreads();
  for (int n = 0; n < N; ++n) {
    values[n] = 0;
    for (int w = 0; w < kWarps; ++w) values[n] += of_warp[w][n];
  }
}

}  // namespace skelops
