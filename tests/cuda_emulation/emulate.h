// Enough of CUDA to run the kernels of csrc/cuda on a CPU: block after block, a block's warps in turn, from barrier to barrier.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>

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

inline dim3 threadIdx, blockIdx, blockDim, gridDim;
inline float4 emulated_shared[16384];
inline float emulated_lanes[1024];

struct EmulatedThread {
  ucontext_t context;
  bool at_barrier, ended;
  char stack[65536];
};
inline const auto emulated_threads = std::make_unique<EmulatedThread[]>(1024);
inline ucontext_t emulated_scheduler;
inline std::function<void()> emulated_kernel;

inline void emulated_wait(bool at_barrier) {
  EmulatedThread& thread = emulated_threads[threadIdx.x];
  thread.at_barrier = at_barrier;
  swapcontext(&thread.context, &emulated_scheduler);
}

inline void __syncthreads() { emulated_wait(true); }

// As long as every thread of the warp gets here, which the kernels see to.
inline float __shfl_xor_sync(unsigned, float value, int offset) {
  emulated_lanes[threadIdx.x] = value;
  emulated_wait(false);
  const float other = emulated_lanes[threadIdx.x ^ offset];
  emulated_wait(false);
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

inline void emulate_thread() {
  emulated_kernel();
  emulated_threads[threadIdx.x].ended = true;
}

inline void emulate_start(EmulatedThread& thread) {
  thread.ended = false;
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack;
  thread.context.uc_stack.ss_size = sizeof thread.stack;
  thread.context.uc_link = &emulated_scheduler;
  makecontext(&thread.context, emulate_thread, 0);
}

// Runs the threads from first to last until each has ended or waits for the block; whether one waits.
inline bool emulate_warp(unsigned first, unsigned last) {
  for (unsigned t = first; t < last; ++t) emulated_threads[t].at_barrier = false;
  bool shuffling = true, waiting = false;
  while (shuffling) {
    shuffling = waiting = false;
    for (unsigned t = first; t < last; ++t) {
      EmulatedThread& thread = emulated_threads[threadIdx.x = t];
      if (!thread.ended && !thread.at_barrier) swapcontext(&emulated_scheduler, &thread.context);
      shuffling |= !thread.ended && !thread.at_barrier;
      waiting |= !thread.ended;
    }
  }
  return waiting;
}

// Odd blocks take their warps the other way round: where a barrier is missing, one of two blocks reads what is not there yet.
inline void emulate_block(unsigned threads) {
  memset(emulated_shared, 0xff, sizeof emulated_shared);  // NaN
  for (unsigned t = 0; t < threads; ++t) emulate_start(emulated_threads[t]);
  const unsigned warps = (threads + 31) / 32;
  for (bool waiting = true; waiting;) {
    waiting = false;
    for (unsigned w = 0; w < warps; ++w) {
      const unsigned first = 32 * ((blockIdx.x + blockIdx.y) % 2 ? warps - 1 - w : w);
      waiting |= emulate_warp(first, std::min(first + 32, threads));
    }
  }
}

template <typename Kernel, typename... Args>
void emulate(Kernel kernel, dim3 grid, unsigned threads, Args... args) {
  gridDim = grid, blockDim = {threads};
  emulated_kernel = [&] { kernel(args...); };
  for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) emulate_block(threads);
}
