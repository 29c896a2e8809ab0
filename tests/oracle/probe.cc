// Runs a recipe's model on weights and tokens given by files and writes what independent software can check.
//   trireme_probe CONFIG... --folder DIR               trains on DIR/batches.safetensors, an update per step in it
//   trireme_probe CONFIG... --folder DIR --evaluate    the loss of every step's tokens, without training
//   trireme_probe CONFIG... --folder DIR --save        also saves a checkpoint into the config's run_dir
//   trireme_probe CONFIG... --folder DIR --gradients   the optimizer alone, on DIR/gradients.safetensors
//   trireme_probe CONFIG... --folder DIR --plateau     the factor of lr_schedule.plateau after each of DIR/losses.json
//   trireme_probe CONFIG... --folder DIR --tokens N    writes the tokens that `trireme train` reads in steps 1 to N
// Reads DIR/weights/model.safetensors (float32, canonical names; absent: initialized from the seed) and
// DIR/batches.safetensors: for step s and microbatch m (of all data ranks, in order), from 0, I64 [T] "s.m.tokens",
// "s.m.targets", "s.m.positions" and I32 [segments + 1] "s.m.cu_seqlens".
// Writes DIR/result.json and DIR/rope.safetensors; when training also DIR/gradients (of the first step) and DIR/updated
// (weights after the last) in the sharded form of checkpoints. Runs under mpirun too, on any mesh.
#include <ATen/ops/empty.h>
#include <absl/strings/str_split.h>

#include <CLI/CLI.hpp>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "configs/config_loader.h"
#include "data/sampling/loader.h"
#include "launch/base/file.h"
#include "models/blocks/decoder.h"
#include "models/engine/engine.h"
#include "models/engine/job.h"
#include "models/formats/base/safetensors.h"
#include "models/parts/draft.h"
#include "models/weights/checkpoint_list.h"
#include "models/weights/sharded_tensors.h"
#include "parallel/comm/agreement.h"
#include "parallel/comm/mpi_group.h"
#include "trainer/loop/checkpointer.h"
#include "trainer/loop/optimizer.h"
#include "trainer/recipe/corpora.h"
#include "trainer/recipe/optimization.h"

