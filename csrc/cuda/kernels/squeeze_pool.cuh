// squeeze_pool: a block reads a (T, V) plane once, as one flat row, and sums it from shared memory.
#pragma once

#include "block.cuh"

namespace skelops {

constexpr int kStage = 4096;  // floats of a plane that are staged at a time
constexpr int kJoints = 32;   // joints that are summed at a time

struct Squeeze {
  const int64_t* lengths;  // valid frames per row of the map, or null
  int64_t C;
  int bodies, T, V;

  __device__ int length(int64_t b) const {
    if (!lengths) return T;
    const int64_t given = lengths[b];
    return given < 0 ? 0 : given < T ? static_cast<int>(given) : T;
  }
  __device__ static float inverse(int length) { return length > 0 ? 1.0f / length : 0.0f; }
};

// Frames that are staged at a time: as many as fit, one thread summing each.
inline int staged_frames(int T, int V) {
  const int fit = kStage / V < kThreads ? kStage / V : kThreads;
  return fit < 1 ? 1 : T < fit ? T : fit;
}

inline int joint_sums(int V) { return (kWarps * V + 3) / 4 * 4; }

inline int64_t squeeze_shared_bytes(int T, int V) {
  return sizeof(float) * (joint_sums(V) + static_cast<int64_t>(staged_frames(T, V)) * V + 4);
}

// One block per (clip, channel). Shared: joint sums (kWarps, V), then `staged` frames (staged, V).
template <typename T>
__global__ void squeeze_pool_kernel(const T* x, Squeeze p, int staged, T* frames, T* joints, T* mean) {
  DYNAMIC_SHARED(shared);
  float* sums = reinterpret_cast<float*>(shared);
  float* stage = sums + (kWarps * p.V + 3) / 4 * 4;
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes, thread = threadIdx.x;
  const int64_t plane = blockIdx.x, n = plane / p.C, c = plane % p.C;
  for (int v = lane; v < p.V; v += kLanes) sums[warp * p.V + v] = 0;
  for (int t0 = 0; t0 < p.T; t0 += staged) {
    const int count = p.T - t0 < staged ? p.T - t0 : staged;
    float of_frame = 0;
    for (int m = 0; m < p.bodies; ++m) {
      const int64_t b = n * p.bodies + m;
      const int length = p.length(b), left = length - t0;
      const int valid = left < 0 ? 0 : left < count ? left : count;
      __syncthreads();
      const float* rows = stage_range(x + ((b * p.C + c) * p.T + t0) * p.V, valid * p.V, stage);
      __syncthreads();
      if (thread < valid) {
        // Where V is even, neighbouring threads start at neighbouring joints, else they would meet in a bank.
        int v = p.V % 2 ? 0 : thread % p.V;
        for (int i0 = 0; i0 < p.V; i0 += kJoints) {
          float part = 0;  // sums of sums lose less than one long sum
          for (int i = i0; i < p.V && i < i0 + kJoints; ++i) {
            part += rows[thread * p.V + v];
            v = v + 1 == p.V ? 0 : v + 1;
          }
          of_frame += part;
        }
      }
      for (int v = lane; v < p.V; v += kLanes) {
        float sum = 0;
        for (int t = warp; t < valid; t += kWarps) sum += rows[t * p.V + v];
        sums[warp * p.V + v] += sum * Squeeze::inverse(length);
      }
    }
    if (thread < count) frames[plane * p.T + t0 + thread] = from_float<T>(of_frame / (p.V * p.bodies));
  }
  __syncthreads();
  float total[1] = {0};
  for (int v = thread; v < p.V; v += kThreads) {
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += sums[w * p.V + v];
    sum /= p.bodies;
    joints[plane * p.V + v] = from_float<T>(sum);
    total[0] += sum;
  }
  block_sums(total);
  if (thread == 0) mean[plane] = from_float<T>(total[0] / p.V);
}

// channels_last, one block per clip and 32 channels: lanes run along channels, warps take turns at frames.
template <typename T>
__global__ void squeeze_pool_channels_last_kernel(const T* x, Squeeze p, T* frames, T* joints, T* mean) {
  __shared__ float sums[kWarps][kJoints][kLanes];
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int64_t n = blockIdx.x, c = static_cast<int64_t>(blockIdx.y) * kLanes + lane;
  const bool inside = c < p.C;
  float of_all = 0;
  for (int v0 = 0; v0 < p.V; v0 += kJoints) {
    const int width = p.V - v0 < kJoints ? p.V - v0 : kJoints;
    for (int v = 0; v < width; ++v) sums[warp][v][lane] = 0;
    for (int t = warp; t < p.T; t += kWarps) {
      float of_frame = 0;
      for (int m = 0; m < p.bodies; ++m) {
        const int64_t b = n * p.bodies + m;
        const int length = p.length(b);
        if (!inside || t >= length) continue;
        const T* row = x + ((b * p.T + t) * p.V) * p.C + c;
        float part = 0;
#pragma unroll 4
        for (int v = 0; v < width; ++v) {
          const float value = to_float(row[(v0 + v) * p.C]);
          part += value;
          sums[warp][v][lane] += value * Squeeze::inverse(length);
        }
        of_frame += part;
        // The first pass sums whole frames, so it also reads what later ones read again (more than 32 joints).
        for (int v = kJoints; v0 == 0 && v < p.V; v += kJoints) {
          part = 0;
          for (int i = v; i < p.V && i < v + kJoints; ++i) part += to_float(row[i * p.C]);
          of_frame += part;
        }
      }
      if (inside && v0 == 0) frames[(n * p.C + c) * p.T + t] = from_float<T>(of_frame / (p.V * p.bodies));
    }
    __syncthreads();
    if (warp == 0 && inside)
      for (int v = 0; v < width; ++v) {
        float sum = 0;
        for (int w = 0; w < kWarps; ++w) sum += sums[w][v][lane];
        joints[(n * p.C + c) * p.V + v0 + v] = from_float<T>(sum / p.bodies);
        of_all += sum / p.bodies;
      }
    __syncthreads();
  }
  if (warp == 0 && inside) mean[n * p.C + c] = from_float<T>(of_all / p.V);
}

// Walks a plane in memory order: the gradient of cell (t, v) is of_frame[t] + of_joint[v], 0 past the valid frames.
struct SqueezeCursor {
  const float *of_frame, *of_joint;
  int V, valid, t = 0, v = 0;

