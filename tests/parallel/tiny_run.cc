#include "tests/parallel/tiny_run.h"

#include <ATen/ops/zeros.h>
#include <absl/strings/match.h>
#include <absl/strings/str_split.h>
#include <gtest/gtest.h>

#include <cmath>

#include "configs/text_parser.h"
#include "parallel/comm/agreement.h"
#include "tests/parallel/multi_rank.h"
#include "tests/parallel/tiny_model.h"

namespace trireme {
namespace {

constexpr char kBase[] = R"(
  model { num_hidden_layers: 2 hidden_size: 64 num_attention_heads: 8 num_key_value_heads: 4 intermediate_size: 96
          vocab_size: 211 initializer_range: 0.1 }
  data { sequence_length: 32 }
  global_batch_size: 16
  optimizer { sgd { learning_rate: 0.3 } }
  lr_schedule { clip_grad_norm: 0 }
  train_for { steps: 100 }
  run_dir: "unused")";

// One mesh per shape for the whole job: communicators are few.
std::shared_ptr<Mesh> MeshOf(const MeshShape& shape) {
  static auto* const meshes = new std::map<std::string, std::shared_ptr<Mesh>>;
  std::shared_ptr<Mesh>& mesh = (*meshes)[shape.ToString()];
  if (mesh == nullptr) {
    absl::StatusOr<std::unique_ptr<Mesh>> made = Mesh::Create(TestProcess(), shape, at::kCPU);
    TRIREME_CHECK(made.ok(), made.status().message());
    mesh = *std::move(made);
  }
  return mesh;
}

// Makes the last tokens of each sequence ones that only fill it: s % 5 of sequence s; `first` is that of the
// microbatch.
void FillSequences(int64_t first, Microbatch* microbatch) {
  for (size_t i = 0; i < microbatch->filling.size(); ++i) {
    microbatch->filling[i] = (first + static_cast<int64_t>(i)) % 5;
    const auto end = (static_cast<int64_t>(i) + 1) * kTinySequenceLength;
    for (int64_t t = end - microbatch->filling[i]; t < end; ++t) {
      int64_t& target = microbatch->targets[static_cast<size_t>(t)];
      if (target != kIgnoredTarget) --microbatch->num_targets;
      target = kIgnoredTarget;
    }
  }
}

}  // namespace

double TensorNorm(const at::Tensor& a) {
  double sum = 0;
  const float* data = a.const_data_ptr<float>();
  for (int64_t i = 0; i < a.numel(); ++i) sum += static_cast<double>(data[i]) * data[i];
  return std::sqrt(sum);
}

double RelativeDistance(const at::Tensor& a, const at::Tensor& reference) {
  double sum = 0;
  const float *x = a.const_data_ptr<float>(), *y = reference.const_data_ptr<float>();
  for (int64_t i = 0; i < a.numel(); ++i)
    sum += (static_cast<double>(x[i]) - y[i]) * (static_cast<double>(x[i]) - y[i]);
  return std::sqrt(sum) / TensorNorm(reference);
}

void ExpectSameBytes(const std::map<std::string, std::string>& got,
                     const std::map<std::string, std::string>& expected) {
  EXPECT_EQ(got.size(), expected.size());
  for (const auto& [name, bytes] : expected) {
    const auto found = got.find(name);
    EXPECT_TRUE(found != got.end() && found->second == bytes) << name;
  }
}

TinyRun::TinyRun(const std::vector<std::string>& fragments, bool alone) {
  RunConfig config;
  std::vector<std::string> problems;
  ParseConfigText({"base", kBase, ""}, &config, &problems);
  for (const std::string& fragment : fragments) {
    RunConfig part;
    ParseConfigText({"fragment", fragment, ""}, &part, &problems);
    config.MergeFrom(part);
  }
  TRIREME_CHECK(problems.empty(), problems[0]);
  const int world = alone ? 1 : TestProcess().size();
  absl::StatusOr<Recipe> recipe = MakeRecipe(config, world, extensions_.families, {"cpu", "math"}, CorpusFacts());
  TRIREME_CHECK(recipe.ok(), recipe.status().message());
  recipe_ = *std::move(recipe);
  mesh_ = alone ? std::shared_ptr<Mesh>(Mesh::Alone(at::kCPU)) : MeshOf(recipe_.engine.mesh);
  absl::StatusOr<std::unique_ptr<Engine>> model = Engine::Create(recipe_.engine, *mesh_, extensions_);
  TRIREME_CHECK(model.ok(), model.status().message());
  model_ = *std::move(model);
  model_->set_decision_rule(recipe_.decision_rule());
  optimizer_ =
      std::make_unique<Optimizer>(recipe_.config.optimizer(), model_->buffers(), recipe_.config.seed(), mesh_.get());
  checkpointer_ = std::make_unique<Checkpointer>(recipe_, *mesh_, *model_, *optimizer_, std::vector<std::string>());
}

StepBatch TinyRun::Batch(int64_t step) const {
  StepBatch batch;
  const int64_t micro = recipe_.config.micro_batch_size();
  for (int64_t m = 0; m < recipe_.num_microbatches; ++m) {
    batch.microbatches.push_back(TinyMicrobatch(step, (mesh_->data_rank() * recipe_.num_microbatches + m) * micro,
                                                micro, recipe_.config.data().document_mask()));
    if (fills_) FillSequences((mesh_->data_rank() * recipe_.num_microbatches + m) * micro, &batch.microbatches.back());
  }
  return batch;
}

double TinyRun::ForwardBackward(int64_t step) {
  const absl::StatusOr<Loss> loss = model_->ForwardBackward(Batch(step));
  TRIREME_CHECK(loss.ok(), loss.status().message());
  return loss->mean;
}

