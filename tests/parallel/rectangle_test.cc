#include "parallel/sharding/rectangle.h"

#include <gtest/gtest.h>

#include <random>

namespace trireme {
namespace {

TEST(FlatRangeToPieces, TailRowsHead) {
  const std::vector<FlatPiece> pieces = FlatRangeToPieces({5, 10}, 7, 43);
  ASSERT_EQ(pieces.size(), 3u);
  EXPECT_EQ(pieces[0].rectangle, (Rectangle{{0, 7}, {1, 3}}));
  EXPECT_EQ(pieces[0].flat_begin, 7);
  EXPECT_EQ(pieces[1].rectangle, (Rectangle{{1, 0}, {3, 10}}));
  EXPECT_EQ(pieces[1].flat_begin, 10);
  EXPECT_EQ(pieces[2].rectangle, (Rectangle{{4, 0}, {1, 3}}));
  EXPECT_EQ(pieces[2].flat_begin, 40);
}

TEST(FlatRangeToPieces, InsideOneRow) {
  const std::vector<FlatPiece> pieces = FlatRangeToPieces({5, 10}, 12, 15);
  ASSERT_EQ(pieces.size(), 1u);
  EXPECT_EQ(pieces[0].rectangle, (Rectangle{{1, 2}, {1, 3}}));
}

TEST(FlatRangeToPieces, EmptyAndVectors) {
  EXPECT_TRUE(FlatRangeToPieces({5, 10}, 7, 7).empty());
  const std::vector<FlatPiece> pieces = FlatRangeToPieces({50}, 3, 50);
  ASSERT_EQ(pieces.size(), 1u);
  EXPECT_EQ(pieces[0].rectangle, (Rectangle{{3}, {47}}));
}

// Marks each element of the pieces by walking the rectangles; the flat range must come out, each element once.
TEST(FlatRangeToPieces, CoversExactlyTheRangeForRandomShapes) {
  std::mt19937 generator(1);
  for (int round = 0; round < 5000; ++round) {
    const int64_t rows = 1 + generator() % 9, columns = 1 + generator() % 9, n = rows * columns;
    const std::vector<int64_t> shape = round % 5 == 0 ? std::vector<int64_t>{n} : std::vector<int64_t>{rows, columns};
    int64_t begin = generator() % (n + 1), end = generator() % (n + 1);
    if (begin > end) std::swap(begin, end);
    const std::vector<FlatPiece> pieces = FlatRangeToPieces(shape, begin, end);
    ASSERT_LE(pieces.size(), 3u);
    std::vector<int> seen(n);
    int64_t at = begin;
    for (const FlatPiece& piece : pieces) {
      const Rectangle& r = piece.rectangle;
      ASSERT_EQ(piece.flat_begin, at) << "pieces are in order and contiguous";
      ASSERT_EQ(r.size.size(), shape.size());
      for (int64_t i = 0; i < r.size[0]; ++i) {
        for (int64_t j = 0; j < (shape.size() == 2 ? r.size[1] : 1); ++j) {
          const int64_t flat = shape.size() == 2 ? (r.offset[0] + i) * columns + r.offset[1] + j : r.offset[0] + i;
          ASSERT_EQ(flat, at++) << "elements of a piece follow each other";
          ++seen[flat];
        }
      }
    }
    for (int64_t i = 0; i < n; ++i) ASSERT_EQ(seen[i], i >= begin && i < end ? 1 : 0);
  }
}

TEST(Intersect, LikeElementByElement) {
  std::mt19937 generator(2);
  for (int round = 0; round < 5000; ++round) {
    const auto random = [&](size_t dims) {
      Rectangle r;
      for (size_t i = 0; i < dims; ++i) {
        r.offset.push_back(generator() % 6);
        r.size.push_back(generator() % 5);
      }
      return r;
    };
    const size_t dims = 1 + generator() % 2;
    const Rectangle a = random(dims), b = random(dims), common = Intersect(a, b);
    const auto inside = [](const Rectangle& r, const std::vector<int64_t>& at) {
      for (size_t i = 0; i < r.size.size(); ++i) {
        if (at[i] < r.offset[i] || at[i] >= r.offset[i] + r.size[i]) return false;
      }
      return true;
    };
    int64_t elements = 0;
    for (int64_t i = 0; i < 12; ++i) {
      for (int64_t j = 0; j < (dims == 2 ? 12 : 1); ++j) {
        const std::vector<int64_t> at = {i, j};
        const bool both = inside(a, at) && inside(b, at);
        ASSERT_EQ(both, inside(common, at)) << a.ToString() << " " << b.ToString();
        elements += both;
      }
    }
    ASSERT_EQ(common.numel(), elements);
    ASSERT_EQ(Intersect(b, a).numel(), elements);
  }
}

TEST(RectangleTest, Describes) {
  EXPECT_EQ((Rectangle{{3, 0}, {2, 16}}).ToString(), "[3:5, 0:16]");
  EXPECT_EQ((Rectangle{{3, 0}, {2, 16}}).numel(), 32);
}

}  // namespace
}  // namespace trireme
