// aggregate over joints of contiguous maps. The joints of a row (c, t) lie side by side, so that rows multiply an adjacency
// (sources, targets) as they are, with targets along the vector lanes: no map is transposed. Rows that share an adjacency form a group:
// all of them, those of a channel, or those of a frame (an adjacency per channel and frame is left to aggregate.cpp). The gradient of the
// adjacency of a group is its rows of x, transposed, times those of grad_y. Products take bf16 pairs where the CPU multiplies these
// (Tile, see operands.h).
#include "aggregate.h"

#include "block.h"
#include "gemm.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

enum Slot { kEdges, kX, kY, kPadded, kSums };

constexpr int64_t kRows = 120;  // in work at a time: whole blocks of a product
constexpr int64_t kShortSum = 128;  // terms; a longer sum is taken as one of those of the subsets, which rounds less

template <typename T>
struct Rows {
  const T* data;
  int64_t ld;
};

int64_t whole(int64_t n) { return round_up(n, kLanes); }

// Rows of `width` with zeros after them, up to whole vectors. Nothing past the last row is read.
template <typename T, typename Tile>
Rows<Tile> padded_rows(const Rows<T>& x, int64_t rows, int64_t width, Tile* memory) {
  const int64_t ld = whole(width), full = width / kLanes * kLanes, left = width - full;
  // Whole vectors may be loaded where as much follows.
  const int64_t followed = rows - (kLanes + x.ld - 2) / x.ld;
  IntVec lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  const IntVec kept = lane < static_cast<int32_t>(left);
  for (int64_t r = 0; r < rows; ++r) {
    const T* from = x.data + r * x.ld;
    for (int64_t i = 0; i < full; i += kLanes) store(memory + r * ld + i, load(from + i));
    if (left) store(memory + r * ld + full, r < followed ? (kept ? load(from + full) : Vec{}) : load_first(from + full, left));
  }
  return {memory, ld};
}

// The first `width` of each of the rows of a tile.
template <typename T>
void store_rows(const float* tile, int64_t rows, int64_t width, T* out, int64_t ld) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < width; i += kLanes) store_some(out + r * ld + i, load(tile + r * whole(width) + i), width - i);
}

// Rows whose elements a product sums over, read by scalars: as they lie where that is in whole steps.
template <typename Tile, typename T>
Rows<Tile> summed_along(const Rows<T>& x, int64_t rows, int64_t width, Tile* memory) {
  if constexpr (sizeof(T) == sizeof(Tile))
    if (width % kTermsPerStep<Tile> == 0) return {x.data, x.ld};
  return padded_rows(x, rows, width, memory);
}

// Rows that a product sums over, read by whole vectors: as they lie where as much follows the last row; of bf16, pairs of neighbours.
template <typename Tile, typename T>
Rows<Tile> summed_over(Rows<T> x, int64_t rows, int64_t width, const T* end, Tile* memory) {
  const bool fits = x.data + (rows - 1) * x.ld + whole(width) <= end;
  if constexpr (sizeof(Tile) == sizeof(float)) {
    if constexpr (sizeof(T) == sizeof(Tile))
      if (fits) return {x.data, x.ld};
    return padded_rows(x, rows, width, memory);
  } else {
    if (!fits) x = padded_rows(x, rows, width, scratch_of<T>(kPadded, rows * whole(width)));
    const int64_t ld = 2 * whole(width);
    pair_rows(x.data, 2 * x.ld, x.ld, steps_of<Tile>(rows), rows / 2, width, memory, ld);
    return {memory, ld};
  }
}

