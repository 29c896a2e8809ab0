// The executor runs what the table says, holds what the schedule promises, and takes the time the simulator predicts.
#include "parallel/pipeline/executor.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/custom_function.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>

#include "launch/base/file.h"
#include "launch/base/log.h"
#include "parallel/comm/mpi_group.h"
#include "parallel/pipeline/csv.h"
#include "parallel/pipeline/simulate.h"
#include "tests/parallel/multi_rank.h"
#include "tests/parallel/tiny_run.h"

namespace trireme {
namespace {

std::string Pipeline(const std::string& schedule, int microbatches) {
  return absl::StrCat("global_batch_size: ", microbatches, " parallel { pipeline: ", TestProcess().size(),
                      " pipeline_schedule: \"", schedule, "\" }");
}

constexpr char kSixBlocks[] = "model { num_hidden_layers: 6 }";

TEST(Executor, RunsTheTableInOrder) {
  REQUIRE_RANKS(TestProcess().size() == 2 || TestProcess().size() == 4, "eight units make 4 ranks two stages each");
  for (const std::string& name : ScheduleNames()) {
    for (const int microbatches : {1, 3, 8}) {
      SCOPED_TRACE(absl::StrCat(name, ", ", microbatches, " microbatches"));
      TinyRun run({kSixBlocks, Pipeline(name, microbatches)});
      run.Initialize();
      std::vector<std::string> ran, expected;
      PipelineExecutor& executor = run.model().executor();
      executor.set_observer([&](const ActionTimes& times) { ran.push_back(ToString(times.action)); });
      run.ForwardBackward(1);
      for (const Action& action : executor.schedule().ranks[run.mesh().coordinate(Axis::kPipeline)])
        expected.push_back(ToString(action));
      EXPECT_EQ(ran, expected);
    }
  }
}

TEST(Executor, OneForwardOneBackwardHoldsFewMicrobatches) {
  REQUIRE_RANKS(TestProcess().size() == 2 || TestProcess().size() == 4, "a stage per rank");
  const int ranks = TestProcess().size();
  for (const int microbatches : {1, 2, 8}) {
    TinyRun run({kSixBlocks, Pipeline("1F1B", microbatches)});
    run.Initialize();
    run.ForwardBackward(1);
    EXPECT_EQ(run.model().executor().max_in_flight(),
              std::min(microbatches, ranks - run.mesh().coordinate(Axis::kPipeline)));
  }
}

// Sent activations and gradients are let go in the step's course, not at its end.
TEST(Executor, KeepsNoMoreMessagesThanItsPeerIsBehind) {
  REQUIRE_RANKS(TestProcess().size() == 2 || TestProcess().size() == 4, "a stage per rank");
  TinyRun run({kSixBlocks, Pipeline("1F1B", 32)});
  run.Initialize();
  run.ForwardBackward(1);
  EXPECT_LE(run.model().executor().most_sends(), 2 * TestProcess().size());
}

// A table from a file, in PyTorch's dialect: here 1F1B with two stages' B cut into I and W by hand.
TEST(Executor, RunsATableFromAFile) {
  REQUIRE_RANKS(TestProcess().size() == 2, "the table has two rows");
  // Both ranks have one parent.
  const std::string path =
      (std::filesystem::temp_directory_path() / absl::StrCat("trireme-executor-test-", getppid(), ".csv")).string();
  if (TestProcess().rank() == 0) {
    EXPECT_TRUE(WriteFileAtomically(path, "0F0,0F1,,0I0,0W0,0I1,0W1\n,1F0,1I0,1F1,1W0,1B1,\n").ok());
  }
  OperationLog log;
  const std::shared_ptr<ProcessGroup> world = MakeWorldGroup(&log);
  world->Barrier();
  TinyRun table({Pipeline(path, 2)}), plain({Pipeline("1F1B", 2)});
  table.Initialize();
  plain.Initialize();
  EXPECT_EQ(table.ForwardBackward(1), plain.ForwardBackward(1));
  const Tensors expected = plain.Gradients();
  for (const auto& [name, gradient] : table.Gradients()) EXPECT_LE(RelativeDistance(gradient, expected.at(name)), 1e-6);
  world->Barrier();
  if (TestProcess().rank() == 0) std::filesystem::remove(path);
}

// ---- Time ----

struct SleepTimes {
  double forward, input_gradient, weight_gradient;  // seconds
};

void Sleep(double seconds) { ::usleep(static_cast<useconds_t>(seconds * 1e6)); }

struct SleepFunction : torch::autograd::Function<SleepFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const SleepTimes* times,
                            Weight* weight, bool last) {
    context->saved_data["times"] = static_cast<int64_t>(reinterpret_cast<intptr_t>(times));
    context->saved_data["weight"] = static_cast<int64_t>(reinterpret_cast<intptr_t>(weight));
    context->saved_data["last"] = last;
    Sleep(times->forward);
    return last ? at::zeros({}) : x.clone();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto* times = reinterpret_cast<const SleepTimes*>(context->saved_data["times"].toInt());
    auto* weight = reinterpret_cast<Weight*>(context->saved_data["weight"].toInt());
    Sleep(times->input_gradient);
    weight->AddGradient([times](at::Tensor& accumulator, bool) {
      Sleep(times->weight_gradient);
      accumulator.zero_();
    });
    return {context->saved_data["last"].toBool() ? at::zeros({4, 4}) : gradients[0], at::Tensor(), at::Tensor(),
            at::Tensor()};
  }
};

