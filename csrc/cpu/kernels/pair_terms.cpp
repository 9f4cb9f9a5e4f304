#include "pair_terms.h"

#include "operands.h"

namespace skelops::SKELOPS_LEVEL {

void pair_terms(float* matrices, int64_t count, int64_t K, int64_t N, int64_t begin, int64_t end) {
  for (int64_t i = 0; i < count; ++i) {
    float* matrix = matrices + i * K * N + begin;
    pair_rows(matrix, 2 * N, N, (K + 1) / 2, K / 2, end - begin, reinterpret_cast<bf16*>(matrix), 2 * N);
  }
}

}  // namespace skelops::SKELOPS_LEVEL