// An adjacency (sources, targets) for products that sum over its sources: steps of whole(targets) floats, or as many pairs.
template <typename Tile, typename T>
void read_matrix(const AggregateShape& s, const EdgeStrides& e, const T* edges, Tile* memory) {
  const T* end = edges + s.sources * s.targets;
  const bool by_source = e.w == 1;
  if constexpr (sizeof(Tile) == sizeof(float)) {
    by_source ? void(padded_rows<T>({edges, e.v}, s.sources, s.targets, memory))
              : transpose_tile(edges, e.w, s.targets, s.sources, memory, whole(s.targets), true);
  } else if (by_source) {
    summed_over<Tile, T>({edges, e.v}, s.sources, s.targets, end, memory);
  } else {
    const Rows<T> rows = padded_rows<T>({edges, e.w}, s.targets, s.sources, scratch_of<T>(kPadded, s.targets * whole(s.sources)));
    transpose_tile(reinterpret_cast<const float*>(rows.data), rows.ld / 2, s.targets, steps_of<Tile>(s.sources), reinterpret_cast<float*>(memory),
                   whole(s.targets), true);
  }
}

// How n channels fall into groups of rows; x rows are V elements wide, y rows as many as there are targets.
struct Groups {
  int64_t count, rows;
  int64_t apart, row;  // frames from one group to the next, and from one row to the next

  Groups(const AggregateShape& s, int64_t n)
      : count(s.per_channel ? n : s.per_frame ? s.T : 1),
        rows(s.per_channel ? s.T : s.per_frame ? n : n * s.T),
        apart(s.per_channel ? s.T : 1),
        row(s.per_frame ? s.T : 1) {}
};

template <typename T>
const T* edges_of(const Aggregate& p, int64_t b, int64_t k, int64_t c, int64_t group) {
  const EdgeStrides& e = p.strides;
  const bool per_channel = p.shape.per_channel, per_frame = p.shape.per_frame;
  return static_cast<const T*>(p.adjacency) + (p.shape.per_sample ? b * e.b : 0) + k * e.k + (per_channel ? (c + group) * e.c : per_frame ? group * e.t : 0);
}

template <typename T>
T* channel_of(const MapData& map, int64_t plane, int64_t b, int64_t c) {
  return static_cast<T*>(map.data) + (b * map.pitch + c) * plane;
}

// Asks for as many elements after these.
template <typename T>
void prefetch_after(const T* x, int64_t n) {
  const char* next = reinterpret_cast<const char*>(x + n);
  for (int64_t i = 0; i < static_cast<int64_t>(n * sizeof(T)); i += 64) __builtin_prefetch(next + i, 0, 2);
}

template <typename T, typename Tile>
void forward(const Aggregate& p, int64_t begin, int64_t end) {
  const AggregateShape& s = p.shape;
  const int64_t blocks = blocks_of(s.C), W = s.targets, N = whole(W), steps = steps_of<Tile>(s.sources);
  constexpr int64_t terms = kTermsPerStep<Tile>;
  const int64_t matrix = steps * terms * N, subset = s.C * s.x_rows(), sources = s.per_subset ? s.K : 1;
  const bool together = s.sum_subsets && s.K * s.sources <= kShortSum;
  Tile* edges = scratch_of<Tile>(kEdges, s.K * matrix);
  Tile* tile = scratch_of<Tile>(kX, sources * kRows * whole(s.V));
  float* sums = scratch(kSums, kRows * N);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / blocks, c = item % blocks * kBlock;
    const Groups groups(s, smaller(kBlock, s.C - c));
    for (int64_t group = 0; group < groups.count; ++group) {
      for (int64_t k = 0; k < s.K; ++k) read_matrix(s, p.strides, edges_of<T>(p, b, k, c, group), edges + k * matrix);
      for (int64_t first = 0; first < groups.rows; first += kRows) {
        const int64_t rows = smaller(kRows, groups.rows - first), frame = group * groups.apart + first * groups.row;
        const T* from = channel_of<const T>(p.x, s.x_rows(), b, c) + frame * s.V;
        Rows<Tile> x{};
        for (int64_t k = sources; k-- > 0;) x = summed_along<Tile, T>({from + k * subset, groups.row * s.V}, rows, s.V, tile + k * kRows * whole(s.V));
        const int64_t next = s.per_subset ? (x.data == tile ? kRows * whole(s.V) : subset) : 0;
        if (groups.row == 1)
          for (int64_t k = 0; k < sources; ++k) prefetch_after(from + k * subset, rows * s.V);
        T* y = channel_of<T>(p.y, s.y_rows(), b, c) + frame * W;
        const int64_t ldy = groups.row * W;
        for (int64_t k = 0; k < (together ? 1 : s.K); ++k) {
          const Tile *a = x.data + k * next, *of_k = edges + k * matrix;
          if (s.sum_subsets && !together)
            gemm(a, x.ld, terms, of_k, terms * N, sums, N, rows, N, steps, k > 0);
          else
            gemm<Tile, T>({a, x.ld, terms, next, of_k, terms * N, matrix, nullptr, 0, y + k * s.C * s.y_rows(), ldy, steps, together ? s.K : 1, W - (N - kLanes)},
                          rows, N);
        }
        if (s.sum_subsets && !together) store_rows(sums, rows, W, y, ldy);
      }
    }
  }
}