  __device__ void seek(int i) { t = i / V, v = i % V; }
  __device__ float next() {
    const float value = t < valid ? of_frame[t] + of_joint[v] : 0.0f;
    if (++v == V) v = 0, ++t;
    return value;
  }
};

// One block per (row, channel). Shared: of_frame (staged), of_joint (V).
template <typename T>
__global__ void squeeze_pool_backward_kernel(const T* frames, const T* joints, const T* mean, Squeeze p, int staged, T* grad) {
  DYNAMIC_SHARED(shared);
  float *of_frame = reinterpret_cast<float*>(shared), *of_joint = of_frame + staged;
  const int64_t plane = blockIdx.x, b = plane / p.C, from = b / p.bodies * p.C + plane % p.C;
  const int length = p.length(b);
  const float of_all = to_float(mean[from]) / p.V, scale = Squeeze::inverse(length) / p.bodies;
  for (int v = threadIdx.x; v < p.V; v += kThreads) of_joint[v] = (to_float(joints[from * p.V + v]) + of_all) * scale;
  for (int t0 = 0; t0 < p.T; t0 += staged) {
    const int count = p.T - t0 < staged ? p.T - t0 : staged;
    __syncthreads();
    for (int t = threadIdx.x; t < count; t += kThreads)
      of_frame[t] = to_float(frames[from * p.T + t0 + t]) / (p.V * p.bodies);
    __syncthreads();
    write(grad + (plane * p.T + t0) * p.V, count * p.V, SqueezeCursor{of_frame, of_joint, p.V, length - t0});
  }
}

// channels_last, one block per row and 32 channels: lanes run along channels, warps take turns at frames.
template <typename T>
__global__ void squeeze_pool_backward_channels_last_kernel(const T* frames, const T* joints, const T* mean, Squeeze p, T* grad) {
  __shared__ float of_joint[kJoints][kLanes];
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int64_t b = blockIdx.x, c = static_cast<int64_t>(blockIdx.y) * kLanes + lane, from = b / p.bodies * p.C + c;
  const bool inside = c < p.C;
  const int length = p.length(b);
  const float of_all = inside ? to_float(mean[from]) / p.V : 0, scale = Squeeze::inverse(length) / p.bodies;
  for (int v0 = 0; v0 < p.V; v0 += kJoints) {
    const int width = p.V - v0 < kJoints ? p.V - v0 : kJoints;
    __syncthreads();
    for (int v = warp; v < width && inside; v += kWarps)
      of_joint[v][lane] = (to_float(joints[from * p.V + v0 + v]) + of_all) * scale;
    __syncthreads();
    for (int t = warp; t < p.T && inside; t += kWarps) {
      const float of_frame = to_float(frames[from * p.T + t]) / (p.V * p.bodies);
      T* row = grad + ((b * p.T + t) * p.V + v0) * p.C + c;
      for (int v = 0; v < width; ++v) row[v * p.C] = from_float<T>(t < length ? of_frame + of_joint[v][lane] : 0.0f);
    }
  }
}

}  // namespace skelops
