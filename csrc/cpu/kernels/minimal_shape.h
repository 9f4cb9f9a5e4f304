// What minimal filtering takes in memory; see minimal_filter.h.
#pragma once

#include <cstdint>

namespace skelops {

constexpr int64_t kMinimalFrames = 6;    // of output in a tile
constexpr int64_t kMinimalHalo = 8;      // frames that a tile reads beyond as many
constexpr int64_t kParts = 4, kMatricesOfPart = 5;

struct MinimalShape {
  int64_t k;  // taps: 7 or 9

  bool one_tap(int64_t part) const { return part == 3 && k == 7; }
  int64_t matrices() const { return 3 * kMatricesOfPart + (k == 9 ? kMatricesOfPart : 1); }
  // A last tile of three frames or less takes no fewer products than the plain way.
  int64_t tiles(int64_t frames) const { return (frames + kMinimalFrames - 4) / kMinimalFrames; }
};

}  // namespace skelops
