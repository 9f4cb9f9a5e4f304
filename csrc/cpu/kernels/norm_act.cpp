// act(drop(scale x + shift) + residual) and its gradient, each from one read of every map.
#include "norm_act.h"

#include "channel_accumulator.h"
#include "hash.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

enum class Residual { none, plain, affine };

// Which elements are kept, by a hash of their index in the order of a channels_last map.
class Mask {
 public:
  // step: from the index of one lane to that of the next.
  Mask(const Dropout* dropout, int64_t step) : dropout_(dropout ? *dropout : Dropout{}), hash_(dropout_.keys, step) {}

  Vec apply(Vec value, int64_t index) const { return hash_(index) < dropout_.threshold ? Vec{} : value * dropout_.factor; }

 private:
  Dropout dropout_;
  Hash hash_;
};

// The slope times the value; zero where the slope is, whatever the value.
Vec sloped(Vec value, Vec slope) { return slope != 0 ? value * slope : Vec{}; }

// The index of the first element of a line.
template <bool Last>
int64_t first_index(const Lines& lines, int64_t line) {
  return Last ? line * lines.width : line / lines.C * lines.width * lines.C + line % lines.C;
}

template <typename T>
T* at(const LineData& lines, int64_t line) {
  return lines.data ? static_cast<T*>(lines.data) + line * lines.stride : nullptr;
}

// Everything that the loops use is a local: a store through a vector may alias whatever is not.
template <typename T, bool Last, Residual R, bool Drop>
void forward(const NormAct& p, int64_t begin, int64_t end) {
  const Lines lines = p.lines;
  side_by_side<Last>(lines, begin, end, [&]<int K>(int64_t line) {
    const int64_t c = Last ? 0 : line % lines.C, step = Last ? 1 : lines.C, index = first_index<Last>(lines, line);
    const int64_t width = lines.width, x_stride = p.x.stride, residual_stride = p.residual.stride;
    const T *x = at<T>(p.x, line), *residual = at<T>(p.residual, line);
    T* y = at<T>(p.y, line);
    const float *scale = p.scale + c, *shift = p.shift + c, *residual_scale = p.residual_scale + c, *residual_shift = p.residual_shift + c;
    const Vec slope = splat(p.negative_slope);
    const Mask mask(p.dropout, step);
    along(0, lines.length(line), [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      const Vec a = coefficients<Last>(scale, i), b = coefficients<Last>(shift, i);
      for (int k = 0; k < K; ++k) {
        Vec z = load_ahead(x + k * x_stride + i, n) * a + b;
        if constexpr (Drop) z = mask.apply(z, index + k * width + i * step);
        if constexpr (R != Residual::none) {
          const Vec r = load_ahead(residual + k * residual_stride + i, n);
          z += R == Residual::plain ? r : r * coefficients<Last>(residual_scale, i) + coefficients<Last>(residual_shift, i);
        }
        store_some(y + k * width + i, z < 0 ? sloped(z, slope) : z, n);
      }
    });
  });
}

template <typename T, bool Last, Residual R, bool Drop>
void backward(const NormActBackward& p, int64_t begin, int64_t end, double* sums) {
  const Lines lines = p.lines;
  constexpr int kSums = R == Residual::affine ? 4 : 2;
  accumulate<Last, kSums>(lines, begin, end, sums,
                          [&]<int K>(int64_t line, int64_t first, int64_t last, float* columns, int64_t ld, Vec* plane) {
    const int64_t c = Last ? 0 : line % lines.C, step = Last ? 1 : lines.C, index = first_index<Last>(lines, line);
    const int64_t width = lines.width, grad_stride = p.grad.stride, x_stride = p.x.stride, y_stride = p.y.stride;
    const int64_t residual_stride = p.residual.stride;
    const T *grad = at<T>(p.grad, line), *x = at<T>(p.x, line), *y = at<T>(p.y, line), *residual = at<T>(p.residual, line);
    T *grad_x = at<T>(p.grad_x, line), *grad_residual = at<T>(p.grad_residual, line);
    const float *scale = p.scale + c, *residual_scale = p.residual_scale + c;
    const Vec slope = splat(p.negative_slope);
    const Mask mask(p.dropout, step);
    Vec totals[kSums] = {};
    along(first, last, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
      Vec parts[kSums] = {};
      for (int k = 0; k < K; ++k) {
        Vec g = load_ahead(grad + k * grad_stride + i, n);
        if (y) g = load_ahead(y + k * y_stride + i, n) <= 0 ? sloped(g, slope) : g;
        if constexpr (R == Residual::affine) {
          if (grad_residual) store_some(grad_residual + k * width + i, g * coefficients<Last>(residual_scale, i), n);
          if (residual) {
            parts[2] += g * load_ahead(residual + k * residual_stride + i, n);
            parts[3] += g;
          }
        }
        if constexpr (R == Residual::plain) store_some(grad_residual + k * width + i, g, n);
        if constexpr (Drop) g = mask.apply(g, index + k * width + i * step);
        if (grad_x) store_some(grad_x + k * width + i, g * coefficients<Last>(scale, i), n);
        if (x) {
          parts[0] += g * load_ahead(x + k * x_stride + i, n);
          parts[1] += g;
        }
      }
      for (int j = 0; j < kSums; ++j) add_to<Last>(columns + j * ld + i, totals[j], parts[j]);
    });
    for (int j = 0; j < kSums; ++j) plane[j] += totals[j];
  });
}

// Calls body<T, Last, Residual, Drop>() with the values of a call.
template <typename T, bool Last, Residual R, typename Params, typename Body>
void with_dropout(const Params& p, const Body& body) {
  p.dropout ? body.template operator()<T, Last, R, true>() : body.template operator()<T, Last, R, false>();
}

template <typename T, bool Last, typename Params, typename Body>
void with_residual(const Params& p, Residual residual, const Body& body) {
  residual == Residual::none    ? with_dropout<T, Last, Residual::none>(p, body)
  : residual == Residual::plain ? with_dropout<T, Last, Residual::plain>(p, body)
                                : with_dropout<T, Last, Residual::affine>(p, body);
}

template <typename Params, typename Body>
void specialised(const Params& p, Residual residual, const Body& body) {
  if (p.dtype == Dtype::f32)
    p.lines.channels_last ? with_residual<float, true>(p, residual, body) : with_residual<float, false>(p, residual, body);
  else
    p.lines.channels_last ? with_residual<bf16, true>(p, residual, body) : with_residual<bf16, false>(p, residual, body);
}

}  // namespace

void norm_act(const NormAct& p, int64_t begin, int64_t end) {
  const Residual residual = !p.residual.data ? Residual::none : p.residual_scale ? Residual::affine : Residual::plain;
  specialised(p, residual, [&]<typename T, bool Last, Residual R, bool Drop>() { forward<T, Last, R, Drop>(p, begin, end); });
}

void norm_act_backward(const NormActBackward& p, int64_t begin, int64_t end, double* sums) {
  const Residual residual = p.residual_scale ? Residual::affine : p.grad_residual.data ? Residual::plain : Residual::none;
  specialised(p, residual, [&]<typename T, bool Last, Residual R, bool Drop>() { backward<T, Last, R, Drop>(p, begin, end, sums); });
}

}  // namespace skelops::SKELOPS_LEVEL
