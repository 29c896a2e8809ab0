#include "trainer/import.h"

#include <absl/strings/str_join.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "launch/log.h"
#include "models/formats/gguf_config.h"
#include "models/formats/hf_config.h"
#include "models/formats/hf_directory.h"
#include "models/formats/peft.h"
#include "models/parameters.h"
#include "trainer/adapter_source.h"
#include "trainer/agreement.h"
#include "trainer/weight_source.h"

namespace trireme {
namespace {

absl::StatusOr<GgufModelFacts> FactsOf(const std::string& path) {
  ASSIGN_OR_RETURN(const auto file, GgufFile::Open(path));
  return ReadGgufFacts(*file);
}

absl::StatusOr<WeightSource> OpenWeights(const Recipe& recipe, bool first_rank, const std::function<void()>& alive) {
  const std::string& from = recipe.config.model().from();
  if (NamesGguf(from)) {
    ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> file, GgufFile::Open(from));
    ASSIGN_OR_RETURN(const GgufModelFacts facts, ReadGgufFacts(*file));
    return OpenGgufWeights(std::move(file), facts, recipe.model);
  }
  ASSIGN_OR_RETURN(const std::string folder, FindHfDirectory(from));
  // Of a tied model one rank reads both matrices whole.
  return OpenHfWeights(folder, MakeWeightTable(recipe.weights, recipe.model), recipe.model,
                       /*compare_head=*/first_rank, alive);
}

}  // namespace

std::string ResolveModelConfig(const std::vector<ModelFamily>& families, ModelConfig* model,
                               std::vector<std::string>* problems) {
  if (!model->has_from() && !model->has_config()) return "";
  if (model->has_from() && model->has_config()) {
    problems->push_back("model.config: is set beside model.from, which gives the architecture too; remove one");
    return "";
  }
  std::string path = model->config();
  if (model->has_from() && NamesGguf(model->from())) {
    const absl::StatusOr<GgufModelFacts> facts = FactsOf(model->from());
    if (facts.ok()) {
      MergeHfConfig(ConfigOfGguf(*facts), model->from(), model, problems);
    } else {
      problems->push_back(absl::StrCat("model.from: ", facts.status().message()));
    }
    return "";
  }
  if (model->has_from()) {
    const absl::StatusOr<std::string> folder = FindHfDirectory(model->from());
    if (!folder.ok()) {
      problems->push_back(absl::StrCat("model.from: ", folder.status().message()));
      return "";
    }
    path = (std::filesystem::path(*folder) / kHfConfigName).string();
  }
  const absl::StatusOr<HfConfig> config = ReadHfConfig(path, HfTypesOf(families));
  if (!config.ok()) {
    problems->push_back(absl::StrCat(model->has_from() ? "model.from: " : "model.config: ", config.status().message()));
    return "";
  }
  MergeHfConfig(config->model, path, model, problems);
  return config->ignored.empty() ? ""
                                 : absl::StrCat(path, ": ignored, since they do not change what is computed: ",
                                                absl::StrJoin(config->ignored, ", "));
}

absl::StatusOr<Digest> IdentifyModel(const std::string& from) {
  if (NamesGguf(from)) return HashSamples(from);
  ASSIGN_OR_RETURN(const std::string folder, FindHfDirectory(from));
  ASSIGN_OR_RETURN(const HfDirectory directory, HfDirectory::Open(folder));
  std::set<std::string> files;
  for (const auto& [name, tensor] : directory.tensors()) files.insert(tensor.file->path());
  ASSIGN_OR_RETURN(std::string digests, HashFile(absl::StrCat(folder, "/", kHfConfigName)));
  for (const std::string& file : files) {
    ASSIGN_OR_RETURN(const Digest digest, HashSamples(file));
    digests += digest;
  }
  return HashBytes(digests.data(), digests.size());
}

absl::StatusOr<Digest> IdentifyAdapter(const std::string& from) {
  const std::string settings = absl::StrCat(from, "/", kPeftConfigName);
  if (!Exists(settings)) {
    ASSIGN_OR_RETURN(const std::string checkpoint, CheckpointOf(from));
    if (checkpoint.empty())
      return Error(ExitCode::kConfig, "adapter ", from, ": is neither a PEFT directory nor a run");
    return HashFile(absl::StrCat(checkpoint, "/manifest.pb"));
  }
  ASSIGN_OR_RETURN(std::string digests, HashFile(settings));
  ASSIGN_OR_RETURN(const Digest weights, HashSamples(absl::StrCat(from, "/", kPeftWeightsName)));
  digests += weights;
  return HashBytes(digests.data(), digests.size());
}

absl::Status InitializeWeights(const Recipe& recipe, Mesh& mesh, Model& model, bool resumed) {
  const bool has_from = recipe.config.model().has_from();
  const auto alive = [&mesh] { mesh.log().Beat("filling in weights"); };
  const auto added = [](const ParameterBuffer& buffer) { return buffer.specs()[0].added; };
  const auto wanted = [&](const ParameterBuffer& buffer) { return !resumed || !buffer.trainable(); };
  const auto from_file = [&](const ParameterBuffer& buffer) { return has_from && !added(buffer) && wanted(buffer); };
  const std::vector<ParameterBuffer*>& buffers = model.buffers();
  // Asked of the whole model: pipeline ranks hold different buffers, but all of them read or none.
  const std::vector<ParameterSpec> all = DecoderParameters(recipe.model);
  const bool frozen = std::any_of(all.begin(), all.end(), [](const ParameterSpec& spec) { return !spec.trainable; });
  if (has_from && (!resumed || frozen)) {
    const double start = MonotonicSeconds();
    const absl::StatusOr<WeightSource> weights = OpenWeights(recipe, mesh.control().rank() == 0, alive);
    RETURN_IF_ERROR(Agree(mesh.control(), weights.status()));
    RETURN_IF_ERROR(Agree(mesh.control(), FillWeights(*weights, mesh, model, from_file)));
    Info("weights of ", weights->description, ": ", weights->tensors.size(), " tensors, took ",
         HumanSeconds(MonotonicSeconds() - start));
  }
  for (ParameterBuffer* buffer : buffers) {
    if (wanted(*buffer) && !from_file(*buffer)) buffer->Initialize(recipe.config.seed());
    alive();
  }
  const bool continued = !resumed && recipe.config.adapter().has_from();
  if (continued) {
    const auto load = [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const auto adapter, OpenAdapter(recipe.config.adapter().from()));
      DecoderSpec plain = recipe.model;
      plain.adapter = nullptr;
      RETURN_IF_ERROR(Adapted(*adapter, plain).status());
      return LoadAdapter(*adapter, recipe.model, model, alive);
    };
    RETURN_IF_ERROR(Agree(mesh.control(), load()));
  }
  for (ParameterBuffer* buffer : buffers) {
    if (wanted(*buffer)) buffer->Publish(/*converted=*/false);
    alive();
  }
  if (!resumed && !continued) model.InitializeDerived();
  return absl::OkStatus();
}

}  // namespace trireme
