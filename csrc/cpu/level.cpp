// Which instruction set the kernels run with, and the scratch memory that they share.
#include "kernels/level.h"

#include <torch/csrc/stable/library.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <strings.h>

#include <cstdlib>
#include <new>
#include <string>

namespace skelops {

namespace {

Level best() {
#if SKELOPS_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return __builtin_cpu_supports("avx512bf16") ? Level::avx512_bf16 : Level::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Level::avx2;
#endif
  return Level::portable;
}

Level chosen() {
  const char* wish = std::getenv("SKELOPS_CPU_LEVEL");
  const auto wished = [wish](const char* name) { return wish && !strcasecmp(wish, name); };
  const Level limit = wished("portable") ? Level::portable
                      : wished("avx2")   ? Level::avx2
                      : wished("avx512") ? Level::avx512
                                         : Level::avx512_bf16;  // the package refuses a name that is none
  return best() < limit ? best() : limit;
}

struct Buffer {
  float* data = nullptr;
  int64_t size = 0;
  ~Buffer() { std::free(data); }
};

int64_t instruction_set() { return static_cast<int64_t>(level()); }

}  // namespace

Level level() {
  static const Level value = chosen();
  return value;
}

float* scratch(int slot, int64_t floats) {
  static thread_local Buffer buffers[kSumsSlot + 1];
  Buffer& buffer = buffers[slot];
  if (buffer.size < floats) {
    std::free(buffer.data);
    buffer.data = nullptr;
    buffer.size = 0;
    // Packed weights are written and read at distances of a row: on small pages, each costs a miss of the TLB.
    constexpr size_t huge = 2 << 20;
    const size_t wanted = static_cast<size_t>(floats) * sizeof(float), alignment = wanted < huge ? 64 : huge;
    const size_t bytes = (wanted + alignment - 1) / alignment * alignment;
    buffer.data = static_cast<float*>(std::aligned_alloc(alignment, bytes));
    if (!buffer.data) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (alignment == huge) madvise(buffer.data, bytes, MADV_HUGEPAGE);
#endif
    buffer.size = floats;
  }
  return buffer.data;
}

}  // namespace skelops

STABLE_TORCH_LIBRARY_FRAGMENT(skelops_cpu, m) {
  m.def("instruction_set() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(skelops_cpu, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&skelops::instruction_set));
}
