#include "data/sampling/permutation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

namespace trireme {
namespace {

TEST(Permutation, VisitsEveryIndexOnce) {
  std::vector<int64_t> sizes = {1000, 4095, 4096, 4097, 65537, 100003};
  for (int64_t size = 1; size <= 300; ++size) sizes.push_back(size);
  for (const int64_t size : sizes) {
    const Permutation permutation(size, 7 * size);
    std::vector<bool> seen(size);
    for (int64_t i = 0; i < size; ++i) {
      const int64_t image = permutation(i);
      ASSERT_GE(image, 0);
      ASSERT_LT(image, size);
      ASSERT_FALSE(seen[image]) << size;
      seen[image] = true;
    }
  }
}

TEST(Permutation, HugeSizesStayInRangeAndDistinct) {
  const Permutation permutation((int64_t{1} << 40) + 12345, 3);
  std::set<int64_t> images;
  for (int64_t i = 0; i < 20000; ++i) images.insert(permutation(i));
  EXPECT_EQ(images.size(), 20000u);
  EXPECT_GE(*images.begin(), 0);
  EXPECT_LT(*images.rbegin(), permutation.size());
  EXPECT_GT(*images.rbegin(), permutation.size() / 10 * 9);
}

TEST(Permutation, AnotherKeyGivesAnotherOrder) {
  const Permutation a(1000, 1), b(1000, 2);
  int equal = 0;
  for (int64_t i = 0; i < 1000; ++i) equal += a(i) == b(i);
  EXPECT_LT(equal, 10);  // 1 is expected by chance.
}

// Neighbours and images are uncorrelated; over keys, every image of 0 is equally likely.
TEST(Permutation, LooksRandom) {
  constexpr int64_t kSize = 10000;
  const Permutation permutation(kSize, 99);
  double with_index = 0, with_next = 0;
  const double mean = (kSize - 1) / 2.0, variance = (kSize * kSize - 1) / 12.0;
  for (int64_t i = 0; i < kSize; ++i) {
    const double centred = static_cast<double>(permutation(i)) - mean;
    with_index += centred * (static_cast<double>(i) - mean);
    with_next += centred * (static_cast<double>(permutation((i + 1) % kSize)) - mean);
  }
  EXPECT_LT(std::abs(with_index / (kSize * variance)), 0.05);  // 5 standard deviations
  EXPECT_LT(std::abs(with_next / (kSize * variance)), 0.05);

  constexpr int kKeys = 20000;
  for (const int64_t size : {3, 7, 20}) {
    std::vector<int> counts(size);
    for (int key = 0; key < kKeys; ++key) ++counts[Permutation(size, MixKeys({static_cast<uint64_t>(key)}))(0)];
    double chi_squared = 0;
    const double expected = static_cast<double>(kKeys) / static_cast<double>(size);
    for (const int count : counts) chi_squared += (count - expected) * (count - expected) / expected;
    const double freedom = static_cast<double>(size - 1);
    EXPECT_LT(chi_squared, freedom + 5 * std::sqrt(2 * freedom)) << size;
  }
}

// Runs resume by this order: another one would silently repeat and skip samples.
TEST(Permutation, OrderNeverChanges) {
  std::vector<int64_t> order;
  for (int64_t i = 0; i < 8; ++i) order.push_back(Permutation(1000, MixKeys({1234, 0, 0}))(i));
  EXPECT_EQ(order, (std::vector<int64_t>{729, 75, 163, 113, 853, 355, 743, 447}));
}

TEST(MixKeys, EveryNumberAndTheirOrderMatters) {
  EXPECT_NE(MixKeys({1, 2}), MixKeys({2, 1}));
  EXPECT_NE(MixKeys({1, 2}), MixKeys({1, 2, 0}));
  EXPECT_NE(MixKeys({0}), MixKeys({0, 0}));
  EXPECT_NE(MixKeys({1, 2}), MixKeys({1, 3}));
}

}  // namespace
}  // namespace trireme
