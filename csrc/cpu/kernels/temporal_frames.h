// Frames of the maps of temporal_conv as tiles in cache.
#pragma once

#include "affine.h"
#include "temporal_conv.h"
#include "tiles.h"

namespace skelops::SKELOPS_LEVEL {

enum Slot { kX, kA, kG, kH, kY, kWork };  // scratch

// The frames of a map of T as tiles of rows, width elements of type Tile apart. group: channels that a product sums over.
template <typename T, typename Tile>
struct Frames {
  const MapData& map;
  int64_t samples, channels, group, frames, V, width;

  // Whether the map has rows as a tile has them, padding (none) included.
  bool in_place() const { return has_rows() && width == channels; }

  // Whether frames first .. first + count may be read as a tile where they lie. The padding of a row then holds what comes
  // after it, which is no harm but past the end of the map, and where a step takes more channels than there are.
  bool in_place(int64_t b, int64_t first, int64_t count) const {
    if (!has_rows() || first < 0 || first + count > frames) return false;
    const int64_t after = (samples - b) * frames - first - count;
    return width == channels || (group % kTermsPerStep<Tile> == 0 && after * V * map.pitch >= width);
  }

  bool has_rows() const { return sizeof(T) == sizeof(Tile) && map.channels_last; }

  T* data(int64_t b, int64_t frame) const { return static_cast<T*>(map.data) + (b * frames + frame) * V * map.pitch; }
  Tile* rows(int64_t b, int64_t frame) const { return reinterpret_cast<Tile*>(data(b, frame)); }

  // Writes frames begin .. end of the map.
  void copy(int64_t b, int64_t begin, int64_t end, const Affine& affine, Tile* tile) const {
    if (affine.scale && map.channels_last && width == channels)
      return activate(data(b, begin), map.pitch, tile, width, (end - begin) * V, channels, affine);
    load_rows<T>(map, channels, frames * V, b, begin * V, (end - begin) * V, tile, width);
    if (affine.scale) activate(tile, width, tile, width, (end - begin) * V, padded(channels), affine);
  }

  // Frames first .. first + count of a phase, zero outside the map, in the tile or in place; ld tells how far apart rows are.
  const Tile* load(int64_t b, int64_t first, int64_t count, int64_t stride, int64_t phase, const Affine& affine, Tile* tile, int64_t* ld) const {
    if (!affine.scale && stride == 1 && in_place(b, first, count)) {
      *ld = map.pitch;
      return rows(b, first);
    }
    *ld = width;
    const int64_t of_phase = (frames - phase + stride - 1) / stride;
    const int64_t begin = smaller(larger(first, 0), first + count), end = larger(begin, smaller(first + count, of_phase));
    Tile* to = tile + (begin - first) * V * width;
    __builtin_memset(tile, 0, sizeof(Tile) * (to - tile));
    if (stride == 1 && end > begin) copy(b, begin, end, affine, to);
    for (int64_t m = begin; stride > 1 && m < end; ++m) copy(b, m * stride + phase, m * stride + phase + 1, affine, to + (m - begin) * V * width);
    __builtin_memset(tile + (end - first) * V * width, 0, sizeof(Tile) * (first + count - end) * V * width);
    return tile;
  }

  // Writes the tile to frames first .. first + count of a phase.
  void store(const float* tile, int64_t ld, int64_t b, int64_t first, int64_t count, int64_t stride, int64_t phase) const {
    if (stride == 1) return store_rows<T>(tile, ld, map, channels, frames * V, b, first * V, count * V);
    for (int64_t m = 0; m < count; ++m)
      store_rows<T>(tile + m * V * ld, ld, map, channels, frames * V, b, ((first + m) * stride + phase) * V, V);
  }
};

template <typename T, typename Tile>
Frames<T, Tile> input_frames(const TemporalConvShape& s, const MapData& map) {
  return {map, s.B, s.C, s.group_in(), s.T, s.V, s.width_in()};
}

template <typename T, typename Tile>
Frames<T, Tile> output_frames(const TemporalConvShape& s, const MapData& map) {
  return {map, s.B, s.O, s.group_out(), s.out_frames(), s.V, s.width_out()};
}

// The gradient of frames first .. first + count of y with that of its sums, zero outside.
template <typename T, typename Tile>
const Tile* load_gradient_frames(const TemporalConvBackward& p, int64_t b, int64_t first, int64_t count, Tile* tile, int64_t* ld) {
  const TemporalConvShape& s = p.shape;
  const Frames grads = output_frames<T, Tile>(s, p.grad), outputs = output_frames<T, Tile>(s, p.stats.y);
  const Tile* grad = grads.load(b, first, count, 1, 0, {}, tile, ld);
  if (!p.stats.offset) return grad;
  const int64_t begin = larger(first, 0), end = smaller(first + count, s.out_frames()), R = (end - begin) * s.V;
  int64_t ldy = 0;
  const Tile* y = p.stats.y.data ? outputs.load(b, begin, end - begin, 1, 0, {}, scratch_of<Tile>(kY, R * s.width_out()), &ldy) : nullptr;
  add_stats_gradient(grad + (begin - first) * s.V * *ld, *ld, p.stats, y, ldy, tile + (begin - first) * s.V * s.width_out(), s.width_out(), R, padded(s.O));
  *ld = s.width_out();
  return tile;
}

}  // namespace skelops::SKELOPS_LEVEL
