// Kernels of nt_xent; see nt_xent.cpp beside this file.
#pragma once

#include "map.h"

namespace skelops {

struct NTXent {
  const void* tokens;  // (S, N, P, D) by strides in elements; a token's D lie side by side
  Dtype dtype;
  int64_t set_stride, clip_stride, token_stride;
  int64_t S, N, P, D, G;
  const int64_t* pairs;  // (G, 2)
  float scale;           // one over the temperature
  // Of every token in every pair (G, 2, N, P): its loss, and its denominator as exp(scale most) total, which backward reads.
  float *losses, *most, *log_total;
  const float* rates;    // backward: the gradient of each pair's loss, times scale / (2 P N) (G,)
  void* gradient;        // backward: of the tokens (S, N, P, D), contiguous

  int64_t width() const { return padded(P); }                    // of a set, where tokens lie along the lanes
  int64_t row_pitch() const { return odd_pitch(D); }                // of rows that are tokens
  int64_t column_pitch() const { return odd_pitch(S * width()); }  // of rows in which all sets lie one after the other

  // The unit of work: some tokens of a set. Neighbours are of different sets, as the first sets have more to multiply.
  static constexpr int64_t kTokens = 48;
  int64_t items() const { return S * ((P + kTokens - 1) / kTokens); }
};

// Which exponential makes a product x of a token with one of another set its weight: factor exp(scale (x - center) - offset).
struct NTXentShares {
  float *center, *offset, *factor;  // (S, S, width): set of the token, the other set, token
};

// What is in memory of one clip.
struct NTXentClip {
  int64_t n;
  float* rows;      // (S P, row_pitch): tokens at unit length, zeros up to padded(D)
  float* columns;   // (D, column_pitch): the same transposed, zeros behind the tokens of each set
  float* products;  // (S P, column_pitch) of rows with columns; of the blocks of two sets, those on and above the diagonal
  float* lengths;   // (S P)
  NTXentShares shares;

  NTXentClip(const NTXent& p, int64_t clip, float* memory) : n(clip), rows(memory) {
    const int64_t tokens = p.S * p.P, table = p.S * p.S * p.width();
    columns = rows + tokens * p.row_pitch();
    products = columns + p.D * p.column_pitch();
    shares.center = products + tokens * p.column_pitch();
    shares.offset = shares.center + table;
    shares.factor = shares.offset + table;
    lengths = shares.factor + table;
  }
  static int64_t floats(const NTXent& p) {
    return p.S * p.P * (p.row_pitch() + p.column_pitch() + 1) + p.D * p.column_pitch() + 3 * p.S * p.S * p.width();
  }
};

// The steps of a clip, each for items begin..end; a step needs those before it for all items.
SKELOPS_KERNEL(nt_xent_normalize, (const NTXent& p, const NTXentClip& clip, int64_t begin, int64_t end))
SKELOPS_KERNEL(nt_xent_multiply, (const NTXent& p, const NTXentClip& clip, int64_t begin, int64_t end))
SKELOPS_KERNEL(nt_xent_losses, (const NTXent& p, const NTXentClip& clip, int64_t begin, int64_t end))
// The backward pass continues after the products.
SKELOPS_KERNEL(nt_xent_shares, (const NTXent& p, const NTXentClip& clip, int64_t begin, int64_t end))
SKELOPS_KERNEL(nt_xent_weights, (const NTXent& p, const NTXentClip& clip, int64_t begin, int64_t end))
SKELOPS_KERNEL(nt_xent_gradients, (const NTXent& p, const NTXentClip& clip, int64_t begin, int64_t end))

}  // namespace skelops
