#include "parallel/pipeline/balance.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

namespace trireme {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Cut {
  double cost = kInfinity;
  std::vector<int> units_per_stage;
};

// prefix[i] is the cost of the first i units. The cut that minimizes `combine` over the stages' values. Dynamic
// programming over (stages, units).
Cut Cheapest(const std::vector<double>& prefix, int num_stages, const std::function<double(double sum)>& value,
             const std::function<double(double so_far, double value)>& combine) {
  const int num_units = static_cast<int>(prefix.size()) - 1;
  std::vector<std::vector<double>> best(num_stages + 1, std::vector<double>(num_units + 1, kInfinity));
  std::vector<std::vector<int>> from(num_stages + 1, std::vector<int>(num_units + 1, 0));
  best[0][0] = 0;
  for (int stage = 1; stage <= num_stages; ++stage) {
    for (int end = stage; end <= num_units; ++end) {
      for (int begin = stage - 1; begin < end; ++begin) {
        const double cost = combine(best[stage - 1][begin], value(prefix[end] - prefix[begin]));
        // On a tie the later stages get more units: the first ones hold the most activations.
        if (cost < best[stage][end]) {
          best[stage][end] = cost;
          from[stage][end] = begin;
        }
      }
    }
  }
  Cut cut;
  cut.cost = best[num_stages][num_units];
  for (int stage = num_stages, end = num_units; stage > 0; end = from[stage--][end]) {
    cut.units_per_stage.insert(cut.units_per_stage.begin(), end - from[stage][end]);
  }
  return cut;
}

}  // namespace

absl::StatusOr<std::vector<int>> BalanceStages(const std::vector<double>& unit_costs, int num_stages) {
  const int num_units = static_cast<int>(unit_costs.size());
  if (num_stages < 1 || num_units < num_stages) {
    return Error(ExitCode::kConfig, "pipeline: ", num_units, " units (embedding, blocks, head) cannot fill ",
                 num_stages, " stages; use at most ", num_units, " stages");
  }
  std::vector<double> prefix(1, 0.0);
  for (int i = 0; i < num_units; ++i) {
    if (!std::isfinite(unit_costs[i]) || unit_costs[i] < 0) {
      return Error(ExitCode::kConfig, "pipeline: unit ", i, " costs ", unit_costs[i], "; expected a number from 0 up");
    }
    prefix.push_back(prefix.back() + unit_costs[i]);
  }
  const double largest =
      Cheapest(
          prefix, num_stages, [](double sum) { return sum; }, [](double a, double b) { return std::max(a, b); })
          .cost;
  // Sums that differ by rounding only count as equal.
  const double allowed = largest * (1 + 1e-12);
  return Cheapest(
             prefix, num_stages, [&](double sum) { return sum <= allowed ? sum * sum : kInfinity; },
             [](double a, double b) { return a + b; })
      .units_per_stage;
}

std::vector<double> CostPerStage(const std::vector<double>& unit_costs, const std::vector<int>& units_per_stage) {
  TRIREME_CHECK(std::accumulate(units_per_stage.begin(), units_per_stage.end(), size_t{0}) == unit_costs.size(),
                "the stages do not cut all ", unit_costs.size(), " units");
  std::vector<double> costs;
  auto begin = unit_costs.begin();
  for (int units : units_per_stage) {
    costs.push_back(std::accumulate(begin, begin + units, 0.0));
    begin += units;
  }
  return costs;
}

}  // namespace trireme
