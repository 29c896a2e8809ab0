// parallel/sharding/rectangle.h
// The one notion in which checkpoints, loading and resharding speak of parts of a tensor.
#ifndef TRIREME_PARALLEL_SHARDING_RECTANGLE_H_
#define TRIREME_PARALLEL_SHARDING_RECTANGLE_H_

#include <cstdint>
#include <string>
#include <vector>

namespace trireme {

// A box of a tensor of one or two dimensions: elements [offset, offset + size) along each.
struct Rectangle {
  std::vector<int64_t> offset;
  std::vector<int64_t> size;

  int64_t numel() const;
  std::string ToString() const;  // "[3:5, 0:16]"
  bool operator==(const Rectangle& other) const { return offset == other.offset && size == other.size; }
};

// A rectangle whose elements lie contiguously, row after row, from `flat_begin` of the flattened tensor.
struct FlatPiece {
  Rectangle rectangle;
  int64_t flat_begin = 0;
};

// Elements [begin, end) of a row-major tensor of `shape` as at most three rectangles: the tail of a row, whole rows,
// the head of a row.
std::vector<FlatPiece> FlatRangeToPieces(const std::vector<int64_t>& shape, int64_t begin, int64_t end);

// The common part; numel() == 0 when there is none.
Rectangle Intersect(const Rectangle& a, const Rectangle& b);

}  // namespace trireme

#endif  // TRIREME_PARALLEL_SHARDING_RECTANGLE_H_
