// The kernels of csrc/cuda behind C functions; dtype 0, 1, 2 is float32, bfloat16, float16.
#define SKELOPS_EMULATE
#include "enqueue.cuh"
#include "mask_pool.cuh"
#include "squeeze_pool.cuh"

using namespace skelops;

template <typename F>
void dispatch(int dtype, F f) {
  if (dtype == 0) f(float{});
  if (dtype == 1) f(__nv_bfloat16{});
  if (dtype == 2) f(__half{});
}

extern "C" {

void squeeze_pool(int dtype, bool last, const void* x, const int64_t* lengths, int64_t N, int64_t C, int T, int V, int bodies,
                  void* frames, void* joints, void* mean) {
  const Squeeze p{lengths, C, bodies, T, V};
  const unsigned n = N, c = C;
  dispatch(dtype, [&]<typename E>(E) {
    auto *from = static_cast<const E*>(x);
    auto *f = static_cast<E*>(frames), *j = static_cast<E*>(joints), *m = static_cast<E*>(mean);
    if (last)
      emulate(squeeze_pool_channels_last_kernel<E>, {n, (c + kLanes - 1) / kLanes}, kThreads, from, p, f, j, m);
    else
      emulate(squeeze_pool_kernel<E>, {n * c}, kThreads, from, p, staged_frames(T, V), f, j, m);
  });
}

void squeeze_pool_backward(int dtype, bool last, const void* frames, const void* joints, const void* mean,
                           const int64_t* lengths, int64_t N, int64_t C, int T, int V, int bodies, int staged, void* grad) {
  const Squeeze p{lengths, C, bodies, T, V};
  const unsigned b = N * bodies, c = C;
  dispatch(dtype, [&]<typename E>(E) {
    auto *f = static_cast<const E*>(frames), *j = static_cast<const E*>(joints), *m = static_cast<const E*>(mean);
    auto* g = static_cast<E*>(grad);
    if (last)
      emulate(squeeze_pool_backward_channels_last_kernel<E>, {b, (c + kLanes - 1) / kLanes}, kThreads, f, j, m, p, g);
    else
      emulate(squeeze_pool_backward_kernel<E>, {b * c}, kThreads, f, j, m, p, staged, g);
  });
}

void mask_pool(int dtype, bool last, bool is_bool, const void* x, const void* mask, int64_t B, int64_t C, int cells,
               int64_t rows_per_mask, bool per_channel, bool by_size, void* inside, void* outside) {
  const Masks p{C, rows_per_mask, cells, per_channel, by_size};
  const unsigned b = B, c = C;
  dispatch(dtype, [&]<typename E>(E) {
    const auto run = [&]<typename M>(M) {
      auto* from = static_cast<const E*>(x);
      auto* m = static_cast<const M*>(mask);
      auto *in = static_cast<E*>(inside), *out = static_cast<E*>(outside);
      if (last)
        emulate(mask_pool_channels_last_kernel<E, M>, {b, (c + kLanes - 1) / kLanes}, kThreads, from, m, p, in, out);
      else
        emulate(mask_pool_kernel<E, M>, {b * c}, kThreads, from, m, p, in, out);
    };
    is_bool ? run(bool{}) : run(E{});
  });
}

void mask_pool_backward(int dtype, bool last, bool is_bool, const void* inside, const void* outside, const void* mask, int64_t B,
                        int64_t C, int cells, int64_t rows_per_mask, bool per_channel, bool by_size, void* grad) {
  const Masks p{C, rows_per_mask, cells, per_channel, by_size};
  const unsigned b = B, c = C;
  dispatch(dtype, [&]<typename E>(E) {
    const auto run = [&]<typename M>(M) {
      auto *in = static_cast<const E*>(inside), *out = static_cast<const E*>(outside);
      auto* m = static_cast<const M*>(mask);
      auto* g = static_cast<E*>(grad);
      if (last)
        emulate(mask_pool_backward_channels_last_kernel<E, M>, {b, (c + kLanes - 1) / kLanes}, kThreads, in, out, m, p, g);
      else
        emulate(mask_pool_backward_kernel<E, M>, {b * c}, kThreads, in, out, m, p, g);
    };
    is_bool ? run(bool{}) : run(E{});
  });
}

void enqueue(int queue_dtype, int key_dtype, void* queue, const void* keys, int64_t* pointer, const int64_t* sizes, unsigned grid) {
  Ring p;
  memcpy(&p, sizes, sizeof p);
  dispatch(queue_dtype, [&]<typename S>(S) {
    dispatch(key_dtype, [&]<typename K>(K) {
      emulate(enqueue_kernel<S, K>, {grid}, 64, static_cast<S*>(queue), static_cast<const K*>(keys), pointer, p, grid == 1);
    });
  });
  if (grid > 1) emulate(advance_kernel, {1}, 1, pointer, p);
}
}
