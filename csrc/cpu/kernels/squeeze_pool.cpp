// The three means of a map from one read, and the gradient in one write. Sums run over blocks of a few frames and are then
// added to the totals, which keeps the rounding error of long clips near that of a pairwise sum.
#include "squeeze_pool.h"

#include "pool.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

constexpr int kWidest = kLanes == 16 ? 4 : 2;  // vectors of a row that are summed in registers at once
constexpr int kFrames = 64;                    // frames that are summed before they are added to the total

template <typename Params>
int64_t valid_frames(const Params& p, int64_t row) {
  return p.lengths ? larger(smaller(p.lengths[row], p.T), 0) : p.T;
}

template <typename T>
void store_row(T* out, const float* row, int64_t n, float divisor) {
  for (int64_t i = 0; i < n; i += kLanes) store_some(out + i, divisor == 1 ? load(row + i) : load(row + i) / divisor, n - i);
}

// Adds N vectors of each of up to kLanes rows to the sums of their joints, and to one vector per row.
template <int N, typename T>
inline void add_columns(const T* x, int64_t V, int64_t rows, IntVec last, const T* end, Vec* frames, float* joints) {
  Vec sums[N] = {};
  for (int64_t r = 0; r < rows; ++r, x += V) {
    Vec row{};
    for (int n = 0; n < N; ++n) {
      const Vec value = n < N - 1 ? load_ahead(x + n * kLanes, end) : select(last, load_ahead(x + n * kLanes, end));
      sums[n] += value;
      row += value;
    }
    frames[r] += row;
  }
  for (int n = 0; n < N; ++n) add(joints + n * kLanes, sums[n]);
}

// Adds rows of V joints to the sums over each row and over each column.
template <typename T>
void add_rows(const T* x, int64_t count, int64_t V, const T* end, float* frames, float* joints) {
  const int64_t vectors = (V + kLanes - 1) / kLanes;
  const IntVec whole = first_lanes(kLanes), last = first_lanes(V - (vectors - 1) * kLanes);
  for (int64_t t = 0; t < count; t += kLanes) {
    Vec rows[kLanes] = {};
    for (int64_t i = 0; i < vectors;) {
      const int64_t n = smaller(vectors - i, kWidest);
      const auto columns = n == 4 ? add_columns<4, T> : n == 3 ? add_columns<3, T> : n == 2 ? add_columns<2, T> : add_columns<1, T>;
      columns(x + t * V + i * kLanes, V, smaller(kLanes, count - t), i + n == vectors ? last : whole, end, rows, joints + i * kLanes);
      i += n;
    }
    add(frames + t, row_sums(rows));
  }
}

// Clips of one frame and one body: the joints are the map, and both other means are the same.
template <typename T>
void forward_single_frame(const SqueezePool& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const T* x = static_cast<const T*>(p.x) + i * p.V;
    Vec total{};
    for (int64_t v = 0; v < p.V; v += kLanes) {
      const Vec value = load_some(x + v, p.V - v);
      store_some(static_cast<T*>(p.joints) + i * p.V + v, value, p.V - v);
      total += value;
    }
    const float mean = sum(total) / p.V;
    put(static_cast<T*>(p.frames) + i, mean);
    put(static_cast<T*>(p.mean) + i, mean);
  }
}

template <typename T>
void forward(const SqueezePool& p, int64_t begin, int64_t end) {
  if (p.T == 1 && p.bodies == 1 && !p.lengths) return forward_single_frame<T>(p, begin, end);
  const int64_t plane = p.T * p.V, Tp = round_up(p.T, kLanes), Vp = round_up(p.V, kLanes);
  const T* x = static_cast<const T*>(p.x);
  const T* limit = x + p.N * p.bodies * p.C * plane;
  float *frames = scratch(0, Tp + 2 * Vp), *joints = frames + Tp, *block = joints + Vp;
  for (int64_t i = begin, n = begin / p.C, c = begin % p.C; i < end; ++i) {
    clear(frames, Tp + Vp);
    for (int64_t b = n * p.bodies; b < (n + 1) * p.bodies; ++b) {
      const int64_t L = valid_frames(p, b);
      for (int64_t t = 0; t < L; t += kFrames) {
        clear(block, Vp);
        add_rows(x + (b * p.C + c) * plane + t * p.V, smaller(kFrames, L - t), p.V, limit, frames + t, block);
        for (int64_t v = 0; v < Vp; v += kLanes) add(joints + v, load(block + v) / static_cast<float>(L * p.bodies));
      }
    }
    Vec mean{};
    for (int64_t v = 0; v < Vp; v += kLanes) mean += load(joints + v);
    store_row(static_cast<T*>(p.frames) + i * p.T, frames, p.T, p.V * p.bodies);
    store_row(static_cast<T*>(p.joints) + i * p.V, joints, p.V, 1);
    put(static_cast<T*>(p.mean) + i, sum(mean) / p.V);
    if (++c == p.C) c = 0, ++n;
  }
}

