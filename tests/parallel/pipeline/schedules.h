// tests/parallel/pipeline/schedules.h
// Every generator over a grid of shapes.
#ifndef TRIREME_TESTS_PARALLEL_PIPELINE_SCHEDULES_H_
#define TRIREME_TESTS_PARALLEL_PIPELINE_SCHEDULES_H_

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "parallel/pipeline/generators.h"
#include "parallel/pipeline/schedule.h"

namespace trireme {

inline Schedule Make(const std::string& name, int num_ranks, int stages_per_rank, int num_microbatches) {
  absl::StatusOr<Schedule> schedule = MakeSchedule(name, num_ranks, stages_per_rank, num_microbatches);
  EXPECT_TRUE(schedule.ok()) << schedule.status();
  return schedule.ok() ? *schedule : Schedule();
}

// Whether an error's text holds `part`.
inline ::testing::AssertionResult Says(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "\"" << text << "\" does not say \"" << part << "\"";
}

inline std::string Describe(const std::string& name, const ScheduleShape& shape) {
  return absl::StrCat(name, ", ", shape.num_ranks, " ranks, ", shape.stages_per_rank, " stages per rank, ",
                      shape.num_microbatches, " microbatches");
}

inline std::vector<int> StagesPerRank(const std::string& name) {
  if (name == "Interleaved1F1B") return {2, 3, 4};
  return {name == "ZB-V" ? 2 : 1};
}

// Also fewer microbatches than ranks, and numbers of them that ranks do not divide.
inline std::vector<ScheduleShape> Shapes(const std::string& name, int max_ranks, int max_microbatches) {
  std::vector<ScheduleShape> shapes;
  for (int stages_per_rank : StagesPerRank(name)) {
    for (int num_ranks = 1; num_ranks <= max_ranks; ++num_ranks) {
      for (int m = 1; m <= max_microbatches; ++m) shapes.push_back({num_ranks, stages_per_rank, m});
    }
  }
  return shapes;
}

inline Schedule Make(const std::string& name, const ScheduleShape& shape) {
  return Make(name, shape.num_ranks, shape.stages_per_rank, shape.num_microbatches);
}

}  // namespace trireme

#endif  // TRIREME_TESTS_PARALLEL_PIPELINE_SCHEDULES_H_
