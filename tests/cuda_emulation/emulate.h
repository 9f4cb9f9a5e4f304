// Enough of CUDA to run the kernels of csrc/cuda on a CPU: block after block, a block's threads as threads.
#pragma once

#include <barrier>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define DYNAMIC_SHARED(name) float4* name = emulated_shared

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline thread_local dim3 threadIdx;
inline dim3 blockIdx, blockDim, gridDim;
inline float4 emulated_shared[16384];
inline float emulated_lanes[1024];
inline std::barrier<>* emulated_block;

inline void __syncthreads() { emulated_block->arrive_and_wait(); }

// As long as every thread of the block gets here, which the kernels see to.
inline float __shfl_xor_sync(unsigned, float value, int offset) {
  emulated_lanes[threadIdx.x] = value;
  __syncthreads();
  const float other = emulated_lanes[threadIdx.x ^ offset];
  __syncthreads();
  return other;
}

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline __nv_bfloat16 __float2bfloat16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
using __half = _Float16;
inline float __half2float(__half x) { return static_cast<float>(x); }
inline __half __float2half(float x) { return static_cast<__half>(x); }

template <typename Kernel, typename... Args>
void emulate(Kernel kernel, dim3 grid, unsigned threads, Args... args) {
  gridDim = grid, blockDim = {threads};
  for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
      std::barrier block(threads);
      emulated_block = &block;
      memset(emulated_shared, 0xff, sizeof emulated_shared);  // NaN
      std::vector<std::thread> workers;
      for (unsigned t = 0; t < threads; ++t)
        workers.emplace_back([&, t] {
          threadIdx = {t, 0, 0};
          kernel(args...);
          block.arrive_and_drop();
        });
      for (auto& worker : workers) worker.join();
    }
}