void TinyRun::Update() {
  progress_.set_step(progress_.step() + 1);
  model_->Decide(recipe_.config.lr_schedule().clip_grad_norm());
  optimizer_->Step(progress_.step(), recipe_.peak_learning_rate(), model_->decision(), model_->loads());
}

double TinyRun::Step() {
  const double loss = ForwardBackward(progress_.step() + 1);
  Update();
  return loss;
}

PendingResults TinyRun::Issue() {
  progress_.set_step(progress_.step() + 1);
  const DeviceBatch batch = model_->Upload(Batch(progress_.step()));
  // Every data rank has as many, unless sequences have ends that are none.
  const auto total = [&](double own) {
    const double ranks = mesh_->num_data_ranks();
    return fills_ ? SumOverRanks(mesh_->control(), own) * ranks / mesh_->control().size() : own * ranks;
  };
  model_->ForwardBackward(batch, total(batch.own_targets), total(batch.own_tokens));
  PendingResults results = model_->Decide(recipe_.config.lr_schedule().clip_grad_norm());
  optimizer_->Step(progress_.step(), recipe_.peak_learning_rate(), model_->decision(), model_->loads());
  return results;
}

double TinyRun::Evaluate(int64_t step) {
  const Engine::EvaluationSums sums = model_->Evaluate(Batch(step).microbatches);
  return sums.loss_sum / static_cast<double>(sums.targets);
}

Tensors TinyRun::Whole(const std::vector<TensorPart>& parts, const std::string& suffix) {
  // Shapes from a model that holds everything, in the order of its names.
  RunConfig config = recipe_.config;
  config.clear_parallel();
  const absl::StatusOr<Recipe> recipe = MakeRecipe(config, 1, extensions_.families, {"cpu", "math"}, CorpusFacts());
  TRIREME_CHECK(recipe.ok(), recipe.status().message());
  const std::unique_ptr<Mesh> alone = Mesh::Alone(at::kCPU);
  const absl::StatusOr<std::unique_ptr<Engine>> model = Engine::Create(recipe->engine, *alone, extensions_);
  Tensors whole;
  for (ParameterBuffer* buffer : (*model)->buffers()) {
    for (const ParameterSpec& spec : buffer->specs())
      whole[spec.name + suffix] = at::zeros(spec.shape, at::TensorOptions().dtype(at::kFloat));
  }
  for (const TensorPart& part : parts) {
    at::Tensor target = whole.at(part.name);
    if (part.rectangle.size.size() == 1) target = target.flatten();  // also of blocks of a matrix
    for (size_t dim = 0; dim < part.rectangle.size.size(); ++dim)
      target = target.narrow(static_cast<int64_t>(dim), part.rectangle.offset[dim], part.rectangle.size[dim]);
    target.copy_(part.values.view(part.rectangle.size));
  }
  for (auto& [name, tensor] : whole) {
    // Every element is on one rank and zero elsewhere: adding the bits as integers moves them unchanged.
    at::Tensor bits = tensor.view(at::kInt);
    mesh_->control().AllReduce(bits, ReduceOp::kSum).Wait();
  }
  return whole;
}

Tensors TinyRun::Gradients() {
  std::vector<TensorPart> parts;
  for (ParameterBuffer* buffer : model_->buffers()) {
    if (mesh_->coordinate(Axis::kDataReplicate) > 0) continue;
    for (TensorPart& part : PartsOf(*buffer, buffer->own_gradient(), "", /*unique=*/true)) parts.push_back(part);
  }
  return Whole(parts, "");
}

void TinyRun::Change(const std::string& name_end, const std::function<void(const TensorPart& part)>& change) {
  for (ParameterBuffer* buffer : model_->buffers()) {
    for (const TensorPart& part : PartsOf(*buffer, buffer->own_weights(), "", /*unique=*/false)) {
      if (absl::EndsWith(part.name, name_end)) change(part);
    }
    buffer->Publish(/*converted=*/false);
  }
}

Tensors TinyRun::Weights() {
  std::vector<TensorPart> parts;
  for (ParameterBuffer* buffer : model_->buffers()) {
    if (mesh_->coordinate(Axis::kDataReplicate) > 0) continue;
    for (TensorPart& part : PartsOf(*buffer, buffer->own_weights(), "", /*unique=*/true)) parts.push_back(part);
  }
  return Whole(parts, "");
}

std::map<std::string, std::string> TinyRun::Bytes() {
  std::map<std::string, std::string> bytes;
  const auto add = [&](const Tensors& tensors) {
    for (const auto& [name, tensor] : tensors)
      bytes[name] = std::string(static_cast<const char*>(tensor.data_ptr()), tensor.nbytes());
  };
  add(Weights());
  std::map<std::string, std::vector<TensorPart>> states;  // by suffix
  // A rank may hold nothing of a kind, but takes part in putting it together.
  std::string own;
  for (const Optimizer::State& state : optimizer_->states()) absl::StrAppend(&own, state.name, " ");
  for (const std::string& names : GatherBytes(mesh_->control(), own)) {
    for (const absl::string_view name : absl::StrSplit(names, ' ', absl::SkipEmpty())) states[std::string(name)];
  }
  for (const Optimizer::State& state : optimizer_->states()) {
    std::vector<TensorPart>& parts = states[state.name];
    if (mesh_->coordinate(Axis::kDataReplicate) > 0) continue;
    for (TensorPart& part :
         PartsOfSegments(*state.buffer, state.tensor, state.begin, state.block, state.name, /*unique=*/true))
      parts.push_back(part);
  }
  for (const auto& [suffix, parts] : states) add(Whole(parts, "." + suffix));
  return bytes;
}

}  // namespace trireme
