// The pass over the queue as bindings call it: the cut into units, and the memory of the partial results.
#pragma once

#include "kernels/queue_attention.h"
#include "tensors.h"

namespace skelops {

// value brought into low..high; low where that is empty.
inline int64_t clamp(int64_t value, int64_t low, int64_t high) { return value < low || high < low ? low : value > high ? high : value; }

// The slots of a queue that are filled: all of them, or as many as the tensor says.
inline int64_t filled(const Tensor& queue, const std::optional<Tensor>& valid) {
  return valid ? clamp(*static_cast<const int64_t*>(to_int64(*valid).const_data_ptr()), 0, queue.size(0)) : queue.size(0);
}

// Query (N, D), contiguous, against a queue (Q, D): everything but the factors, the thresholds and the partials.
// The number of blocks and chunks must not depend on the number of threads: it fixes the order of the sums.
inline QueuePass plan_pass(const Tensor& query, const Tensor& queue, int64_t Q) {
  constexpr int64_t units = 32, cached = 1 << 16, least = 256, partial = 1 << 20;  // floats, but for units and slots
  const int64_t N = query.size(0), D = query.size(1);
  QueuePass p{};
  p.query = query.const_data_ptr();
  p.queue = queue.const_data_ptr();
  p.slot_stride = queue.stride(0), p.dim_stride = queue.stride(1);
  p.N = N, p.D = D, p.Q = Q;
  p.query_dtype = dtype_of(query), p.queue_dtype = dtype_of(queue);
  p.blocks = clamp((N * D + cached - 1) / cached, 1, (N + 63) / 64);
  p.chunks = clamp(units / p.blocks, 1, clamp(partial / (N * D + 1), 1, Q / least));
  return p;
}

// Memory for the partials of p, from the calling thread's scratch; out holds them itself where there is one chunk.
inline void give_partials(QueuePass& p, bool count, float* out) {
  const int64_t rows = p.chunks * p.N;
  float* memory = scratch(7, rows * 3 + (out && p.chunks > 1 ? rows * p.D : 0));
  p.most = memory, p.total = memory + rows;
  p.above = count ? reinterpret_cast<int32_t*>(memory + 2 * rows) : nullptr;
  p.out = out && p.chunks > 1 ? memory + 3 * rows : out;
}

inline QueueMerge merge_of(const QueuePass& p, float* lse, float* sum, int64_t* count, float* mean) {
  return {p.factors, p.most, p.total, p.above, p.out, p.N, p.D, p.chunks, lse, sum, count, mean};
}

// Rows of a matrix (N, D) worth a thread of their own.
inline int64_t row_grain(int64_t D) { return clamp((1 << 15) / (D + 1), 1, 1 << 15); }

}  // namespace skelops
