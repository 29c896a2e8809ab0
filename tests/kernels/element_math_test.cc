// The arithmetic that CPU and GPU kernels share, one element at a time.
#include "kernels/base/element_math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kernels/base/philox.h"

namespace trireme {
namespace {

// Distance in units of the last place of the exact value.
double UlpError(float got, double exact) {
  const float nearest = static_cast<float>(exact);
  const double ulp = std::nextafter(std::abs(nearest), INFINITY) - static_cast<double>(std::abs(nearest));
  return std::abs(got - exact) / ulp;
}

TEST(Exp, WithinTwoUnitsOfTheLastPlaceOverItsRange) {
  double worst = 0;
  for (int64_t i = 0; i <= 2'000'000; ++i) {
    const float x = static_cast<float>(-87.33 + (88.72 + 87.33) * static_cast<double>(i) / 2'000'000);
    worst = std::max(worst, UlpError(Exp(x), std::exp(static_cast<double>(x))));
  }
  for (float x = 1e-30f; x < 1; x *= 1.001f) {
    worst = std::max({worst, UlpError(Exp(x), std::exp(static_cast<double>(x))),
                      UlpError(Exp(-x), std::exp(-static_cast<double>(x)))});
  }
  EXPECT_LT(worst, 2);
  EXPECT_GT(worst, 0.1) << "the comparison compares nothing";
}

TEST(Exp, Edges) {
  EXPECT_EQ(Exp(0.0f), 1.0f);
  EXPECT_EQ(Exp(-0.0f), 1.0f);
  EXPECT_EQ(Exp(-88.0f), 0.0f);
  EXPECT_EQ(Exp(-1e30f), 0.0f);
  EXPECT_EQ(Exp(-INFINITY), 0.0f);
  EXPECT_EQ(Exp(88.8f), INFINITY);
  EXPECT_EQ(Exp(INFINITY), INFINITY);
  EXPECT_TRUE(std::isfinite(Exp(88.72f)));
  EXPECT_TRUE(std::isnan(Exp(NAN)));
}

TEST(Bf16, RoundsToTheNearerNeighbour) {
  std::mt19937 generator(7);
  for (int i = 0; i < 100'000; ++i) {
    const float value = BitsFloat(static_cast<uint32_t>(generator()));
    if (!std::isfinite(value) || std::abs(value) > 3.38e38f) continue;
    const double error = std::abs(static_cast<double>(ToFloat(RoundToBf16(value))) - value);
    const uint32_t bits = FloatBits(value);
    const double below = BitsFloat(bits & 0xFFFF0000u), above = BitsFloat((bits & 0xFFFF0000u) + 0x10000u);
    EXPECT_EQ(error, std::min(std::abs(below - value), std::abs(above - value))) << value;
  }
}

TEST(Bf16, TiesGoToEven) {
  EXPECT_EQ(RoundToBf16(BitsFloat(0x3F808000)).bits, 0x3F80);
  EXPECT_EQ(RoundToBf16(BitsFloat(0x3F818000)).bits, 0x3F82);
  EXPECT_EQ(RoundToBf16(BitsFloat(0x7F7F8000)).bits, 0x7F80) << "past the largest finite value lies infinity";
}

// Known answers of the authors' library, Random123 (kat_vectors: philox4x32 10).
TEST(Philox, KnownAnswers) {
  const auto expect = [](RandomKey key, uint64_t low, uint64_t high, std::vector<uint32_t> words) {
    const Random4 random = Philox(key, low, high);
    EXPECT_EQ(std::vector<uint32_t>(random.word, random.word + 4), words);
  };
  expect({0, 0}, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  expect({0xffffffff, 0xffffffff}, ~uint64_t{0}, ~uint64_t{0}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  expect({0xa4093822, 0x299f31d0}, 0x85a308d3243f6a88, 0x0370734413198a2e,
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST(RandomKeyTest, EachPartChangesTheKey) {
  const auto key = [](uint64_t seed, RandomPurpose purpose, uint64_t id, uint64_t step) {
    const RandomKey made = MakeRandomKey(seed, purpose, id, step);
    return static_cast<uint64_t>(made.high) << 32 | made.low;
  };
  const uint64_t base = key(1, RandomPurpose::kInitialization, StableId("a"), 5);
  EXPECT_EQ(base, key(1, RandomPurpose::kInitialization, StableId("a"), 5));
  EXPECT_NE(base, key(2, RandomPurpose::kInitialization, StableId("a"), 5));
  EXPECT_NE(base, key(uint64_t{1} << 32 | 1, RandomPurpose::kInitialization, StableId("a"), 5));
  EXPECT_NE(base, key(1, RandomPurpose::kDropout, StableId("a"), 5));
  EXPECT_NE(base, key(1, RandomPurpose::kInitialization, StableId("b"), 5));
  EXPECT_NE(base, key(1, RandomPurpose::kInitialization, StableId("a"), 6));
}

TEST(StableIdTest, IsFnv1a) {
  EXPECT_EQ(StableId(""), 0xcbf29ce484222325u);
  EXPECT_EQ(StableId("a"), 0xaf63dc4c8601ec8cu);
  EXPECT_EQ(StableId("foobar"), 0x85944171f73967e8u);
}

}  // namespace
}  // namespace trireme
