// Every file of this folder is compiled once per instruction set, each time into the namespace named by SKELOPS_LEVEL.
// The files include neither torch nor the C++ library: an inline function compiled for AVX-512 in one of them could be
// the copy that the linker keeps for all, and a machine without AVX-512 would then trap in it.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#define SKELOPS_X86 1
#else
#define SKELOPS_X86 0
#endif

namespace skelops {

enum class Level { portable, avx2, avx512, avx512_bf16 };

// The best level that this CPU runs, or a lower one named by the environment variable SKELOPS_CPU_LEVEL.
Level level();

// Grow-only buffer of the calling thread, 64-byte aligned; slot tells apart buffers in use at the same time. Those below 8 are the
// kernels', the others their callers': packed weights, and sums that chunks add up.
constexpr int kPackedSlot = 8, kSumsSlot = 9;
float* scratch(int slot, int64_t floats);

struct bf16 {
  uint16_t bits;
};

enum class Dtype { f32, bf16 };

}  // namespace skelops

// SKELOPS_KERNEL(name, (arguments)) declares a kernel at every level, and NAME_at_level() as the one to call.
#if SKELOPS_X86
#define SKELOPS_KERNEL(name, arguments)                                  \
  namespace portable { void name arguments; }                           \
  namespace avx2 { void name arguments; }                               \
  namespace avx512 { void name arguments; }                             \
  namespace avx512_bf16 { void name arguments; }                        \
  inline auto name##_at_level() {                                       \
    return level() == Level::avx512_bf16 ? avx512_bf16::name            \
           : level() == Level::avx512    ? avx512::name                 \
           : level() == Level::avx2      ? avx2::name                   \
                                         : portable::name;              \
  }
#else
#define SKELOPS_KERNEL(name, arguments)                                  \
  namespace portable { void name arguments; }                           \
  inline auto name##_at_level() { return portable::name; }
#endif