namespace trireme {
namespace {

struct Flags {
  std::vector<std::string> configs, overrides;
  std::string folder;
  bool evaluate = false, save = false, plateau = false, gradients = false;
  int64_t tokens = 0;
};

template <typename T>
absl::StatusOr<std::vector<T>> Values(const SafetensorsFile& file, const SafetensorsEntry& entry, const char* dtype) {
  if (entry.dtype != dtype)
    return Error(ExitCode::kData, file.path(), ": ", entry.name, " is ", entry.dtype, "; write it as ", dtype);
  std::vector<T> values((entry.end - entry.begin) / sizeof(T));
  std::memcpy(values.data(), file.data(entry), values.size() * sizeof(T));
  return values;
}

absl::Status SetField(const SafetensorsFile& file, const SafetensorsEntry& entry, const std::string& field,
                      Microbatch* microbatch) {
  if (field == "cu_seqlens") {
    ASSIGN_OR_RETURN(microbatch->cu_seqlens, Values<int32_t>(file, entry, "I32"));
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(std::vector<int64_t> values, Values<int64_t>(file, entry, "I64"));
  if (field == "tokens") {
    microbatch->tokens = std::move(values);
  } else if (field == "targets") {
    microbatch->targets = std::move(values);
  } else if (field == "positions") {
    microbatch->positions = std::move(values);
  } else {
    return Error(ExitCode::kData, file.path(), ": \"", entry.name, "\" names no field of a microbatch");
  }
  return absl::OkStatus();
}

// This rank's microbatches of every step.
absl::StatusOr<std::vector<StepBatch>> ReadBatches(const std::string& path, int data_rank, int num_data_ranks) {
  ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(path));
  std::map<int, std::map<int, Microbatch>> steps;
  for (const SafetensorsEntry& entry : file->entries()) {
    const std::vector<std::string> parts = absl::StrSplit(entry.name, '.');
    if (parts.size() != 3) return Error(ExitCode::kData, path, ": \"", entry.name, "\" is not STEP.MICROBATCH.FIELD");
    RETURN_IF_ERROR(SetField(*file, entry, parts[2], &steps[std::stoi(parts[0])][std::stoi(parts[1])]));
  }
  std::vector<StepBatch> batches;
  for (auto& [step, microbatches] : steps) {
    const int count = static_cast<int>(microbatches.size());
    if (count % num_data_ranks != 0) {
      return Error(ExitCode::kData, path, ": step ", step, " has ", count, " microbatches, which ", num_data_ranks,
                   " data ranks cannot share");
    }
    StepBatch batch;
    const int own = count / num_data_ranks;
    for (int m = data_rank * own; m < (data_rank + 1) * own; ++m) {
      Microbatch& microbatch = microbatches[m];
      microbatch.first_sample = step * count + m;
      for (int64_t target : microbatch.targets) microbatch.num_targets += target >= 0;
      for (size_t s = 1; s < microbatch.cu_seqlens.size(); ++s) {
        microbatch.max_seqlen =
            std::max(microbatch.max_seqlen, microbatch.cu_seqlens[s] - microbatch.cu_seqlens[s - 1]);
      }
      batch.microbatches.push_back(std::move(microbatch));
    }
    batches.push_back(std::move(batch));
  }
  return batches;
}

std::vector<TensorPart> OwnParts(Engine& model, Mesh& mesh, bool gradients, bool unique) {
  std::vector<TensorPart> parts;
  if (unique && mesh.coordinate(Axis::kDataReplicate) != 0) return parts;
  for (ParameterBuffer* buffer : model.buffers()) {
    if (gradients && !buffer->trainable()) continue;
    const at::Tensor& own = gradients ? buffer->own_gradient() : buffer->own_weights();
    std::set<std::string> frozen;
    for (const ParameterSpec& spec : buffer->specs()) {
      if (!spec.trainable) frozen.insert(spec.name);
    }
    for (TensorPart& part : PartsOf(*buffer, own, "", unique)) {
      if (!gradients || frozen.count(part.name) == 0) parts.push_back(std::move(part));
    }
  }
  return parts;
}

absl::Status LoadWeights(const std::string& folder, Engine& model, Mesh& mesh) {
  ASSIGN_OR_RETURN(const ShardedTensorReader reader, ShardedTensorReader::Open(folder));
  for (const TensorPart& part : OwnParts(model, mesh, /*gradients=*/false, /*unique=*/false))
    RETURN_IF_ERROR(reader.Read(part));
  for (ParameterBuffer* buffer : model.buffers()) buffer->Publish(/*converted=*/false);
  return absl::OkStatus();
}

absl::Status WriteFolder(const std::string& folder, Mesh& mesh, const std::vector<TensorPart>& parts) {
  RETURN_IF_ERROR(MakeDirectories(folder));
  return WriteParts(folder, mesh.control().rank(), parts).status();
}

absl::Status WriteRope(const std::string& path, const Recipe& recipe) {
  std::vector<std::string> none;
  const RopeTable table = MakeRopeTable(DraftDecoder(recipe.config.model(), &none).rotation, at::kFloat, at::kCPU);
  const std::vector<int64_t> shape = table.cosine.sizes().vec();
  const auto produce = [&](const SafetensorsEntry& entry, FileWriter& writer) {
    const at::Tensor& tensor = entry.name == "cosine" ? table.cosine : table.sine;
    return writer.Append(tensor.const_data_ptr(), tensor.nbytes());
  };
  SafetensorsEntry cosine, sine;
  cosine.name = "cosine";
  sine.name = "sine";
  cosine.dtype = sine.dtype = "F32";
  cosine.shape = sine.shape = shape;
  return WriteSafetensors(path, {cosine, sine}, {}, produce).status();
}

absl::Status TrainSteps(const Flags& flags, const Recipe& recipe, Mesh& mesh, Engine& model, Optimizer& optimizer,
                        const std::vector<StepBatch>& batches, nlohmann::json* result) {
  for (size_t i = 0; i < batches.size(); ++i) {
    const int64_t step = static_cast<int64_t>(i) + 1;
    ASSIGN_OR_RETURN(const Loss loss, model.ForwardBackward(batches[i]));
    const GradNorm norm = model.ClipGradNorm(recipe.config.lr_schedule().clip_grad_norm());
    if (step == 1)
      RETURN_IF_ERROR(
          WriteFolder(flags.folder + "/gradients", mesh, OwnParts(model, mesh, /*gradients=*/true, /*unique=*/true)));
    optimizer.Step(step, recipe.LearningRate(step), model.decision(), model.loads());
    (*result)["loss"].push_back(loss.mean);
    (*result)["z_loss"].push_back(loss.z_loss);
    (*result)["targets"].push_back(loss.targets);
    (*result)["grad_norm"].push_back(norm.total);
    (*result)["learning_rate"].push_back(recipe.LearningRate(step));
  }
  return WriteFolder(flags.folder + "/updated", mesh, OwnParts(model, mesh, /*gradients=*/false, /*unique=*/true));
}

absl::Status RunModel(const Flags& flags, const Recipe& recipe, Mesh& mesh, const Extensions& extensions) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> model, Engine::Create(recipe.engine, mesh, extensions));
  model->set_decision_rule(recipe.decision_rule());
  Optimizer optimizer(recipe.config.optimizer(), model->buffers(), recipe.config.seed(), &mesh);
  if (SafetensorsFile::Open(flags.folder + "/weights/model.safetensors").ok()) {
    RETURN_IF_ERROR(LoadWeights(flags.folder + "/weights", *model, mesh));
  } else {
    model->Initialize();
  }
  ASSIGN_OR_RETURN(const std::vector<StepBatch> batches,
                   ReadBatches(flags.folder + "/batches.safetensors", mesh.data_rank(), mesh.num_data_ranks()));
  nlohmann::json result = {{"mesh", mesh.shape().ToString()}, {"attention", model->attention().name}};
  if (flags.evaluate) {
    for (const StepBatch& batch : batches) {
      const Engine::EvaluationSums sums = model->Evaluate(batch.microbatches);
      result["loss_sum"].push_back(sums.loss_sum);
      result["targets"].push_back(sums.targets);
    }
  } else {
    RETURN_IF_ERROR(TrainSteps(flags, recipe, mesh, *model, optimizer, batches, &result));
  }
  if (flags.save) {
    RETURN_IF_ERROR(MakeDirectories(recipe.config.run_dir() + "/checkpoints"));
    TrainProgress progress;
    progress.set_step(flags.evaluate ? 0 : static_cast<int64_t>(batches.size()));
    RETURN_IF_ERROR(Checkpointer(recipe, mesh, *model, optimizer, {}).Save(progress));
    result["checkpoint"] = CheckpointFolder(recipe.config.run_dir(), progress.step());
  }
  if (mesh.control().rank() != 0) return absl::OkStatus();
  RETURN_IF_ERROR(WriteRope(flags.folder + "/rope.safetensors", recipe));
  return WriteFileAtomically(flags.folder + "/result.json", result.dump(1) + "\n");
}

