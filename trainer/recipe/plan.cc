#include "trainer/recipe/plan.h"

#include <absl/strings/str_format.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "launch/base/file.h"
#include "launch/base/json.h"
#include "launch/base/log.h"
#include "models/engine/layout.h"
#include "models/spec/parameters.h"
#include "parallel/pipeline/balance.h"
#include "parallel/pipeline/validate.h"

namespace trireme {
namespace {

// Each stage's costs from the sizes of its units: backward takes as long as forward for the input and once more for
// the weights; a recomputed block runs its forward again before. The head makes all its gradients in its forward.
Costs CostsFromSizes(const Recipe& recipe, const PlanOptions& options) {
  const RunConfig& config = recipe.config;
  const int64_t length = config.data().sequence_length();
  const std::vector<double> units = UnitCosts(recipe.engine.model, length);
  const double tokens = static_cast<double>(config.micro_batch_size() * length) /
                        (recipe.engine.mesh[Axis::kContext] * recipe.engine.mesh[Axis::kTensor]);
  const double second = options.flops > 0 ? tokens / options.flops : 1 / units[1];
  const bool again = config.recompute().policy() != RecomputeConfig::NONE;
  Costs costs;
  size_t unit = 0;
  for (int count : recipe.engine.stage_units) {
    StageCosts stage = {0, 0, 0, 0};
    for (int i = 0; i < count; ++i, ++unit) {
      const double cost = units[unit] * second;
      const bool block = unit > 0 && unit + 1 < units.size();
      stage.forward_seconds += unit + 1 == units.size() ? 3 * cost : cost;
      if (!block) continue;
      stage.input_gradient_seconds += again ? 2 * cost : cost;
      stage.weight_gradient_seconds += cost;
      stage.activation_bytes +=
          static_cast<double>(BlockActivationBytes(recipe.engine, static_cast<int64_t>(unit) - 1));
    }
    costs.stages.push_back(stage);
  }
  if (options.bandwidth > 0) {
    const auto size = static_cast<double>(c10::elementSize(recipe.engine.storage.compute));
    const double bytes = tokens * static_cast<double>(recipe.engine.model.hidden_size) * size;
    costs.transfer_seconds = bytes / options.bandwidth / (options.flops > 0 ? 1 : units[1]);
  }
  return costs;
}

std::string Time(double time, const std::string& unit) {
  return unit == "s" ? HumanSeconds(time) : absl::StrFormat("%.2f %s", time, unit);
}

}  // namespace

absl::StatusOr<Costs> ReadCosts(const std::string& path, int num_stages) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  JsonProblem problem;
  const std::optional<nlohmann::json> trace = ParseJson<nlohmann::json>(text, {}, &problem);
  const auto bad = [&](const std::string& what) {
    return Error(ExitCode::kConfig, "plan: ", path, " ", what, "; give a file of run_dir/trace/");
  };
  if (!trace.has_value() || !trace->contains("trireme")) return bad("is no trace of trireme's");
  const nlohmann::json& stages = JsonMember(JsonMember(*trace, "trireme"), "stages");
  if (!stages.is_array() || static_cast<int>(stages.size()) != num_stages)
    return bad(absl::StrCat("has ", stages.size(), " stages, the recipe ", num_stages));
  Costs costs;
  for (const nlohmann::json& entry : stages) {
    StageCosts stage;
    for (const auto& [name, value] : {std::pair<const char*, double*>{"forward_seconds", &stage.forward_seconds},
                                      {"input_gradient_seconds", &stage.input_gradient_seconds},
                                      {"weight_gradient_seconds", &stage.weight_gradient_seconds}}) {
      const std::optional<double> seconds = JsonNumber(JsonMember(entry, name));
      if (!seconds.has_value()) return bad(absl::StrCat("lacks ", name, " of a stage"));
      *value = std::max(0.0, *seconds);
    }
    costs.stages.push_back(stage);
  }
  return costs;
}

absl::StatusOr<RunPlan> MakePlan(const Recipe& recipe, const PlanOptions& options) {
  RunPlan plan;
  plan.costs = CostsFromSizes(recipe, options);
  plan.time_unit = options.flops > 0 ? "s" : "block forwards";
  if (!options.costs_file.empty()) {
    ASSIGN_OR_RETURN(Costs measured, ReadCosts(options.costs_file, recipe.engine.schedule.num_stages()));
    for (size_t s = 0; s < measured.stages.size(); ++s)
      measured.stages[s].activation_bytes = plan.costs.stages[s].activation_bytes;
    plan.costs = std::move(measured);
    plan.time_unit = "s";
  }
  plan.timeline = Simulate(recipe.engine.schedule, plan.costs);
  plan.in_flight = MaxInFlight(recipe.engine.schedule);
  for (int rank = 0; rank < recipe.engine.schedule.num_ranks(); ++rank)
    plan.memory.push_back(EstimateMemory(recipe.engine, recipe.optimizer_memory(), rank, at::kCUDA));
  return plan;
}

std::string PlanText(const Recipe& recipe, const RunPlan& plan) {
  const Schedule& schedule = recipe.engine.schedule;
  std::string text =
      absl::StrCat("mesh       ", recipe.engine.mesh.ToString(), "\nmodel      ",
                   HumanCount(static_cast<double>(NumParameters(recipe.engine.model))), " parameters\nschedule   ",
                   schedule.name, ", ", schedule.num_stages(), schedule.num_stages() == 1 ? " stage" : " stages", ", ",
                   schedule.num_microbatches, " microbatches of ", recipe.config.micro_batch_size(), " x ",
                   recipe.config.data().sequence_length(), " tokens per data rank\nunits      ",
                   absl::StrJoin(recipe.engine.stage_units, " | "), "  (embedding, blocks, head; by stage)\n");
  absl::StrAppendFormat(
      &text,
      "step       %s, bubble %.1f%% of all ranks' time (communication of tensor, context and data ranks left out)\n",
      Time(plan.timeline.total, plan.time_unit), 100 * plan.timeline.bubble());
  absl::StrAppendFormat(&text, "%-9s %-12s %6s %10s %10s %10s %10s %12s %10s\n", "pipeline", "stages", "bubble",
                        "in flight", "weights", "gradients", "optimizer", "activations", "total");
  for (int rank = 0; rank < schedule.num_ranks(); ++rank) {
    std::vector<int> stages;
    for (int s = 0; s < schedule.num_stages(); ++s) {
      if (schedule.rank_of_stage[s] == rank) stages.push_back(s);
    }
    const RankMemory& m = plan.memory[rank];
    absl::StrAppendFormat(&text, "%-9d %-12s %5.1f%% %10d %10s %10s %10s %12s %10s\n", rank, absl::StrJoin(stages, ","),
                          100 * (1 - plan.timeline.busy[rank] / plan.timeline.total), plan.in_flight[rank],
                          HumanBytes(m.weights), HumanBytes(m.gradients), HumanBytes(m.optimizer),
                          HumanBytes(m.activations), HumanBytes(m.total()));
  }
  return text;
}

}  // namespace trireme
