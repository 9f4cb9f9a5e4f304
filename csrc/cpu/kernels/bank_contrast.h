// Kernels of bank_contrast; see bank_contrast.cpp beside this file.
#pragma once

#include "level.h"

namespace skelops {

constexpr int32_t kUnvisited = -1;

// A block of anchors against the bank: similarities of all its slots first, then one anchor after the other.
struct BankContrast {
  const void* features;  // (N, D), contiguous
  const void* bank;      // (Q, D), contiguous
  Dtype features_dtype, bank_dtype;
  int64_t D, Q;
  const int32_t* classes;  // of every slot: a number from 0, or kUnvisited; padded with that to whole vectors
  int64_t positives, hard_negatives, random_negatives;
  float scale;       // of the logits: 1 / temperature
  float share;       // of an anchor in the mean
  uint32_t keys[2];  // of the random numbers

  const int64_t* anchors;         // rows of the features: those of the block
  const int32_t* anchor_classes;  // their classes
  int64_t count;                  // how many
  float* units;                   // (D, count rounded up to whole vectors): the anchors at unit length
  float* similarity;              // (count, pitch)
  int64_t pitch;
  float* losses;    // (count)
  float* gradient;  // (N, D), or null
};

constexpr int64_t kSlotTile = 96;  // slots at a time

SKELOPS_KERNEL(bank_units, (const BankContrast& p))
// Tiles begin..end of kSlotTile slots.
SKELOPS_KERNEL(bank_similarity, (const BankContrast& p, int64_t begin, int64_t end))
// Anchors begin..end of the block.
SKELOPS_KERNEL(bank_contrast, (const BankContrast& p, int64_t begin, int64_t end))

}  // namespace skelops
