// The largest of three frames of relu(scale * x + shift); a sample at a time, as rows (t, v) with channels along the lanes.
#include "temporal_max_pool.h"

#include "affine.h"
#include "tiles.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

enum Slot { kX, kA, kG, kY, kH };

// Whether b takes the place of a before it: it is larger, or NaN, of which the last is the maximum, as in PyTorch.
inline auto replaces(Vec b, Vec a) { return (b > a) | (b != b); }

inline Vec larger_of(Vec a, Vec b) { return replaces(b, a) ? b : a; }

// The activated frames of a sample (T * V, padded) with a frame of -1 before and behind: below all, so never chosen.
const float* activated(const TemporalMaxPool& p, const float* x, int64_t ldx, int64_t width) {
  const int64_t frame = p.V * width;
  float* a = scratch(kA, (p.T + 2) * frame);
  for (int64_t i = 0; i < frame; i += kLanes) {
    store(a + i, splat(-1.0f));
    store(a + (p.T + 1) * frame + i, splat(-1.0f));
  }
  activate(x, ldx, a + frame, width, p.T * p.V, width, {p.scale, p.shift});
  return a + frame;
}

template <typename T>
void forward(const TemporalMaxPool& p, int64_t begin, int64_t end, double* stats) {
  const int64_t width = padded(p.C), frame = p.V * width, out_rows = p.out_frames() * p.V;
  float* y = scratch(kY, out_rows * width);
  for (int64_t b = begin; b < end; ++b) {
    int64_t ldx;
    const float* x = load_tile<T>(p.x, p.C, p.T * p.V, b, 0, p.T * p.V, kX, &ldx);
    const float* a = activated(p, x, ldx, width);
    for (int64_t t = 0; t < p.out_frames(); ++t)
      for (int64_t i = 0; i < frame; i += kLanes) {
        const float* at = a + t * p.stride * frame + i;
        store(y + t * frame + i, larger_of(larger_of(load(at - frame), load(at)), load(at + frame)));
      }
    if (stats) add_sums(y, width, out_rows, p.C, stats, stats + p.C);
    store_tile<T>(y, p.y, p.C, out_rows, b, 0, out_rows);
  }
}

template <typename T>
void backward(const TemporalMaxPool& p, int64_t begin, int64_t end, double* sums) {
  const int64_t width = padded(p.C), frame = p.V * width, rows = p.T * p.V, out_rows = p.out_frames() * p.V;
  float* padded_h = scratch(kH, (p.T + 2) * frame);
  float* h = padded_h + frame;
  for (int64_t b = begin; b < end; ++b) {
    int64_t ldx, ldg;
    const float* x = load_tile<T>(p.x, p.C, rows, b, 0, rows, kX, &ldx);
    const float* g = load_tile<T>(p.y, p.C, out_rows, b, 0, out_rows, kG, &ldg);
    const float* a = activated(p, x, ldx, width);
    __builtin_memset(padded_h, 0, sizeof(float) * (p.T + 2) * frame);
    for (int64_t t = 0; t < p.out_frames(); ++t)
      for (int64_t v = 0; v < p.V; ++v)
        for (int64_t c = 0; c < width; c += kLanes) {
          const int64_t i = t * p.stride * frame + v * width + c;
          const Vec before = load(a + i - frame), here = load(a + i), after = load(a + i + frame);
          const Vec larger = larger_of(before, here), most = larger_of(larger, after);
          Vec grad = load(g + (t * p.V + v) * ldg + c);
          if (p.stats.offset) grad += load(p.stats.offset + c);
          if (p.stats.y.data) grad += load(p.stats.slope + c) * most;
          const auto is_after = replaces(after, larger), is_here = replaces(here, before);
          const Vec rest = is_after ? Vec{} : grad;
          store(h + i - frame, load(h + i - frame) + (is_here ? Vec{} : rest));
          store(h + i, load(h + i) + (is_here ? rest : Vec{}));
          store(h + i + frame, load(h + i + frame) + (is_after ? grad : Vec{}));
        }
    through_affine(x, ldx, a, width, h, width, rows, p.C, p.scale, sums, sums + p.C);
    store_tile<T>(h, p.grad_x, p.C, rows, b, 0, rows);
  }
}

}  // namespace

void temporal_max_pool(const TemporalMaxPool& p, int64_t begin, int64_t end, double* stats) {
  p.dtype == Dtype::f32 ? forward<float>(p, begin, end, stats) : forward<bf16>(p, begin, end, stats);
}

void temporal_max_pool_backward(const TemporalMaxPool& p, int64_t begin, int64_t end, double* sums) {
  p.dtype == Dtype::f32 ? backward<float>(p, begin, end, sums) : backward<bf16>(p, begin, end, sums);
}

}  // namespace skelops::SKELOPS_LEVEL
