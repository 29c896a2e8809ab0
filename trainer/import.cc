#include "trainer/import.h"

#include <absl/strings/str_join.h>

#include <filesystem>

#include "launch/log.h"
#include "models/formats/gguf_config.h"
#include "models/formats/hf_config.h"
#include "models/formats/hf_directory.h"
#include "trainer/agreement.h"
#include "trainer/weight_source.h"

namespace trireme {
namespace {

absl::StatusOr<GgufModelFacts> FactsOf(const std::string& path) {
  ASSIGN_OR_RETURN(const auto file, GgufFile::Open(path));
  return ReadGgufFacts(*file);
}

absl::StatusOr<WeightSource> OpenWeights(const Recipe& recipe, bool first_rank) {
  const std::string& from = recipe.config.model().from();
  if (NamesGguf(from)) {
    ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> file, GgufFile::Open(from));
    ASSIGN_OR_RETURN(const GgufModelFacts facts, ReadGgufFacts(*file));
    return OpenGgufWeights(std::move(file), facts, recipe.model);
  }
  ASSIGN_OR_RETURN(const std::string folder, FindHfDirectory(from));
  // Of a tied model one rank reads both matrices whole.
  return OpenHfWeights(folder, MakeWeightTable(recipe.weights, recipe.model), /*compare_head=*/first_rank);
}

absl::Status Import(const Recipe& recipe, Mesh& mesh, Model& model) {
  ASSIGN_OR_RETURN(const WeightSource source, OpenWeights(recipe, mesh.control().rank() == 0));
  const double start = MonotonicSeconds();
  RETURN_IF_ERROR(LoadWeights(source, mesh, model));
  Info("weights of ", source.description, ": ", source.tensors.size(), " tensors, took ",
       HumanSeconds(MonotonicSeconds() - start));
  return absl::OkStatus();
}

}  // namespace

std::string ResolveModelConfig(ModelConfig* model, std::vector<std::string>* problems) {
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
  const absl::StatusOr<HfConfig> config = ReadHfConfig(path);
  if (!config.ok()) {
    problems->push_back(absl::StrCat(model->has_from() ? "model.from: " : "model.config: ", config.status().message()));
    return "";
  }
  MergeHfConfig(config->model, path, model, problems);
  return config->ignored.empty() ? ""
                                 : absl::StrCat(path, ": ignored, since they do not change what is computed: ",
                                                absl::StrJoin(config->ignored, ", "));
}

absl::Status ImportWeights(const Recipe& recipe, Mesh& mesh, Model& model) {
  RETURN_IF_ERROR(Agree(mesh.control(), Import(recipe, mesh, model)));
  for (ParameterBuffer* buffer : model.buffers()) buffer->Publish(/*converted=*/false);
  return absl::OkStatus();
}

}  // namespace trireme
