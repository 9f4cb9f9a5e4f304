// Sum and sum of squares of every channel from one read.
#include "channel_sums.h"

#include "channel_accumulator.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

template <typename T, bool Last>
void run(const ChannelSums& p, int64_t begin, int64_t end, double* sums) {
  accumulate<Last, 2>(p.lines, begin, end, sums,
                      [&]<int K>(int64_t line, int64_t first, int64_t last, float* columns, int64_t ld, Vec* plane) {
    const int64_t stride = p.x.stride;
    const T* x = static_cast<const T*>(p.x.data) + line * stride;
    Vec sum = plane[0], square_sum = plane[1];
    along(first, last, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      Vec total{}, squares{};
      for (int k = 0; k < K; ++k) {
        const Vec value = load_ahead(x + k * stride + i, n);
        total += value;
        squares += value * value;
      }
      add_to<Last>(columns + i, sum, total);
      add_to<Last>(columns + ld + i, square_sum, squares);
    });
    plane[0] = sum, plane[1] = square_sum;
  });
}

}  // namespace

void channel_sums(const ChannelSums& p, int64_t begin, int64_t end, double* sums) {
  const auto kernel = p.dtype == Dtype::f32 ? (p.lines.channels_last ? run<float, true> : run<float, false>)
                                            : (p.lines.channels_last ? run<bf16, true> : run<bf16, false>);
  kernel(p, begin, end, sums);
}

}  // namespace skelops::SKELOPS_LEVEL
