#include "trainer/utilization.h"

#include <gtest/gtest.h>

#include <vector>

namespace trireme {
namespace {

TEST(Utilization, IsTheShareOfThePeak) {
  Utilization utilization(400, 100, nullptr);
  EXPECT_EQ(utilization.Of(100), 0.25);
  EXPECT_EQ(utilization.Of(400), 1.0);
}

TEST(Utilization, IsUnknownWithoutAPeak) { EXPECT_FALSE(Utilization(0, 0, nullptr).Of(100).has_value()); }

TEST(Utilization, AStepAboveThePeakMeasuresAgainAndTheLargestCounts) {
  std::vector<double> measured = {90, 200, 150};  // of this rank, one of four
  size_t next = 0;
  Utilization utilization(400, 100, [&] { return measured[next++]; });
  EXPECT_EQ(utilization.Of(400), 1.0);
  EXPECT_EQ(next, 0u);
  EXPECT_FALSE(utilization.Of(500).has_value()) << "the machine was still busy";
  EXPECT_EQ(utilization.Of(500), 500.0 / 800) << "twice as fast as it seemed";
  EXPECT_EQ(utilization.Of(400), 0.5);
  EXPECT_FALSE(utilization.Of(900).has_value());
  EXPECT_EQ(utilization.Of(400), 0.5) << "a slower measurement changes nothing";
}

TEST(Utilization, NeverMoreThanOneAndNoEndlessMeasuring) {
  int measurements = 0;
  Utilization utilization(10, 10, [&] { return ++measurements, 10.0; });
  for (int step = 0; step < 100; ++step) EXPECT_FALSE(utilization.Of(11.7).has_value());
  EXPECT_EQ(measurements, 5);
}

TEST(Utilization, APublishedPeakThatIsExceededSaysNothing) {
  EXPECT_FALSE(Utilization(989e12, 989e12, nullptr).Of(990e12).has_value());
}

}  // namespace
}  // namespace trireme