// What a second program needs to repeat the run: the model in Hugging Face's terms, the update rule, each step's
// learning rate.
nlohmann::json Describe(const Recipe& recipe, int64_t steps) {
  const DecoderSpec& m = recipe.engine.model;
  const AttentionShape attention = m.attentions()[0];
  const AdamW& adamw = recipe.config.optimizer().adamw();
  nlohmann::json rates = nlohmann::json::array();
  for (int64_t step = 1; step <= steps; ++step) rates.push_back(recipe.LearningRate(step));
  return {{"model",
           {{"num_hidden_layers", m.num_layers},
            {"hidden_size", m.hidden_size},
            {"num_attention_heads", attention.heads},
            {"num_key_value_heads", attention.kv_heads},
            {"head_dim", attention.head_dim},
            {"intermediate_size", recipe.config.model().intermediate_size()},
            {"vocab_size", m.vocab_size},
            {"max_position_embeddings", m.max_positions},
            {"rms_norm_eps", m.head.norm.eps},
            {"rope_theta", recipe.config.model().rope_theta()},
            {"tie_word_embeddings", m.tied_embeddings},
            {"initializer_range", m.initializer_range}}},
          {"adamw",
           {{"betas", {adamw.beta1(), adamw.beta2()}}, {"eps", adamw.eps()}, {"weight_decay", adamw.weight_decay()}}},
          {"clip_grad_norm", recipe.config.lr_schedule().clip_grad_norm()},
          {"total_steps", recipe.total_steps},
          {"learning_rate", rates}};
}

// What repeating the run with plain Transformers cannot express.
absl::Status CheckPlain(const Recipe& recipe) {
  const bool plain = recipe.config.optimizer().has_adamw() && !recipe.config.model().has_rope_scaling() &&
                     recipe.config.model().sliding_window() == 0 && !recipe.engine.model.scaled_residual_init &&
                     recipe.config.loss().z_loss() == 0 && recipe.config.precision().compute() == PrecisionConfig::FP32;
  if (plain) return absl::OkStatus();
  return Error(ExitCode::kConfig,
               "probe --tokens: only plain fp32 recipes with adamw (no rope_scaling, sliding_window, "
               "scaled_residual_init, z_loss)");
}

