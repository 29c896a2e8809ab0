// parallel/pipeline/executor.h
// Runs one rank's row of a schedule table. No pipeline is the table of one stage.
#ifndef TRIREME_PARALLEL_PIPELINE_EXECUTOR_H_
#define TRIREME_PARALLEL_PIPELINE_EXECUTOR_H_

#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "parallel/comm/process_group.h"
#include "parallel/pipeline/lower.h"
#include "parallel/pipeline/schedule.h"
#include "parallel/sharding/stage.h"

namespace trireme {

// How pipeline rank `from` reaches `to`: a group with both, and the other one's rank in it. On GPUs each direction of
// each pair has a communicator of its own, since what waits in one must not hold up the other.
struct PipelineLink {
  std::shared_ptr<ProcessGroup> group;
  int peer = 0;
};

// When an action ran, in seconds of the monotonic clock.
struct ActionTimes {
  Action action;
  double begin = 0;
  double ready = 0;  // what it needs had arrived
  double end = 0;
};

struct ExecutorOptions {
  Schedule schedule;                                   // with U, R and G (Lower())
  int rank = 0;                                        // on the pipeline axis
  std::function<PipelineLink(int from, int to)> link;  // asked for pairs that exchange something and include `rank`
  // An uninitialized tensor for what flows between stages.
  std::function<at::Tensor(const MicrobatchTensors& batch)> empty_carry;
  // Told of every action after it ran. May be empty.
  std::function<void(const ActionTimes& times)> observer;
};

class PipelineExecutor {
 public:
  // stages: this rank's chunks, by their global index.
  PipelineExecutor(ExecutorOptions options, std::map<int, std::unique_ptr<Stage>> stages);

  // One step's forward and backward over all microbatches; gradients are complete when it returns, save for the sums
  // that Stage::FinishGradients makes. Adds into loss_sums [2] on the rank with the loss head. Collective over the
  // pipeline and the groups of the stages' buffers.
  void Step(const std::vector<MicrobatchTensors>& microbatches, double loss_scale, at::Tensor& loss_sums);

  // Loss only. Collective likewise.
  void Evaluate(const std::vector<MicrobatchTensors>& microbatches, at::Tensor& loss_sums);

  // Logits on the ranks with the loss head, undefined on others. Collective likewise.
  at::Tensor Generate(const MicrobatchTensors& batch, KvCache& cache);

  const std::map<int, std::unique_ptr<Stage>>& stages() const { return stages_; }
  const Schedule& schedule() const { return options_.schedule; }
  void set_observer(std::function<void(const ActionTimes&)> observer) { options_.observer = std::move(observer); }
  // The most microbatches that were between forward and backward at once in the last Step, summed over this rank's
  // stages.
  int max_in_flight() const { return max_in_flight_; }
  // The most messages to other ranks that were kept at once in the last Step, on their way or not yet seen to have
  // left.
  int most_sends() const { return most_sends_; }

 private:
  // Messages one rank sends this one, in the order it sends them.
  struct Incoming {
    PipelineLink link;
    std::vector<Message> order;
    std::vector<size_t> run_before;  // RunBeforeArrival()
    size_t posted = 0;
  };
  struct Arriving {
    at::Tensor tensor;
    Work work;
  };
  using Key = std::pair<bool, std::pair<int, int>>;  // gradient, (receiving stage, microbatch)

  void Run(const Action& action, size_t index, const std::vector<MicrobatchTensors>& microbatches, double loss_scale,
           at::Tensor& loss_sums);
  void Send(bool gradient, int stage, int microbatch, Carry carry);
  Carry Receive(bool gradient, int stage, int microbatch, const MicrobatchTensors& batch);
  void Finish();
  // Runs one microbatch through this rank's stages; what the last one returned.
  Carry ForwardOnly(const MicrobatchTensors& batch, const std::function<Carry(Stage& stage, Carry input)>& run);

  ExecutorOptions options_;
  std::map<int, std::unique_ptr<Stage>> stages_;
  std::map<int, size_t> last_gradient_;  // per stage: index of its last B or W
  std::map<int, Incoming> incoming_;     // by rank
  std::map<int, PipelineLink> outgoing_;
  std::map<Key, Arriving> arriving_;
  std::map<Key, Carry> handed_over_;  // between stages of this rank
  std::vector<Work> sends_;
  std::map<std::pair<int, int>, MicrobatchState> states_;  // by stage and microbatch
  int in_flight_ = 0, max_in_flight_ = 0, most_sends_ = 0;
  size_t computed_ = 0;  // compute actions of the step that ran
  double ready_ = 0;     // when the action under way had what it needs
};

}  // namespace trireme

#endif  // TRIREME_PARALLEL_PIPELINE_EXECUTOR_H_