template <typename T, typename Tile>
void backward(const Aggregate& p, int64_t begin, int64_t end, void* grad, double* totals) {
  const AggregateShape& s = p.shape;
  const int64_t V = s.sources, W = s.targets, N = whole(W), size = V * W;
  const Groups groups(s, s.C);
  const T* end_of_y = channel_of<const T>(p.y, s.y_rows(), s.B - 1, s.y_channels());
  const T* end_of_x = channel_of<const T>(p.x, s.x_rows(), s.B - 1, s.x_channels());
  Tile* x_tile = scratch_of<Tile>(kX, (kRows + 1) * whole(V));
  Tile* y_tile = scratch_of<Tile>(kY, (kRows + 1) * N);
  float* sums = scratch(kSums, V * N);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / s.K, k = item % s.K;
    const T* x = channel_of<const T>(p.x, s.x_rows(), b, s.per_subset ? k * s.C : 0);
    const T* y = channel_of<const T>(p.y, s.y_rows(), b, s.sum_subsets ? 0 : k * s.C);
    for (int64_t group = 0; group < groups.count; ++group) {
      for (int64_t first = 0; first < groups.rows; first += kRows) {
        const int64_t rows = smaller(kRows, groups.rows - first), frame = group * groups.apart + first * groups.row;
        const Rows<T> of_x{x + frame * V, groups.row * V}, of_y{y + frame * W, groups.row * W};
        Rows<Tile> left;
        if constexpr (sizeof(T) == sizeof(Tile) && sizeof(Tile) == sizeof(float))
          left = of_x;  // scalars are read, and nothing past them
        else
          left = summed_over<Tile>(of_x, rows, V, end_of_x, x_tile);
        const Rows<Tile> right = summed_over<Tile>(of_y, rows, W, end_of_y, y_tile);
        gemm(left.data, kTermsPerStep<Tile>, left.ld, right.data, right.ld, sums, N, V, N, steps_of<Tile>(rows), first > 0);
      }
      const int64_t at = (totals ? k : item * groups.count + group) * size;
      if (!totals) store_rows(sums, V, W, static_cast<T*>(grad) + at, W);
      for (int64_t i = 0; totals && i < size; ++i) totals[at + i] += sums[i / W * N + i % W];
    }
  }
}

}  // namespace

void aggregate_rows(const Aggregate& p, int64_t begin, int64_t end) {
  (p.dtype == Dtype::f32 ? forward<float, float> : forward<bf16, Bf16Operand>)(p, begin, end);
}

void aggregate_rows_backward_adjacency(const Aggregate& p, int64_t begin, int64_t end, void* grad, double* sums) {
  (p.dtype == Dtype::f32 ? backward<float, float> : backward<bf16, Bf16Operand>)(p, begin, end, grad, sums);
}

}  // namespace skelops::SKELOPS_LEVEL
