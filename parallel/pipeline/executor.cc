#include "parallel/pipeline/executor.h"

#include <algorithm>
#include <vector>

#include "launch/base/log.h"
#include "launch/base/status.h"

namespace trireme {
namespace {

// Receives posted ahead of need: enough that the next message travels while one is used. On a GPU a posted receive is a
// kernel that waits; none may wait for what this rank is yet to launch, which may need the device idle.
constexpr size_t kAhead = 2;

}  // namespace

PipelineExecutor::PipelineExecutor(ExecutorOptions options, std::map<int, std::unique_ptr<Stage>> stages)
    : options_(std::move(options)), stages_(std::move(stages)) {
  const std::vector<Action>& actions = options_.schedule.ranks[options_.rank];
  for (size_t i = 0; i < actions.size(); ++i) {
    TRIREME_CHECK(stages_.count(actions[i].stage) > 0, "stage ", actions[i].stage, " is not on this rank");
    if (actions[i].kind == ActionKind::kBackward || actions[i].kind == ActionKind::kWeightGradient)
      last_gradient_[actions[i].stage] = i;
  }
  for (int other = 0; other < options_.schedule.num_ranks(); ++other) {
    if (other == options_.rank) continue;
    std::vector<Message> order = LinkOrder(options_.schedule, other, options_.rank);
    if (!order.empty()) {
      incoming_[other] = {options_.link(other, options_.rank), std::move(order),
                          RunBeforeArrival(options_.schedule, other, options_.rank), 0};
    }
    if (!LinkOrder(options_.schedule, options_.rank, other).empty())
      outgoing_[other] = options_.link(options_.rank, other);
  }
}

void PipelineExecutor::Step(const std::vector<MicrobatchTensors>& microbatches, double loss_scale,
                            at::Tensor& loss_sums) {
  TRIREME_CHECK(static_cast<int>(microbatches.size()) == options_.schedule.num_microbatches, microbatches.size(),
                " microbatches under a schedule of ", options_.schedule.num_microbatches);
  const std::vector<Action>& actions = options_.schedule.ranks[options_.rank];
  max_in_flight_ = most_sends_ = 0;
  computed_ = 0;
  for (size_t i = 0; i < actions.size(); ++i) {
    const double begin = ready_ = MonotonicSeconds();
    Run(actions[i], i, microbatches, loss_scale, loss_sums);
    computed_ += IsCompute(actions[i].kind) ? 1 : 0;
    if (options_.observer) options_.observer({actions[i], begin, ready_, MonotonicSeconds()});
  }
  Finish();
}

void PipelineExecutor::Run(const Action& action, size_t index, const std::vector<MicrobatchTensors>& microbatches,
                           double loss_scale, at::Tensor& loss_sums) {
  const int s = action.stage, m = action.microbatch, last_stage = options_.schedule.num_stages() - 1;
  Stage& stage = *stages_.at(s);
  switch (action.kind) {
    case ActionKind::kForward: {
      MicrobatchState& state = states_[{s, m}];
      state.batch = microbatches[m];
      max_in_flight_ = std::max(max_in_flight_, ++in_flight_);
      Carry input = s > 0 ? Receive(false, s, m, microbatches[m]) : Carry();
      Carry output = stage.Forward(state, std::move(input), loss_scale, loss_sums);
      if (s < last_stage) Send(false, s + 1, m, std::move(output));
      return;
    }
    case ActionKind::kBackward:
    case ActionKind::kInputGradient: {
      MicrobatchState& state = states_.at({s, m});
      Carry gradient = s < last_stage ? Receive(true, s, m, microbatches[m]) : Carry();
      const bool both = action.kind == ActionKind::kBackward;
      Carry input_gradient =
          both ? stage.Backward(state, std::move(gradient), loss_scale, loss_sums, last_gradient_.at(s) == index)
               : stage.InputGradient(state, std::move(gradient), loss_scale, loss_sums);
      if (s > 0) Send(true, s - 1, m, std::move(input_gradient));
      if (!both) return;
      states_.erase({s, m});
      --in_flight_;
      return;
    }
    case ActionKind::kWeightGradient:
      stage.WeightGradient(states_.at({s, m}), last_gradient_.at(s) == index);
      states_.erase({s, m});
      --in_flight_;
      return;
    case ActionKind::kUnshard: {
      const std::vector<Action>& actions = options_.schedule.ranks[options_.rank];
      const auto use = std::find_if(actions.begin() + static_cast<int64_t>(index), actions.end(), [&](const Action& a) {
        return a.stage == s && a.kind != ActionKind::kUnshard && a.kind != ActionKind::kWeightGradient;
      });
      if (use != actions.end()) stage.Prefetch(use->kind != ActionKind::kForward);
      return;
    }
    case ActionKind::kReshard:
      stage.Release();
      return;
    case ActionKind::kReduceGradients:
      return;  // Begun unit by unit within the B or W before it, and complete with that.
  }
}

void PipelineExecutor::Send(bool gradient, int stage, int microbatch, Carry carry) {
  const int to = options_.schedule.rank_of_stage[stage];
  if (to == options_.rank) {
    handed_over_[{gradient, {stage, microbatch}}] = std::move(carry);
    return;
  }
  TRIREME_CHECK(carry.size() == 1, "stages pass on one tensor, not ", carry.size());
  const PipelineLink& link = outgoing_.at(to);
  // What has left is not kept: activations of a whole step would be.
  std::erase_if(sends_, [](const Work& send) { return send.Done(); });
  sends_.push_back(link.group->Exchange({{PeerTransfer::kSend, carry[0].contiguous(), link.peer}}));
  most_sends_ = std::max(most_sends_, static_cast<int>(sends_.size()));
}

Carry PipelineExecutor::Receive(bool gradient, int stage, int microbatch, const MicrobatchTensors& batch) {
  const Key key = {gradient, {stage, microbatch}};
  const int from = options_.schedule.rank_of_stage[gradient ? stage + 1 : stage - 1];
  if (from == options_.rank) {
    const auto found = handed_over_.find(key);
    TRIREME_CHECK(found != handed_over_.end(), "stage ", stage, " runs before what it needs");
    Carry carry = std::move(found->second);
    handed_over_.erase(found);
    return carry;
  }
  Incoming& incoming = incoming_.at(from);
  const auto post = [&] {
    const Message& next = incoming.order[incoming.posted++];
    Arriving& arriving = arriving_[{next.gradient, {next.stage, next.microbatch}}];
    arriving.tensor = options_.empty_carry(batch);
    arriving.work = incoming.link.group->Exchange({{PeerTransfer::kReceive, arriving.tensor, incoming.link.peer}});
  };
  while (arriving_.count(key) == 0) post();
  for (size_t ahead = 1; ahead < kAhead && incoming.posted < incoming.order.size(); ++ahead) {
    if (arriving_.size() < kAhead && incoming.run_before[incoming.posted] <= computed_) post();
  }
  Arriving arrived = std::move(arriving_.at(key));
  arriving_.erase(key);
  arrived.work.Wait();
  ready_ = MonotonicSeconds();
  return {arrived.tensor};
}

void PipelineExecutor::Finish() {
  sends_.clear();  // Waits.
  for (auto& [rank, incoming] : incoming_) incoming.posted = 0;
  TRIREME_CHECK(states_.empty() && arriving_.empty() && handed_over_.empty(), "the schedule left work undone");
}

Carry PipelineExecutor::ForwardOnly(const MicrobatchTensors& batch,
                                    const std::function<Carry(Stage& stage, Carry input)>& run) {
  const Schedule& schedule = options_.schedule;
  Carry carry;
  for (auto& [s, stage] : stages_) {
    carry.clear();
    if (s > 0) {
      const int from = schedule.rank_of_stage[s - 1];
      if (from == options_.rank) {
        carry = std::move(handed_over_.at({false, {s, 0}}));
        handed_over_.erase({false, {s, 0}});
      } else {
        const PipelineLink& link = incoming_.at(from).link;
        carry = {options_.empty_carry(batch)};
        link.group->Exchange({{PeerTransfer::kReceive, carry[0], link.peer}}).Wait();
      }
    }
    carry = run(*stage, std::move(carry));
    if (s + 1 < schedule.num_stages()) Send(false, s + 1, 0, std::exchange(carry, {}));
  }
  return carry;
}

void PipelineExecutor::Evaluate(const std::vector<MicrobatchTensors>& microbatches, at::Tensor& loss_sums) {
  // Stage after stage, microbatch after microbatch: every rank sends and receives in this one order.
  for (const MicrobatchTensors& batch : microbatches) {
    ForwardOnly(batch, [&](Stage& stage, Carry input) { return stage.Evaluate(batch, std::move(input), loss_sums); });
  }
  sends_.clear();
}

at::Tensor PipelineExecutor::Generate(const MicrobatchTensors& batch, KvCache& cache) {
  const Carry logits =
      ForwardOnly(batch, [&](Stage& stage, Carry input) { return stage.Generate(batch, std::move(input), cache); });
  sends_.clear();
  return logits.empty() ? at::Tensor() : logits[0];
}

}  // namespace trireme
