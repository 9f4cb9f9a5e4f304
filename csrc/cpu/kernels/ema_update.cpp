#include "ema_update.h"

#include "simd.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

template <typename T>
void run(const EmaPair& p, float keep, float take, int64_t begin, int64_t end) {
  T* target = static_cast<T*>(p.target);
  const T* source = static_cast<const T*>(p.source);
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) store(target + i, load(target + i) * keep + load(source + i) * take);
  for (; i < end; ++i) put(target + i, to_float(target[i]) * keep + to_float(source[i]) * take);
}

}  // namespace

void ema_update(const EmaPair& p, float keep, float take, int64_t begin, int64_t end) {
  p.dtype == Dtype::f32 ? run<float>(p, keep, take, begin, end) : run<bf16>(p, keep, take, begin, end);
}

}  // namespace skelops::SKELOPS_LEVEL