// The microbatches that training and evaluation read, as "train.tokens" [steps, batch, length] and so on, and
// "validation.tokens" [windows, length]; segments show in the positions. The recipe's numbers go to result.json.
absl::Status WriteTokens(const Flags& flags, const Recipe& recipe, const Corpora& corpora) {
  const RunConfig& config = recipe.config;
  const int64_t length = config.data().sequence_length(), batch = config.global_batch_size();
  std::map<std::string, std::vector<int64_t>> values;
  const auto append = [&](const std::string& split, const Sampler& sampler, int64_t index) -> absl::Status {
    ASSIGN_OR_RETURN(const Sample sample, sampler.Get(index));
    Microbatch microbatch;
    AppendSequence(sample, config.data().document_mask(), &microbatch);
    for (const auto& [field, from] : {std::pair("tokens", &microbatch.tokens),
                                      {"targets", &microbatch.targets},
                                      {"positions", &microbatch.positions}}) {
      std::vector<int64_t>& to = values[absl::StrCat(split, ".", field)];
      to.insert(to.end(), from->begin(), from->end());
    }
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(CheckPlain(recipe));
  for (int64_t i = 0; i < flags.tokens * batch; ++i) RETURN_IF_ERROR(append("train", *corpora.train, i));
  int64_t windows = 0;
  if (corpora.validation != nullptr) {
    windows = corpora.validation->num_windows();
    if (config.evaluation().max_sequences() > 0)
      windows = std::min<int64_t>(windows, config.evaluation().max_sequences());
    for (int64_t i = 0; i < windows; ++i) RETURN_IF_ERROR(append("validation", *corpora.validation, i));
  }
  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, tensor] : values) {
    SafetensorsEntry entry;
    entry.name = name;
    entry.dtype = "I64";
    entry.shape =
        name[0] == 't' ? std::vector<int64_t>{flags.tokens, batch, length} : std::vector<int64_t>{windows, length};
    entries.push_back(entry);
  }
  const auto produce = [&](const SafetensorsEntry& entry, FileWriter& writer) {
    const std::vector<int64_t>& tensor = values[entry.name];
    return writer.Append(tensor.data(), tensor.size() * sizeof(int64_t));
  };
  RETURN_IF_ERROR(WriteSafetensors(flags.folder + "/tokens.safetensors", entries, {}, produce).status());
  return WriteFileAtomically(flags.folder + "/result.json", Describe(recipe, flags.tokens).dump(1) + "\n");
}

// What a run of the recipe starts from, on any number of ranks, to the folder "initial".
absl::Status WriteInitialWeights(const Flags& flags, const Recipe& recipe, Mesh& mesh, const Extensions& extensions) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> model, Engine::Create(recipe.engine, mesh, extensions));
  model->set_decision_rule(recipe.decision_rule());
  model->Initialize();
  return WriteFolder(flags.folder + "/initial", mesh, OwnParts(*model, mesh, /*gradients=*/false, /*unique=*/true));
}

