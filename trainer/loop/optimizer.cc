#include "trainer/loop/optimizer.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "kernels/base/ops.h"
#include "launch/base/log.h"
#include "parallel/comm/mpi_group.h"
#include "trainer/recipe/optimization.h"

namespace trireme {
namespace {

at::Tensor Part(const at::Tensor& tensor, int64_t begin, int64_t numel) {
  return tensor.defined() ? tensor.narrow(0, begin, numel) : tensor;
}

// The work of one of Muon's steps: two products with the smaller side squared, one of it alone.
double MuonCost(int64_t rows, int64_t columns) {
  const auto small = static_cast<double>(std::min(rows, columns)), large = static_cast<double>(std::max(rows, columns));
  return small * small * (2 * large + small);
}

NewtonSchulzRule NewtonSchulzOf(const Muon& muon, at::Device device) {
  NewtonSchulzRule rule;
  rule.steps = muon.newton_schulz_steps();
  if (muon.newton_schulz_coefficient_size() == 3) {
    rule.a = muon.newton_schulz_coefficient(0);
    rule.b = muon.newton_schulz_coefficient(1);
    rule.c = muon.newton_schulz_coefficient(2);
  }
  rule.eps = muon.eps();
  const bool bf16 = muon.has_newton_schulz() ? muon.newton_schulz() == Muon::BF16 : device.is_cuda();
  rule.type = bf16 ? at::kBFloat16 : at::kFloat;
  return rule;
}

double MuonScale(const Muon& muon, int64_t rows, int64_t columns) {
  const auto r = static_cast<double>(rows), c = static_cast<double>(columns);
  return muon.scaling() == Muon::MATCH_RMS_ADAMW ? 0.2 * std::sqrt(std::max(r, c)) : std::sqrt(std::max(1.0, r / c));
}

int64_t Entries(int64_t numel, int64_t block) { return (numel + block - 1) / block; }

}  // namespace

// The parts of tensors that a segment's elements are in; what a rule does not have is undefined.
struct Optimizer::Update {
  at::Tensor weights, gradient, copy;  // copy: the compute type's, where it is another tensor
  int64_t begin = 0, numel = 0;        // of the segment, in the own tensors
  std::map<std::string, at::Tensor> state;
  double rate = 0;  // learning rate of these weights
  const ParameterSpec* spec = nullptr;
  RandomKey key;  // of stochastic rounding
  WholeIndex index;

