#include "trainer/observe/trace.h"

#include <absl/strings/numbers.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "launch/base/file.h"
#include "launch/base/json.h"
#include "launch/base/log.h"
#include "parallel/comm/agreement.h"
#include "parallel/pipeline/simulate.h"

namespace trireme {
namespace {

using Json = nlohmann::ordered_json;

Json Event(const std::string& name, const std::string& category, int process, double begin, double end) {
  return {{"name", name},      {"cat", category},           {"ph", "X"}, {"pid", process}, {"tid", 0},
          {"ts", begin * 1e6}, {"dur", (end - begin) * 1e6}};
}

Json ProcessName(int process, const std::string& name) {
  return {{"name", "process_name"}, {"ph", "M"}, {"pid", process}, {"args", {{"name", name}}}};
}

// Mean seconds of the actions of one kind on a stage; 0 when there is none.
double Mean(const std::vector<std::vector<ActionTimes>>& by_rank, ActionKind kind, int stage) {
  double sum = 0;
  int count = 0;
  for (const auto& actions : by_rank) {
    for (const ActionTimes& times : actions) {
      if (times.action.kind != kind || times.action.stage != stage) continue;
      sum += times.end - times.ready;
      ++count;
    }
  }
  return count > 0 ? sum / count : 0;
}

Costs MeasuredCosts(const Schedule& schedule, const std::vector<std::vector<ActionTimes>>& by_rank) {
  Costs costs;
  for (int s = 0; s < schedule.num_stages(); ++s) {
    StageCosts stage;
    stage.forward_seconds = Mean(by_rank, ActionKind::kForward, s);
    const double both = Mean(by_rank, ActionKind::kBackward, s);
    // A whole backward is not seen in halves: they are taken to be alike.
    stage.input_gradient_seconds = both > 0 ? both / 2 : Mean(by_rank, ActionKind::kInputGradient, s);
    stage.weight_gradient_seconds = both > 0 ? both / 2 : Mean(by_rank, ActionKind::kWeightGradient, s);
    costs.stages.push_back(stage);
  }
  return costs;
}

}  // namespace

std::string TraceText(const Recipe& recipe, const std::vector<std::vector<ActionTimes>>& by_rank,
                      const std::vector<int>& pipeline_rank_of) {
  const Costs costs = MeasuredCosts(recipe.engine.schedule, by_rank);
  const Timeline predicted = Simulate(recipe.engine.schedule, costs);
  Json events = Json::array();
  const int ranks = static_cast<int>(by_rank.size());
  for (int rank = 0; rank < ranks; ++rank) {
    events.push_back(
        ProcessName(rank, absl::StrCat("rank ", rank, " (pipeline ", pipeline_rank_of[rank], "), measured")));
    for (const ActionTimes& t : by_rank[rank]) {
      if (!IsCompute(t.action.kind)) continue;
      if (t.ready > t.begin) events.push_back(Event("wait", "wait", rank, t.begin, t.ready));
      events.push_back(Event(ToString(t.action), "measured", rank, t.ready, t.end));
    }
  }
  for (int rank = 0; rank < predicted.num_ranks; ++rank)
    events.push_back(ProcessName(ranks + rank, absl::StrCat("pipeline ", rank, ", predicted")));
  for (const TimedAction& t : predicted.actions)
    events.push_back(Event(ToString(t.action), "predicted", ranks + t.rank, t.begin, t.end));
  Json stages = Json::array();
  for (const StageCosts& stage : costs.stages) {
    stages.push_back({{"forward_seconds", stage.forward_seconds},
                      {"input_gradient_seconds", stage.input_gradient_seconds},
                      {"weight_gradient_seconds", stage.weight_gradient_seconds}});
  }
  double measured = 0;
  for (const auto& actions : by_rank) {
    for (const ActionTimes& t : actions) measured = std::max(measured, t.end);
  }
  const Json trace = {{"traceEvents", events},
                      {"displayTimeUnit", "ms"},
                      {"trireme",
                       {{"mesh", recipe.engine.mesh.ToString()},
                        {"schedule", recipe.engine.schedule.name},
                        {"stages", stages},
                        {"predicted_seconds", predicted.total},
                        {"measured_seconds", measured}}}};
  return DumpJson(trace, 1) + "\n";
}

StepTrace::StepTrace(const Recipe& recipe, Mesh& mesh, PipelineExecutor& executor)
    : recipe_(recipe), mesh_(mesh), executor_(executor) {}

bool StepTrace::wants(int64_t step) const {
  const auto& steps = recipe_.config.trace().steps();
  return std::find(steps.begin(), steps.end(), step) != steps.end();
}

void StepTrace::Start() {
  actions_.clear();
  mesh_.control().Barrier();
  start_ = MonotonicSeconds();
  executor_.set_observer([this](const ActionTimes& times) {
    actions_.push_back({times.action, times.begin - start_, times.ready - start_, times.end - start_});
  });
}

absl::Status StepTrace::Finish(int64_t step) {
  executor_.set_observer(nullptr);
  const std::string own(reinterpret_cast<const char*>(actions_.data()), actions_.size() * sizeof(ActionTimes));
  const std::vector<std::string> bytes = GatherBytes(mesh_.control(), own);
  const std::vector<std::string> places = GatherBytes(mesh_.control(), absl::StrCat(mesh_.coordinate(Axis::kPipeline)));
  absl::Status written = absl::OkStatus();
  if (mesh_.control().rank() == 0) {
    std::vector<std::vector<ActionTimes>> by_rank;
    std::vector<int> pipeline_rank_of;
    for (size_t rank = 0; rank < bytes.size(); ++rank) {
      by_rank.emplace_back(bytes[rank].size() / sizeof(ActionTimes));
      std::memcpy(static_cast<void*>(by_rank.back().data()), bytes[rank].data(), bytes[rank].size());
      TRIREME_CHECK(absl::SimpleAtoi(places[rank], &pipeline_rank_of.emplace_back()), "rank ", rank);
    }
    const std::string folder = recipe_.config.run_dir() + "/trace",
                      path = absl::StrCat(folder, "/step-", step, ".json");
    written = MakeDirectories(folder);
    if (written.ok()) written = WriteFileAtomically(path, TraceText(recipe_, by_rank, pipeline_rank_of));
    if (written.ok()) Info("trace of step ", step, ": ", path, " (open it in ui.perfetto.dev)");
  }
  return Agree(mesh_.control(), written);
}

}  // namespace trireme