// Steps of the config's optimizer on the gradients that DIR/gradients.safetensors holds: "0", "1", ... of one matrix
// "weight", all F32. The matrix and the state go to DIR/stepped.safetensors.
absl::Status StepOnGradients(const Flags& flags, const Recipe& recipe) {
  ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFile> file,
                   SafetensorsFile::Open(flags.folder + "/gradients.safetensors"));
  std::map<std::string, at::Tensor> given;
  for (const SafetensorsEntry& entry : file->entries()) {
    ASSIGN_OR_RETURN(const std::vector<float> values, Values<float>(*file, entry, "F32"));
    at::Tensor tensor = at::empty(entry.shape, at::TensorOptions().dtype(at::kFloat));
    std::memcpy(tensor.data_ptr(), values.data(), tensor.nbytes());
    given[entry.name] = tensor;
  }
  ParameterSpec spec;
  spec.name = "weight";
  spec.shape = given.at("weight").sizes().vec();
  spec.block_matrix = true;
  BufferOptions options;
  options.gather_group = options.reduce_group = options.replicate_group = MakeSelfGroup("alone");
  ParameterBuffer buffer({spec}, options);
  buffer.Set(0, given.at("weight"));
  Optimizer optimizer(recipe.config.optimizer(), {&buffer}, recipe.config.seed());
  UpdateDecision decision;
  for (int64_t step = 1; given.count(absl::StrCat(step - 1)) > 0; ++step) {
    buffer.BeginStep();
    buffer.weight(0).AddGradient([&](at::Tensor& sum, bool) { sum.copy_(given.at(absl::StrCat(step - 1))); });
    buffer.StartReduce(/*last_microbatch=*/true);
    buffer.FinishGradients(1);
    decision = Decide(recipe.decision_rule(), 0, 0, 0, decision);
    at::Tensor tensor = at::empty({kDecisionNumbers}, at::TensorOptions().dtype(at::kDouble));
    std::memcpy(tensor.data_ptr(), &decision, sizeof(decision));
    optimizer.Step(step, recipe.LearningRate(step), tensor);
  }
  std::vector<TensorPart> parts = PartsOf(buffer, buffer.own_weights(), "", /*unique=*/true);
  for (const Optimizer::State& state : optimizer.states()) {
    for (TensorPart& part : PartsOfSegments(buffer, state.tensor, state.begin, state.block, state.name, true))
      parts.push_back(std::move(part));
  }
  RETURN_IF_ERROR(MakeDirectories(flags.folder + "/stepped"));
  RETURN_IF_ERROR(WriteParts(flags.folder + "/stepped", 0, parts).status());
  return WriteFileAtomically(flags.folder + "/result.json", "{}\n");
}

absl::Status WriteFactors(const Flags& flags, const Recipe& recipe) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(flags.folder + "/losses.json"));
  PlateauProgress progress;
  nlohmann::json result;
  for (const nlohmann::json& loss : nlohmann::json::parse(text)) {
    ObserveEvaluation(recipe.config.lr_schedule().plateau(), recipe.peak_learning_rate(), loss.get<double>(),
                      &progress);
    result["factor"].push_back(progress.factor());
  }
  return WriteFileAtomically(flags.folder + "/result.json", result.dump(1) + "\n");
}

absl::Status Run(const Flags& flags, const Extensions& extensions, const Process& process) {
  ASSIGN_OR_RETURN(const RunConfig config, LoadConfig(flags.configs, flags.overrides));
  Corpora corpora;
  if (flags.tokens > 0) {
    ASSIGN_OR_RETURN(corpora, OpenCorpora(config));
  }
  std::vector<std::string> attention;
  for (const AttentionBackend& backend : extensions.attention_backends) attention.push_back(backend.name);
  ASSIGN_OR_RETURN(const Recipe recipe,
                   MakeRecipe(config, process.size(), extensions.families, attention, corpora.facts));
  if (flags.plateau) return WriteFactors(flags, recipe);
  if (flags.gradients) return StepOnGradients(flags, recipe);
  ASSIGN_OR_RETURN(const at::Device device, SetUpDevice(config.launch(), config.kernels(), process));
  ASSIGN_OR_RETURN(const std::unique_ptr<Mesh> mesh, Mesh::Create(process, recipe.engine.mesh, device));
  if (flags.tokens > 0) {
    RETURN_IF_ERROR(WriteTokens(flags, recipe, corpora));
    return WriteInitialWeights(flags, recipe, *mesh, extensions);
  }
  return RunModel(flags, recipe, *mesh, extensions);
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) {
  trireme::Flags flags;
  CLI::App app("What independent software can check");
  app.add_option("CONFIG", flags.configs, "Textproto files")->required();
  app.add_option("--set", flags.overrides, "Override a field")->allow_extra_args(false);
  app.add_option("--folder", flags.folder, "Inputs and outputs")->required();
  app.add_flag("--evaluate", flags.evaluate, "Losses only");
  app.add_flag("--save", flags.save, "Save a checkpoint into run_dir");
  app.add_flag("--gradients", flags.gradients, "Steps on given gradients only");
  app.add_flag("--plateau", flags.plateau, "Factors of lr_schedule.plateau only");
  app.add_option("--tokens", flags.tokens, "Write the tokens of so many steps, and the initial weights");
  CLI11_PARSE(app, argc, argv);
  auto process = trireme::Process::Start(/*expected_ranks=*/0, trireme::Process::Signals::kFinishStep);
  if (!process.ok()) trireme::FailProcess(process.status());
  const trireme::Extensions extensions;
  const absl::Status status = trireme::Run(flags, extensions, **process);
  if (!status.ok()) trireme::FailProcess(status);
  return 0;
}
