#include "enqueue.h"

#include "simd.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

// A run of slots without wrap-around.
template <typename Key, typename Slot>
void write(const Enqueue& p, const Key* keys, Slot* slots, int64_t n) {
  if (p.queue_slot == 1 && p.key_dim == 1) {
    transpose_tile(keys, p.key_row, n, p.D, slots, p.queue_dim, false);
    return;
  }
  if (p.queue_dim == 1 && p.key_dim == 1) {
    for (int64_t i = 0; i < n; ++i) {
      const Key* from = keys + i * p.key_row;
      Slot* to = slots + i * p.queue_slot;
      int64_t d = 0;
      for (; d + kLanes <= p.D; d += kLanes) store(to + d, load(from + d));
      for (; d < p.D; ++d) put(to + d, to_float(from[d]));
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i)
    for (int64_t d = 0; d < p.D; ++d) put(slots + i * p.queue_slot + d * p.queue_dim, to_float(keys[i * p.key_row + d * p.key_dim]));
}

template <typename Key, typename Slot>
void run(const Enqueue& p, int64_t begin, int64_t end) {
  const Key* keys = static_cast<const Key*>(p.keys);
  Slot* queue = static_cast<Slot*>(p.queue);
  const int64_t turn = smaller(end, larger(begin, p.Q - p.start));  // the first key that lands before start
  if (turn > begin) write(p, keys + begin * p.key_row, queue + (p.start + begin) * p.queue_slot, turn - begin);
  if (end > turn) write(p, keys + turn * p.key_row, queue + (p.start + turn - p.Q) * p.queue_slot, end - turn);
}

}  // namespace

void enqueue(const Enqueue& p, int64_t begin, int64_t end) {
  if (p.key_dtype == Dtype::f32)
    p.queue_dtype == Dtype::f32 ? run<float, float>(p, begin, end) : run<float, bf16>(p, begin, end);
  else
    p.queue_dtype == Dtype::f32 ? run<bf16, float>(p, begin, end) : run<bf16, bf16>(p, begin, end);
}

}  // namespace skelops::SKELOPS_LEVEL
