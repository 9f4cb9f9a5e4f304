#include "squeeze_pool.h"

#include "simd.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

template <typename T>
void forward(const SqueezePool& p, int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(p.x);
  const int64_t st = p.channels_last ? p.V * p.C : p.V, sv = p.channels_last ? p.C : 1, sc = p.channels_last ? 1 : p.T * p.V;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t n = i / p.C, c = i % p.C;
    T* frames = static_cast<T*>(p.frames) + i * p.T;
    T* joints = static_cast<T*>(p.joints) + i * p.V;
    for (int64_t t = 0; t < p.T; ++t) {
      float total = 0;
      for (int64_t m = 0; m < p.bodies; ++m) {
        const int64_t b = n * p.bodies + m;
        if (p.lengths && t >= p.lengths[b]) continue;
        for (int64_t v = 0; v < p.V; ++v) total += to_float(x[b * p.C * p.T * p.V + c * sc + t * st + v * sv]);
      }
      put(frames + t, total / (p.V * p.bodies));
    }
    float all = 0;
    for (int64_t v = 0; v < p.V; ++v) {
      float joint = 0;
      for (int64_t m = 0; m < p.bodies; ++m) {
        const int64_t b = n * p.bodies + m, L = p.lengths ? smaller(p.lengths[b], p.T) : p.T;
        float total = 0;
        for (int64_t t = 0; t < L; ++t) total += to_float(x[b * p.C * p.T * p.V + c * sc + t * st + v * sv]);
        if (L > 0) joint += total / (L * p.bodies);
      }
      put(joints + v, joint);
      all += joint;
    }
    put(static_cast<T*>(p.mean) + i, all / p.V);
  }
}

template <typename T>
void backward(const SqueezePoolBackward& p, int64_t begin, int64_t end) {
  T* x = static_cast<T*>(p.x);
  const int64_t st = p.channels_last ? p.V * p.C : p.V, sv = p.channels_last ? p.C : 1, sc = p.channels_last ? 1 : p.T * p.V;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t n = i / p.C, c = i % p.C;
    const T* frames = static_cast<const T*>(p.frames) + i * p.T;
    const T* joints = static_cast<const T*>(p.joints) + i * p.V;
    const float mean = to_float(static_cast<const T*>(p.mean)[i]);
    for (int64_t m = 0; m < p.bodies; ++m) {
      const int64_t b = n * p.bodies + m, L = p.lengths ? smaller(p.lengths[b], p.T) : p.T;
      for (int64_t t = 0; t < p.T; ++t)
        for (int64_t v = 0; v < p.V; ++v) {
          const float g = to_float(frames[t]) / (p.V * p.bodies) + (to_float(joints[v]) + mean / p.V) / (L * p.bodies);
          put(x + b * p.C * p.T * p.V + c * sc + t * st + v * sv, t < L ? g : 0.0f);
        }
    }
  }
}

}  // namespace

void squeeze_pool(const SqueezePool& p, int64_t begin, int64_t end) {
  p.dtype == Dtype::f32 ? forward<float>(p, begin, end) : forward<bf16>(p, begin, end);
}

void squeeze_pool_backward(const SqueezePoolBackward& p, int64_t begin, int64_t end) {
  p.dtype == Dtype::f32 ? backward<float>(p, begin, end) : backward<bf16>(p, begin, end);
}

}  // namespace skelops::SKELOPS_LEVEL