// Adds N joints of one frame to its sum over joints, and to the sums of these joints.
template <int N, typename T>
inline void add_joints(const T* x, int64_t C, const T* end, float* frame, float* joints, int64_t ld) {
  for (int64_t c = 0; c < ld; c += kLanes) {
    Vec total = load(frame + c);
    for (int n = 0; n < N; ++n) {
      const Vec value = load_ahead(x + n * C + c, end);
      total += value;
      add(joints + n * ld + c, value);
    }
    store(frame + c, total);
  }
}

template <typename T>
void forward_single_frame_channels_last(const SqueezePool& p, int64_t begin, int64_t end) {
  const int64_t blocks = (p.C + p.width - 1) / p.width;
  const T* limit = static_cast<const T*>(p.x) + p.N * p.C * p.V;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t n = i / blocks, c = i % blocks * p.width, width = smaller(p.width, p.C - c), first = n * p.C + c;
    const T* x = static_cast<const T*>(p.x) + n * p.V * p.C + c;
    transpose_tile(x, p.C, p.V, width, static_cast<T*>(p.joints) + first * p.V, p.V, false);
    for (int64_t k = 0; k < width; k += kLanes) {
      Vec total{};
      for (int64_t v = 0; v < p.V; ++v) total += load_within(x + v * p.C + k, limit);
      store_some(static_cast<T*>(p.frames) + first + k, total / static_cast<float>(p.V), width - k);
      store_some(static_cast<T*>(p.mean) + first + k, total / static_cast<float>(p.V), width - k);
    }
  }
}

template <typename T>
void forward_channels_last(const SqueezePool& p, int64_t begin, int64_t end) {
  if (p.T == 1 && p.bodies == 1 && !p.lengths) return forward_single_frame_channels_last<T>(p, begin, end);
  const int64_t blocks = (p.C + p.width - 1) / p.width;
  const T* x = static_cast<const T*>(p.x);
  const T* limit = x + p.N * p.bodies * p.C * p.T * p.V;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t n = i / blocks, c = i % blocks * p.width, width = smaller(p.width, p.C - c), ld = round_up(width, kLanes);
    float* frames = scratch(0, (p.T + 2 * p.V + 1) * ld);
    float *joints = frames + p.T * ld, *block = joints + p.V * ld, *mean = block + p.V * ld;
    clear(frames, (p.T + p.V) * ld);
    for (int64_t b = n * p.bodies; b < (n + 1) * p.bodies; ++b) {
      const int64_t L = valid_frames(p, b), step = p.V * p.C;
      const T* row = x + b * p.T * step + c;
      for (int64_t t = 0; t < L;) {
        clear(block, p.V * ld);
        for (const int64_t last = smaller(t + kFrames, L); t < last; ++t) {
          const T* frame = row + t * step;
          int64_t v = 0;
          for (; v + 4 <= p.V; v += 4) add_joints<4>(frame + v * p.C, p.C, limit, frames + t * ld, block + v * ld, ld);
          for (; v < p.V; ++v) add_joints<1>(frame + v * p.C, p.C, limit, frames + t * ld, block + v * ld, ld);
        }
        for (int64_t v = 0; v < p.V * ld; v += kLanes) add(joints + v, load(block + v) / static_cast<float>(L * p.bodies));
      }
    }
    for (int64_t t = 0; t < p.T * ld; t += kLanes) store(frames + t, load(frames + t) / static_cast<float>(p.V * p.bodies));
    for (int64_t k = 0; k < ld; k += kLanes) {
      Vec total{};
      for (int64_t v = 0; v < p.V; ++v) total += load(joints + v * ld + k);
      store(mean + k, total);
    }
    const int64_t first = n * p.C + c;
    transpose_tile(frames, ld, p.T, width, static_cast<T*>(p.frames) + first * p.T, p.T, false);
    transpose_tile(joints, ld, p.V, width, static_cast<T*>(p.joints) + first * p.V, p.V, false);
    store_row(static_cast<T*>(p.mean) + first, mean, width, p.V);
  }
}