// Takes the time it is told to.
class SleepUnit final : public Unit {
 public:
  SleepUnit(const SleepTimes* times, ParameterBuffer* buffer, bool first, bool last)
      : times_(times), buffers_({buffer}), first_(first), last_(last) {}
  const std::string& name() const override { return name_; }
  const std::vector<ParameterBuffer*>& buffers() const override { return buffers_; }
  bool recomputable() const override { return false; }
  Carry Forward(const UnitContext&, Carry input, const at::Tensor& anchor) override {
    const at::Tensor x = first_ ? at::zeros({4, 4}).add(anchor.sum()) : input[0];
    return {SleepFunction::apply(x, times_, &buffers_[0]->weight(0), last_)};
  }

 private:
  const SleepTimes* times_;
  std::vector<ParameterBuffer*> buffers_;
  bool first_, last_;
  std::string name_ = "sleep";
};

double MeasuredBubble(const Schedule& schedule, const SleepTimes& times, Mesh& mesh) {
  const int rank = mesh.coordinate(Axis::kPipeline), last = schedule.num_stages() - 1;
  std::map<int, std::unique_ptr<Stage>> stages;
  for (int s = 0; s <= last; ++s) {
    if (schedule.rank_of_stage[s] != rank) continue;
    ParameterSpec spec;
    spec.name = absl::StrCat("stage ", s);
    spec.shape = {256};
    BufferOptions options;
    options.gather_group = options.reduce_group = options.replicate_group = MakeSelfGroup("alone");
    std::vector<std::unique_ptr<ParameterBuffer>> buffers;
    buffers.push_back(std::make_unique<ParameterBuffer>(std::vector<ParameterSpec>{spec}, options));
    std::vector<std::unique_ptr<Unit>> units;
    units.push_back(std::make_unique<SleepUnit>(&times, buffers[0].get(), s == 0, s == last));
    stages[s] = std::make_unique<Stage>(std::move(units), std::move(buffers), StageOptions());
  }
  const std::shared_ptr<ProcessGroup> group = mesh.group({Axis::kPipeline});
  ExecutorOptions options;
  options.schedule = Lower(schedule, {});
  options.rank = rank;
  options.link = [&](int from, int to) { return PipelineLink{group, from == rank ? to : from}; };
  options.empty_carry = [](const MicrobatchTensors&) { return at::empty({4, 4}); };
  double busy = 0, first = 1e300, end = 0;
  options.observer = [&](const ActionTimes& t) {
    if (!IsCompute(t.action.kind)) return;
    busy += t.end - t.ready;
    first = std::min(first, t.begin);
    end = std::max(end, t.end);
  };
  PipelineExecutor executor(std::move(options), std::move(stages));
  for (auto& [index, stage] : executor.stages()) stage->BeginStep();
  at::Tensor sums = at::zeros({2}, at::kDouble);
  mesh.control().Barrier();
  executor.Step(std::vector<MicrobatchTensors>(schedule.num_microbatches), 1, sums);
  for (auto& [index, stage] : executor.stages()) stage->FinishGradients(schedule.num_microbatches);
  // One machine, one clock: the step lasts from the first begin to the last end of any rank.
  at::Tensor span = at::empty({2}, at::kDouble);
  span.mutable_data_ptr<double>()[0] = -first;
  span.mutable_data_ptr<double>()[1] = end;
  mesh.control().AllReduce(span, ReduceOp::kMax).Wait();
  const double total = span.const_data_ptr<double>()[0] + span.const_data_ptr<double>()[1];
  return 1 - SumOverRanks(mesh.control(), busy) / (total * schedule.num_ranks());
}

TEST(Executor, TakesTheTimeTheSimulatorPredicts) {
  REQUIRE_RANKS(TestProcess().size() == 4, "four stages sleep");
  MeshShape shape;
  shape[Axis::kPipeline] = 4;
  absl::StatusOr<std::unique_ptr<Mesh>> mesh = Mesh::Create(TestProcess(), shape, at::kCPU);
  const SleepTimes times = {0.02, 0.02, 0.015};
  for (const std::string& name : ScheduleNames()) {
    const int stages_per_rank = name == "Interleaved1F1B" || name == "ZB-V" ? 2 : 1;
    const absl::StatusOr<Schedule> schedule = MakeSchedule(name, 4, stages_per_rank, 6);
    EXPECT_TRUE(schedule.ok()) << schedule.status();
    StageCosts costs;
    costs.forward_seconds = times.forward;
    costs.input_gradient_seconds = times.input_gradient;
    costs.weight_gradient_seconds = times.weight_gradient;
    const double predicted = Simulate(*schedule, EqualCosts(*schedule, costs)).bubble();
    // Waking up takes its time, up to a hundredth of the step. A machine that is busy with something else may stretch
    // some runs, but long sleeps by less than short ones: sleeps grow until the best run is close enough.
    const double tolerance = 0.1 * predicted + 0.01;
    double measured = 1;
    for (int attempt = 0; attempt < 8 && std::abs(measured - predicted) > tolerance; ++attempt) {
      const double longer = 1 << (attempt / 2);
      const SleepTimes sleeps = {longer * times.forward, longer * times.input_gradient, longer * times.weight_gradient};
      const double bubble = MeasuredBubble(*schedule, sleeps, **mesh);
      if (std::abs(bubble - predicted) < std::abs(measured - predicted)) measured = bubble;
    }
    EXPECT_NEAR(measured, predicted, tolerance) << name;
    if (TestProcess().rank() == 0)
      std::printf("%-16s bubble %.4f, predicted %.4f\n", name.c_str(), measured, predicted);
  }
}

}  // namespace
}  // namespace trireme
