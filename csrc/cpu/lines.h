// Maps as lines, for the bindings of ops that treat all elements of a channel alike.
#pragma once

#include <numeric>

#include "kernels/lines.h"
#include "tensors.h"

namespace skelops {

// Whether a map runs along its channels: a channels_last one, or one whose planes are single elements.
inline bool along_channels(const Map& map) { return map.channels_last || map.T * map.V == 1; }

// A map in a given one of the two formats; copied where it is in the other.
inline Map as_map_in(const Tensor& x, bool channels_last) {
  const Map map = as_map(x, Slices::of_rows);
  if (map.channels_last == channels_last || (map.pitch == map.C && (map.C == 1 || map.T * map.V == 1))) return map;
  return channels_last ? Map{torch::stable::contiguous(x, torch::headeronly::MemoryFormat::ChannelsLast), true, map.B, map.C, map.T, map.V, map.C}
                       : Map{torch::stable::contiguous(x), false, map.B, map.C, map.T, map.V, map.C};
}

// dense: no map of the call is a slice of the channels of a wider one.
inline Lines lines_of(const Map& x, bool channels_last, bool dense) {
  const int64_t total = x.B * x.C * x.T * x.V;
  if (!channels_last) return {false, x.C, x.T * x.V, total};
  if (!dense) return {true, x.C, x.C, total};
  // Rows that fill vectors, and enough of these that sums do not wait for one another.
  const int64_t filling = kChannelPad / std::gcd(x.C, kChannelPad) * x.C;
  return {true, x.C, (4 * kChannelPad + filling - 1) / filling * filling, total};
}

// The lines of one map of the call; null for none.
inline LineData lines_in(const std::optional<Map>& map, const Lines& lines) {
  if (!map) return {nullptr, 0};
  const bool dense = !lines.channels_last || map->pitch == lines.C;
  return {const_cast<void*>(map->tensor.const_data_ptr()), dense ? lines.width : map->pitch};
}

inline LineData lines_out(const Tensor& map, const Lines& lines) {
  return {map.numel() ? output_data(map) : nullptr, lines.width};
}

// The table of coefficients (C) that kernels take, with a vector of padding behind.
inline std::vector<float> table(const std::optional<Tensor>& coefficients, const Lines& lines) {
  if (!coefficients) return {};
  const Tensor source = to_float(*coefficients);
  const int64_t size = lines.channels_last ? lines.width : lines.C;
  std::vector<float> values(size + kChannelPad);
  for (int64_t i = 0; lines.C && i < size; i += lines.C) std::copy_n(floats(source), lines.C, values.data() + i);
  return values;
}

// Runs body(chunk, begin, end) over ranges of lines that depend on nothing but the shape, so that sums over them repeat
// with any number of threads.
constexpr int64_t kChunk = 32 * 1024, kMostChunks = 128;

inline int64_t chunks(const Lines& lines) {
  return std::clamp<int64_t>(lines.total / kChunk, 1, std::max<int64_t>(1, std::min(kMostChunks, lines.count())));
}

template <typename Body>
void for_lines(const Lines& lines, const Body& body) {
  const int64_t pieces = chunks(lines), count = lines.count();
  parallel_for(0, pieces, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) body(i, count * i / pieces, count * (i + 1) / pieces);
  });
}

// for_lines with body(begin, end, sums): N sums per channel, (N, C).
template <typename Body>
std::vector<double> sum_lines(const Lines& lines, int64_t N, const Body& body) {
  const int64_t size = N * lines.C;
  std::vector<double> sums(chunks(lines) * size, 0.0);
  for_lines(lines, [&](int64_t chunk, int64_t begin, int64_t end) { body(begin, end, sums.data() + chunk * size); });
  for (int64_t i = size; i < static_cast<int64_t>(sums.size()); ++i) sums[i % size] += sums[i];
  sums.resize(size);
  return sums;
}

}  // namespace skelops
