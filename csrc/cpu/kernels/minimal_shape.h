// What minimal filtering takes in memory; see minimal_filter.h.
#pragma once

#include <cstdint>

namespace skelops {

constexpr int64_t kGroup = 3;                  // taps that are filtered together
constexpr int64_t kTileFrames = 2 * kGroup;    // of output in a tile
constexpr int64_t kMatricesOfPart = 5;

// Every other tap of a convolution with a stride of two, which read every other frame; or all taps without a stride. From 3 to 9.
struct Phase {
  int64_t first, taps;
  int64_t number;       // of the frames that they read: even or odd
  int64_t offset;       // of the frame that the first tap reads from that of the output, both by their numbers in the phase

  int64_t groups() const { return (taps + kGroup - 1) / kGroup; }
  int64_t parts() const { return groups() + 1; }
  // The last part is the last group alone, which may lack taps. One tap is no more than a product.
  int64_t taps_of(int64_t part) const { return part == groups() ? taps - kGroup * (groups() - 1) : kGroup; }
  int64_t matrices_of(int64_t part) const { return taps_of(part) == 1 ? 1 : kMatricesOfPart - kGroup + taps_of(part); }
  int64_t matrices() const { return kMatricesOfPart * groups() + matrices_of(groups()); }
  // The same for the gradient, which goes back through the taps in reverse order.
  int64_t back() const { return 1 - taps - offset; }
};

struct MinimalShape {
  int64_t k, stride;  // 3 to 9 taps without a stride, 7 or 9 with a stride of 2

  // Frames that a tile reads beyond those of its output, from where the first tap reads or, with a stride, up to a frame later.
  int64_t halo() const { return kGroup * phase(0).groups() - 1; }
  int64_t matrices() const { return phase(0).matrices() + (stride == 2 ? phase(1).matrices() : 0); }
  // A last tile of three frames takes no more products than the plain way.
  int64_t tiles(int64_t of) const { return (of + 3) / kTileFrames; }
  // The phase of the even taps, or that of the odd ones; that of all taps.
  Phase phase(int64_t odd) const {
    if (stride == 1) return {0, k, 0, -(k / 2)};
    const int64_t distance = odd - k / 2;
    return {odd, (k + 1) / 2 - odd, distance & 1, distance >> 1};
  }
};

}  // namespace skelops
