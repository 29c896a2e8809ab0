#include "parallel/pipeline/svg.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <regex>
#include <set>

#include "tests/parallel/pipeline/schedules.h"

namespace trireme {
namespace {

struct Cell {
  std::string kind;
  int rank, stage, microbatch;
  double x, y, width;
  std::string fill;
};

std::vector<Cell> Cells(const std::string& svg) {
  const std::regex cell(
      "<rect class=\"([FBIW])\" data-rank=\"(\\d+)\" data-stage=\"(\\d+)\" data-microbatch=\"(\\d+)\" x=\"([\\d.]+)\" "
      "y=\"([\\d.]+)\" width=\"([\\d.]+)\" height=\"[\\d.]+\" fill=\"(#[0-9a-f]{6})\">");
  std::vector<Cell> cells;
  for (std::sregex_iterator match(svg.begin(), svg.end(), cell), end; match != end; ++match) {
    const auto& m = *match;
    cells.push_back({m[1], std::stoi(m[2]), std::stoi(m[3]), std::stoi(m[4]), std::stod(m[5]), std::stod(m[6]),
                     std::stod(m[7]), m[8]});
  }
  return cells;
}

std::string Draw(const Schedule& schedule, const StageCosts& stage) {
  return DrawSvg(Simulate(schedule, EqualCosts(schedule, stage)));
}

TEST(DrawSvg, DrawsEveryActionOnceAndNoTwoOverEachOther) {
  for (const std::string& name : ScheduleNames()) {
    for (const ScheduleShape& shape : {ScheduleShape{1, StagesPerRank(name)[0], 3}, {4, StagesPerRank(name)[0], 6}}) {
      const Schedule schedule = Make(name, shape);
      std::map<int, std::vector<Cell>> rows;
      std::set<std::string> drawn;
      for (const Cell& cell : Cells(Draw(schedule, {1, 1.3, 0.6}))) {
        rows[cell.rank].push_back(cell);
        drawn.insert(absl::StrCat(cell.stage, cell.kind, cell.microbatch));
      }
      ASSERT_EQ(rows.size(), static_cast<size_t>(shape.num_ranks));
      std::set<double> heights;
      for (auto& [rank, cells] : rows) {
        ASSERT_EQ(cells.size(), schedule.ranks[rank].size()) << Describe(name, shape);
        for (const Action& action : schedule.ranks[rank]) EXPECT_EQ(drawn.count(ToString(action)), 1u);
        std::sort(cells.begin(), cells.end(), [](const Cell& a, const Cell& b) { return a.x < b.x; });
        for (size_t i = 1; i < cells.size(); ++i) {
          // Positions are printed to a thousandth of a pixel.
          EXPECT_LE(cells[i - 1].x + cells[i - 1].width, cells[i].x + 0.002) << Describe(name, shape);
          EXPECT_EQ(cells[i].y, cells[0].y);
        }
        heights.insert(cells[0].y);
      }
      EXPECT_EQ(heights.size(), rows.size());
    }
  }
}

TEST(DrawSvg, WidthsAreProportionalToTime) {
  for (const Cell& cell : Cells(Draw(Make("ZB-H1", 1, 1, 2), {1, 2, 4}))) {
    static const double unit = cell.width;  // The first is an F.
    EXPECT_NEAR(cell.width / unit, cell.kind == "F" ? 1 : cell.kind == "I" ? 2 : 4, 1e-3) << cell.kind;
  }
}

TEST(DrawSvg, ColoursTellKindsAndTheStagesOfARankApart) {
  std::map<std::pair<std::string, int>, std::set<std::string>> fills;
  for (const Cell& cell : Cells(Draw(Make("ZB-V", 2, 2, 4), {1, 1, 1}))) {
    if (cell.rank == 0) fills[{cell.kind, cell.stage}].insert(cell.fill);
  }
  std::set<std::string> all;
  for (const auto& [key, colours] : fills) {
    EXPECT_EQ(colours.size(), 1u);
    all.insert(*colours.begin());
  }
  EXPECT_EQ(fills.size(), 6u);  // F, I and W of two stages
  EXPECT_EQ(all.size(), 6u);
}

TEST(DrawSvg, HasALegendOfWhatOccursAndAnAxis) {
  const std::string svg = Draw(Make("1F1B", 2, 1, 4), {0.001, 0.001, 0.001});
  EXPECT_TRUE(Says(svg, ">F, forward</text>"));
  EXPECT_TRUE(Says(svg, ">B, backward</text>"));
  EXPECT_FALSE(Says(svg, "weight gradient</text>"));
  EXPECT_TRUE(Says(svg, ">0.005 s</text>"));
  EXPECT_TRUE(Says(svg, "bubble 20.0 %"));
}

TEST(DrawSvg, StagesThatTakeNoTimeAreDrawnWithoutWidth) {
  for (const Cell& cell : Cells(Draw(Make("1F1B", 2, 1, 2), {0, 0, 0}))) EXPECT_EQ(cell.width, 0);
}

}  // namespace
}  // namespace trireme
