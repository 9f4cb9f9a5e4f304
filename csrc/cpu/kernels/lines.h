// A map as lines of elements, for ops that treat all elements of a channel alike.
#pragma once

#include "level.h"

namespace skelops {

// channels_last: a line is a few rows of C channels (one row of a slice of a wider map), and element i of a line takes
// entry i of a table of coefficients. Contiguous: a line is a plane (b, c), and line l takes entry l % C.
struct Lines {
  bool channels_last;
  int64_t C;
  int64_t width;  // elements of a line; the last one of a channels_last map may have fewer
  int64_t total;  // elements of the map

  int64_t count() const { return total ? (total + width - 1) / width : 0; }
  int64_t length(int64_t line) const { return line * width + width < total ? width : total - line * width; }
};

// Where the lines of a map are; they are `stride` elements apart.
struct LineData {
  void* data;
  int64_t stride;
};

}  // namespace skelops
