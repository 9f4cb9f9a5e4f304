// Tiles of a feature map in cache: rows (t, v) with channels along the vector lanes, padded to kChannelPad; as float, or
// as bf16 where products take that.
#pragma once

#include "map.h"
#include "operands.h"

namespace skelops::SKELOPS_LEVEL {

// Rows row .. row + R of sample b, where a sample has plane = T * V rows, into a tile whose rows are ld apart; the channels
// up to the next multiple of kChannelPad are zero.
template <typename T, typename Tile>
void load_rows(const MapData& map, int64_t channels, int64_t plane, int64_t b, int64_t row, int64_t R, Tile* tile, int64_t ld) {
  const int64_t width = padded(channels);
  if (map.channels_last) {
    const T* rows = static_cast<const T*>(map.data) + (b * plane + row) * map.pitch;
    for (int64_t r = 0; r < R; ++r) {
      for (int64_t c = channels / kLanes * kLanes; c < width; c += kLanes) store(tile + r * ld + c, Vec{});
      for_blocks(channels, [&](int64_t c, int64_t n) { store_some(tile + r * ld + c, load_some(rows + r * map.pitch + c, n), n); });
    }
  } else {
    transpose_tile(static_cast<const T*>(map.data) + b * map.pitch * plane + row, plane, channels, R, tile, ld, true);
    for (int64_t c = round_up(channels, kLanes); c < width; c += kLanes)
      for (int64_t r = 0; r < R; ++r) store(tile + r * ld + c, Vec{});
  }
}

// The rows as a tile (R, padded). A channels_last map of the tile's type without padding is read in place: ld tells how far
// apart the rows of the result are.
template <typename T, typename Tile = float>
const Tile* load_tile(const MapData& map, int64_t channels, int64_t plane, int64_t b, int64_t row, int64_t R, int slot, int64_t* ld = nullptr) {
  const int64_t width = padded(channels);
  if (ld) *ld = width;
  if constexpr (sizeof(T) == sizeof(Tile))
    if (map.channels_last && width == channels && (ld || map.pitch == width)) {
      if (ld) *ld = map.pitch;
      return static_cast<const T*>(map.data) + (b * plane + row) * map.pitch;
    }
  Tile* tile = scratch_of<Tile>(slot, R * width);
  load_rows<T>(map, channels, plane, b, row, R, tile, width);
  return tile;
}

// out = grad + offset + slope * y: the gradient of a map with that of its channel sums; y is null where it has no slope.
template <typename Tile>
inline void add_stats_gradient(const Tile* grad, int64_t ldg, const StatsGradient& stats, const Tile* y, int64_t ldy, Tile* out, int64_t ld, int64_t R,
                               int64_t width) {
  for (int64_t r = 0; r < R; ++r)
    for (int64_t c = 0; c < width; c += kLanes) {
      const Vec value = load(grad + r * ldg + c) + load(stats.offset + c);
      store(out + r * ld + c, y ? value + load(stats.slope + c) * load(y + r * ldy + c) : value);
    }
}

// A tile of the gradient of a map, those of its channel sums included: (R, padded), never written to the map itself.
template <typename T, typename Tile>
const Tile* load_gradient(const MapData& grad, const StatsGradient& stats, int64_t channels, int64_t plane, int64_t b, int64_t row, int64_t R,
                          int slot, int y_slot) {
  if (!stats.offset) return load_tile<T, Tile>(grad, channels, plane, b, row, R, slot);
  const int64_t width = padded(channels);
  int64_t ldg, ldy = 0;
  const Tile* g = load_tile<T, Tile>(grad, channels, plane, b, row, R, slot, &ldg);
  const Tile* y = stats.y.data ? load_tile<T, Tile>(stats.y, channels, plane, b, row, R, y_slot, &ldy) : nullptr;
  Tile* tile = scratch_of<Tile>(slot, R * width);
  add_stats_gradient(g, ldg, stats, y, ldy, tile, width, R, width);
  return tile;
}

// Writes a tile (R, ld) to where load_rows would read it.
template <typename T>
void store_rows(const float* tile, int64_t ld, const MapData& map, int64_t channels, int64_t plane, int64_t b, int64_t row, int64_t R) {
  if (!map.channels_last) {
    T* data = static_cast<T*>(map.data) + b * map.pitch * plane + row;
    // A few far-apart rows at a time, each written in one go.
    for (int64_t c = 0; c < channels; c += kLanes)
      transpose_tile(tile + c, ld, R, smaller(kLanes, channels - c), data + c * plane, plane, false);
    return;
  }
  T* rows = static_cast<T*>(map.data) + (b * plane + row) * map.pitch;
  for (int64_t r = 0; r < R; ++r)
    for_blocks(channels, [&](int64_t c, int64_t n) { store_some(rows + r * map.pitch + c, load_some(tile + r * ld + c, n), n); });
}

template <typename T>
void store_tile(const float* tile, const MapData& map, int64_t channels, int64_t plane, int64_t b, int64_t row, int64_t R) {
  store_rows<T>(tile, padded(channels), map, channels, plane, b, row, R);
}

// Asks for the memory of a tile before it is needed: a contiguous map is read and written in short pieces of far-apart rows,
// which the hardware does not foresee.
template <typename T>
void prefetch_tile(const MapData& map, int64_t channels, int64_t plane, int64_t b, int64_t row, int64_t R) {
  if (map.channels_last) return;
  const int64_t bytes = R * sizeof(T);
  const char* data = reinterpret_cast<const char*>(static_cast<const T*>(map.data) + b * map.pitch * plane + row);
  for (int64_t c = 0; c < channels; ++c, data += plane * sizeof(T))
    for (int64_t i = 0; i < bytes + 63; i += 64) __builtin_prefetch(data + i, 0, 2);
}

}  // namespace skelops::SKELOPS_LEVEL
