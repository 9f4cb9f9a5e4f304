// What minimal filtering takes in memory; see minimal_filter.h and, for a stride of two, phase_filter.h.
#pragma once

#include <cstdint>

namespace skelops {

constexpr int64_t kMinimalFrames = 6;    // of output in a tile
constexpr int64_t kMinimalHalo = 8;      // frames that a tile reads beyond as many
constexpr int64_t kParts = 4, kMatricesOfPart = 5;
constexpr int64_t kPhaseFrames = 4;      // of output in a tile of a phase, which reads up to as many beyond

// Every other tap of a convolution with a stride of two, 3 to 5, which read every other frame; or all taps without a stride.
struct Phase {
  int64_t first, taps;
  int64_t number;       // of the frames that they read: even or odd
  int64_t offset;       // of the frame that the first tap reads from that of the output, both by their numbers in the phase

  int64_t groups() const { return taps == 5 ? 3 : 2; }
  int64_t parts() const { return groups() + 1; }
  bool one_tap(int64_t part) const { return taps % 2 && part == groups(); }
  int64_t matrices() const { return 3 * parts() - (taps % 2 ? 2 : 0); }
  // The same for the gradient, which goes back through the taps in reverse order.
  int64_t back() const { return 1 - taps - offset; }
};

struct MinimalShape {
  int64_t k, stride;  // taps: 7 or 9; stride: 1 or 2

  bool one_tap(int64_t part) const { return part == 3 && k == 7; }
  int64_t frames() const { return stride == 1 ? kMinimalFrames : kPhaseFrames; }
  int64_t halo() const { return stride == 1 ? kMinimalHalo : kPhaseFrames; }
  int64_t matrices() const {
    if (stride == 2) return phase(0).matrices() + phase(1).matrices();
    return 3 * kMatricesOfPart + (k == 9 ? kMatricesOfPart : 1);
  }
  // A last tile that is half full, or a phase's with two frames, takes no fewer products than the plain way.
  int64_t tiles(int64_t of) const { return (of + (stride == 1 ? 2 : 1)) / frames(); }
  // The phase of the even taps, or that of the odd ones; that of all taps.
  Phase phase(int64_t odd) const {
    if (stride == 1) return {0, k, 0, -(k / 2)};
    const int64_t distance = odd - k / 2;
    return {odd, (k + 1) / 2 - odd, distance & 1, distance >> 1};
  }
};

}  // namespace skelops