// The gradient is a row of joints plus one number per frame. Rows are written in the order of memory, each with whole
// vectors that spoil the start of the next.
template <typename T>
void backward(const SqueezePoolBackward& p, int64_t begin, int64_t end) {
  const int64_t Tp = round_up(p.T, kLanes), Vp = round_up(p.V, kLanes);
  T* x = static_cast<T*>(p.x);
  const T* limit = x + end * p.T * p.V;
  float *frames = scratch(0, Tp + Vp), *joints = frames + Tp;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / p.C, L = valid_frames(p, b), source = b / p.bodies * p.C + i % p.C;
    const T *frame = static_cast<const T*>(p.frames) + source * p.T, *joint = static_cast<const T*>(p.joints) + source * p.V;
    const float mean = to_float(static_cast<const T*>(p.mean)[source]) / p.V;
    const float frame_count = p.V * p.bodies, joint_count = L * p.bodies;
    for (int64_t t = 0; t < L; t += kLanes) store(frames + t, load_some(frame + t, p.T - t) / frame_count);
    for (int64_t v = 0; v < p.V; v += kLanes) store(joints + v, (load_some(joint + v, p.V - v) + mean) / joint_count);
    T* row = x + i * p.T * p.V;
    for (int64_t t = 0; t < L; ++t, row += p.V)
      for (int64_t v = 0; v < p.V; v += kLanes) store_within(row + v, frames[t] + load(joints + v), limit);
    if (L < p.T) __builtin_memset(row, 0, (p.T - L) * p.V * sizeof(T));
  }
}

template <typename T>
void backward_channels_last(const SqueezePoolBackward& p, int64_t begin, int64_t end) {
  const int64_t ld = round_up(p.C, kLanes), step = p.V * p.C;
  T* row = static_cast<T*>(p.x) + begin * step;
  const T* limit = static_cast<T*>(p.x) + end * step;
  float *frames = scratch(0, (p.T + p.V) * ld), *joints = frames + p.T * ld;
  while (begin < end) {
    const int64_t b = begin / p.T, first = begin % p.T, count = smaller(p.T - first, end - begin);
    const int64_t L = valid_frames(p, b), valid = smaller(larger(L - first, 0), count), n = b / p.bodies;
    if (valid > 0) {
      transpose_tile(static_cast<const T*>(p.frames) + n * p.C * p.T + first, p.T, p.C, valid, frames, ld, true);
      transpose_tile(static_cast<const T*>(p.joints) + n * p.C * p.V, p.V, p.C, p.V, joints, ld, true);
      const T* mean = static_cast<const T*>(p.mean) + n * p.C;
      for (int64_t c = 0; c < ld; c += kLanes) {
        const Vec mean_c = load_some(mean + c, p.C - c) / static_cast<float>(p.V);
        for (float* joint = joints + c; joint < joints + p.V * ld; joint += ld)
          store(joint, (load(joint) + mean_c) / static_cast<float>(L * p.bodies));
      }
      for (int64_t t = 0; t < valid * ld; t += kLanes) store(frames + t, load(frames + t) / static_cast<float>(p.V * p.bodies));
    }
    for (int64_t t = 0; t < valid; ++t)
      for (int64_t v = 0; v < p.V; ++v, row += p.C)
        for (int64_t c = 0; c < p.C; c += kLanes) store_within(row + c, load(frames + t * ld + c) + load(joints + v * ld + c), limit);
    __builtin_memset(row, 0, (count - valid) * step * sizeof(T));
    row += (count - valid) * step;
    begin += count;
  }
}

}  // namespace

void squeeze_pool(const SqueezePool& p, int64_t begin, int64_t end) {
  p.dtype == Dtype::f32 ? forward<float>(p, begin, end) : forward<bf16>(p, begin, end);
}

void squeeze_pool_channels_last(const SqueezePool& p, int64_t begin, int64_t end) {
  p.dtype == Dtype::f32 ? forward_channels_last<float>(p, begin, end) : forward_channels_last<bf16>(p, begin, end);
}

void squeeze_pool_backward(const SqueezePoolBackward& p, int64_t begin, int64_t end) {
  p.dtype == Dtype::f32 ? backward<float>(p, begin, end) : backward<bf16>(p, begin, end);
}

void squeeze_pool_backward_channels_last(const SqueezePoolBackward& p, int64_t begin, int64_t end) {
  p.dtype == Dtype::f32 ? backward_channels_last<float>(p, begin, end) : backward_channels_last<bf16>(p, begin, end);
}

}  // namespace skelops::SKELOPS_LEVEL
