#include "parallel/sharding/rectangle.h"

#include <absl/strings/str_cat.h>

#include <algorithm>

#include "launch/base/status.h"

namespace trireme {

int64_t Rectangle::numel() const {
  int64_t n = 1;
  for (int64_t extent : size) n *= extent;
  return n;
}

std::string Rectangle::ToString() const {
  std::string text = "[";
  for (size_t i = 0; i < size.size(); ++i)
    absl::StrAppend(&text, i == 0 ? "" : ", ", offset[i], ":", offset[i] + size[i]);
  return text + "]";
}

std::vector<FlatPiece> FlatRangeToPieces(const std::vector<int64_t>& shape, int64_t begin, int64_t end) {
  std::vector<FlatPiece> pieces;
  if (begin >= end) return pieces;
  if (shape.size() == 1) {
    pieces.push_back({{{begin}, {end - begin}}, begin});
    return pieces;
  }
  TRIREME_CHECK(shape.size() == 2, "tensors of ", shape.size(), " dimensions are not cut");
  const int64_t columns = shape[1];
  int64_t at = begin;
  if (at % columns != 0) {  // The tail of a row (or a part inside one).
    const int64_t stop = std::min(end, (at / columns + 1) * columns);
    pieces.push_back({{{at / columns, at % columns}, {1, stop - at}}, at});
    at = stop;
  }
  if (const int64_t rows = (end - at) / columns; rows > 0) {
    pieces.push_back({{{at / columns, 0}, {rows, columns}}, at});
    at += rows * columns;
  }
  if (at < end) pieces.push_back({{{at / columns, 0}, {1, end - at}}, at});
  return pieces;
}

Rectangle Intersect(const Rectangle& a, const Rectangle& b) {
  Rectangle common;
  for (size_t i = 0; i < a.size.size(); ++i) {
    const int64_t begin = std::max(a.offset[i], b.offset[i]);
    const int64_t end = std::min(a.offset[i] + a.size[i], b.offset[i] + b.size[i]);
    common.offset.push_back(begin);
    common.size.push_back(std::max<int64_t>(0, end - begin));
  }
  return common;
}

}  // namespace trireme