  float Keep(double rule_decay) const {
    const double decay = spec->weight_decay.value_or(spec->decay ? rule_decay : 0);
    return decay == 0 ? 1.0F : static_cast<float>(1 - rate * decay);
  }
  const at::Tensor& StateOf(const char* name) const { return state.find(name)->second; }
  bool bf16() const { return weights.scalar_type() == at::kBFloat16; }
};

Optimizer::Optimizer(const OptimizerConfig& config, std::vector<ParameterBuffer*> buffers, uint64_t seed, Mesh* mesh)
    : config_(config), buffers_(std::move(buffers)), seed_(seed) {
  for (ParameterBuffer* buffer : buffers_) AddStates(buffer);
  if (!buffers_.empty() && AdamWOf(config_).state() == AdamW::INT8)
    tables_ = MakeMomentTables(buffers_[0]->options().device);
  if (!config_.has_muon() || buffers_.empty()) return;
  newton_schulz_ = NewtonSchulzOf(config_.muon(), buffers_[0]->options().device);
  const auto axes = {Axis::kDataShard, Axis::kContext, Axis::kTensor};
  const std::shared_ptr<ProcessGroup> group = mesh != nullptr ? mesh->group(axes) : MakeSelfGroup("alone");
  const std::shared_ptr<ProcessGroup> host = mesh != nullptr ? mesh->host_group(axes) : group;
  matrices_ = std::make_unique<WholeMatrices>(
      buffers_, [this](const ParameterSpec& spec) { return ByMuon(config_, spec); }, &MuonCost, group, *host);
}

void Optimizer::AddStates(ParameterBuffer* buffer) {
  constexpr int64_t kUnit = 64;  // Segments begin at multiples of this, so that kernels read packs.
  if (!buffer->trainable()) return;
  const size_t first = states_.size(), segments = buffer->segments().size();
  std::vector<int64_t> numel;
  std::vector<at::ScalarType> types;
  for (size_t i = 0; i < segments; ++i) {
    const Segment& segment = buffer->segments()[i];
    const ParameterSpec& spec = buffer->specs()[segment.parameter];
    for (const StateKind& kind : StatesOf(config_, spec)) {
      const auto [found, added] = found_.try_emplace({buffer, kind.name}, states_.size());
      if (added) {
        states_.push_back({buffer, kind.name, at::Tensor(), std::vector<int64_t>(segments, -1), kind.block});
        numel.push_back(0);
        types.push_back(kind.type);
      }
      TRIREME_CHECK(kind.block == 1 || buffer->WholeIndexOf(segment).KeepsPacks(kind.block), spec.name,
                    " is cut inside a block of its state");
      states_[found->second].begin[i] = numel[found->second - first];
      numel[found->second - first] += Entries(Entries(segment.numel, kind.block), kUnit) * kUnit;
    }
  }
  for (size_t i = first; i < states_.size(); ++i)
    states_[i].tensor = at::zeros({numel[i - first]}, buffer->own_weights().options().dtype(types[i - first]));
}

void Optimizer::Step(int64_t step, double learning_rate, const at::Tensor& decision, const ExpertLoads* loads) {
  const double rate = config_.has_muon()
                          ? learning_rate * config_.muon().adamw().learning_rate() / config_.muon().learning_rate()
                          : learning_rate;
  for (ParameterBuffer* buffer : buffers_) {
    if (!buffer->own_gradient().defined()) continue;  // frozen
    if (loads != nullptr && config_.router_bias_rate() > 0) Balance(*buffer, decision, *loads);
    EachUpdate(buffer, step, rate, /*muon=*/false, [&](const Update& update) {
      if (config_.has_sgd()) return StepSgd(update, decision);
      if (config_.has_lion()) return StepLion(update, decision);
      StepAdamW(update, decision, AdamWOf(config_));
    });
    const bool more =
        matrices_ != nullptr && std::count(matrices_->buffers().begin(), matrices_->buffers().end(), buffer) > 0;
    if (!more) buffer->Publish(/*converted=*/true);
  }
  if (matrices_ != nullptr) StepMuon(step, learning_rate, decision);
}

void Optimizer::Balance(const ParameterBuffer& buffer, const at::Tensor& decision, const ExpertLoads& loads) const {
  constexpr int64_t kApply = offsetof(UpdateDecision, apply) / sizeof(double);
  const at::Tensor rate = decision[kApply] * config_.router_bias_rate();  // 0 where this update is left out
  for (const Segment& segment : buffer.segments()) {
    const ParameterSpec& spec = buffer.specs()[segment.parameter];
    if (!spec.balanced) continue;
    const at::Tensor counts = loads.Counts(spec.name);
    const at::Tensor below = (counts.mean() - counts).sign().narrow(0, segment.parameter_begin, segment.numel);
    at::Tensor bias = Part(buffer.own_weights(), segment.own_begin, segment.numel);
    bias.add_((below * rate).to(bias.scalar_type()));
  }
}

template <typename Visit>
void Optimizer::EachUpdate(ParameterBuffer* buffer, int64_t step, double learning_rate, bool muon,
                           Visit&& visit) const {
  const at::Tensor& weights = buffer->own_weights();
  const bool one_type = buffer->own_compute().scalar_type() == weights.scalar_type();
  for (size_t i = 0; i < buffer->segments().size(); ++i) {
    const Segment& segment = buffer->segments()[i];
    const ParameterSpec& spec = buffer->specs()[segment.parameter];
    if (!spec.trainable || ByMuon(config_, spec) != muon) continue;
    Update update;
    update.begin = segment.own_begin;
    update.numel = segment.numel;
    update.weights = Part(weights, segment.own_begin, segment.numel);
    update.gradient = Part(buffer->own_gradient(), segment.own_begin, segment.numel);
    update.copy = Part(one_type ? at::Tensor() : buffer->own_compute(), segment.own_begin, segment.numel);
    for (const StateKind& kind : StatesOf(config_, spec)) {
      const State& state = states_[found_.at({buffer, kind.name})];
      update.state[kind.name] = Part(state.tensor, state.begin[i], Entries(segment.numel, state.block));
    }
    update.rate = learning_rate * spec.rate;
    update.spec = &spec;
    update.key = MakeRandomKey(seed_, RandomPurpose::kStochasticRounding, StableId(spec.name.c_str()), step);
    update.index = buffer->WholeIndexOf(segment);
    visit(update);
  }
}

void Optimizer::StepAdamW(const Update& update, const at::Tensor& decision, const AdamW& c) const {
  AdamWRule rule;
  rule.rate = update.rate;
  rule.keep = update.Keep(c.weight_decay());
  rule.beta1 = static_cast<float>(c.beta1());
  rule.beta2 = static_cast<float>(c.beta2());
  rule.one_minus_beta1 = static_cast<float>(1 - c.beta1());
  rule.one_minus_beta2 = static_cast<float>(1 - c.beta2());
  rule.eps = static_cast<float>(c.eps());
  if (InEightBits(c, *update.spec)) {
    const EightBitMoments moments = {update.StateOf("exp_avg_codes"), update.StateOf("exp_avg_sq_codes"),
                                     update.StateOf("exp_avg_absmax"), update.StateOf("exp_avg_sq_absmax")};
    return AdamW8Update(rule, decision, update.weights, update.gradient, moments, tables_, update.copy, update.key,
                        update.index);
  }
  const at::Tensor &m = update.StateOf("exp_avg"), &v = update.StateOf("exp_avg_sq");
  if (update.bf16()) {
    AdamWUpdateBf16(rule, decision, update.weights, update.gradient, m, v, update.key, update.index);
  } else {
    AdamWUpdate(rule, decision, update.weights, update.gradient, m, v, update.copy);
  }
}

void Optimizer::StepLion(const Update& update, const at::Tensor& decision) const {
  const Lion& c = config_.lion();
  LionRule rule;
  rule.rate = static_cast<float>(update.rate);
  rule.keep = update.Keep(c.weight_decay());
  rule.beta1 = static_cast<float>(c.beta1());
  rule.beta2 = static_cast<float>(c.beta2());
  rule.one_minus_beta1 = static_cast<float>(1 - c.beta1());
  rule.one_minus_beta2 = static_cast<float>(1 - c.beta2());
  const at::Tensor& m = update.StateOf("exp_avg");
  if (update.bf16()) {
    LionUpdateBf16(rule, decision, update.weights, update.gradient, m, update.key, update.index);
  } else {
    LionUpdate(rule, decision, update.weights, update.gradient, m, update.copy);
  }
}

void Optimizer::StepSgd(const Update& update, const at::Tensor& decision) const {
  const Sgd& c = config_.sgd();
  SgdRule rule;
  rule.rate = static_cast<float>(update.rate);
  rule.momentum = static_cast<float>(c.momentum());
  rule.keep = update.Keep(c.weight_decay());
  const auto velocity = update.state.find("velocity");
  SgdUpdate(rule, decision, update.weights, update.gradient,
            velocity == update.state.end() ? at::Tensor() : velocity->second, update.copy);
}

// While this rank works on the matrices that it owns of one buffer, those of the next are on their way to it and the
// results of the one before on their way to the others.
void Optimizer::StepMuon(int64_t step, double learning_rate, const at::Tensor& decision) {
  const Muon& c = config_.muon();
  const int rounds = static_cast<int>(matrices_->buffers().size());
  std::vector<at::Tensor> directions(rounds);
  MuonMomentumRule momentum;
  momentum.momentum = static_cast<float>(c.momentum());
  momentum.one_minus_momentum = static_cast<float>(1 - c.momentum());
  momentum.nesterov = c.nesterov();
  const auto part_of = [](const at::Tensor& own, const Update& update) {
    return own.narrow(0, update.begin, update.numel);
  };
  const auto begin = [&](int round) {
    ParameterBuffer* buffer = matrices_->buffers()[round];
    directions[round] = at::empty(buffer->own_gradient().sizes(), buffer->own_gradient().options());
    EachUpdate(buffer, step, learning_rate, /*muon=*/true, [&](const Update& update) {
      MuonMomentum(momentum, decision, update.gradient, update.StateOf("momentum_buffer"),
                   part_of(directions[round], update));
    });
    matrices_->StartGather(round, directions[round]);
  };
  const auto finish = [&](int round) {
    ParameterBuffer* buffer = matrices_->buffers()[round];
    matrices_->Finish(round);
    EachUpdate(buffer, step, learning_rate, /*muon=*/true, [&](const Update& update) {
      const ParameterSpec& spec = *update.spec;
      DirectionRule rule;
      rule.rate = static_cast<float>(update.rate * MuonScale(c, spec.shape[0] / spec.matrices, spec.shape[1]));
      rule.keep = update.Keep(c.weight_decay());
      const at::Tensor direction = part_of(directions[round], update);
      if (update.bf16()) {
        DirectionUpdateBf16(rule, decision, update.weights, direction, update.key, update.index);
      } else {
        DirectionUpdate(rule, decision, update.weights, direction, update.copy);
      }
    });
    directions[round].reset();
    buffer->Publish(/*converted=*/true);
  };
  for (int round = 0; round < rounds; ++round) {
    if (round == 0) begin(0);
    if (round + 1 < rounds) begin(round + 1);
    matrices_->Change(round, [this](const at::Tensor& matrix) {
      const double start = MonotonicSeconds();
      at::Tensor direction = Orthogonalized(matrix, newton_schulz_);
      if (matrix.is_cpu()) newton_schulz_seconds_ += MonotonicSeconds() - start;
      return direction;
    });
    if (round > 0) finish(round - 1);
  }
  if (rounds > 0) finish(rounds - 1);
}

int64_t Optimizer::MemoryBytes() const {
  int64_t bytes = 0;
  for (const State& state : states_) bytes += state.tensor.nbytes();
  return bytes;
}

}  // namespace trireme
