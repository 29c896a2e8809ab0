#include "trainer/loop/initialize.h"

#include <algorithm>

#include "launch/base/log.h"
#include "models/formats/gguf/gguf_config.h"
#include "models/formats/hf/hf_directory.h"
#include "models/spec/parameters.h"
#include "models/weights/adapter_source.h"
#include "models/weights/weight_source.h"
#include "parallel/comm/agreement.h"
#include "trainer/loop/checkpointer.h"

namespace trireme {
namespace {

absl::StatusOr<WeightSource> OpenWeights(const Recipe& recipe, bool first_rank, const std::function<void()>& alive) {
  const std::string& from = recipe.config.model().from();
  if (NamesGguf(from)) {
    ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> file, GgufFile::Open(from));
    ASSIGN_OR_RETURN(const GgufModel read, ReadGgufModel(*file));
    return OpenGgufWeights(std::move(file), *read.architecture, recipe.engine.model);
  }
  ASSIGN_OR_RETURN(const std::string folder, FindHfDirectory(from));
  // Where the model is tied, one rank reads both matrices whole to compare them.
  return OpenHfWeights(folder, MakeWeightTable(recipe.engine.model), recipe.engine.model,
                       /*compare_head=*/first_rank, alive);
}

}  // namespace

absl::Status InitializeWeights(const Recipe& recipe, Mesh& mesh, Engine& model, bool resumed) {
  const bool has_from = recipe.config.model().has_from();
  const auto alive = [&mesh] { mesh.log().Beat("filling in weights"); };
  const auto added = [](const ParameterBuffer& buffer) { return buffer.specs()[0].added; };
  const auto wanted = [&](const ParameterBuffer& buffer) { return !resumed || !IsSaved(buffer, recipe.engine.model); };
  const auto from_file = [&](const ParameterBuffer& buffer) { return has_from && !added(buffer) && wanted(buffer); };
  const std::vector<ParameterBuffer*>& buffers = model.buffers();
  // Asked of the whole model: pipeline ranks hold different buffers, but all of them read or none.
  const std::vector<ParameterSpec> all = DecoderParameters(recipe.engine.model);
  const bool frozen = recipe.engine.model.adapter != nullptr &&
                      std::any_of(all.begin(), all.end(), [](const ParameterSpec& spec) { return !spec.trainable; });
  if (has_from && (!resumed || frozen)) {
    const double start = MonotonicSeconds();
    const absl::StatusOr<WeightSource> weights = OpenWeights(recipe, mesh.control().rank() == 0, alive);
    RETURN_IF_ERROR(Agree(mesh.control(), weights.status()));
    RETURN_IF_ERROR(Agree(mesh.control(), FillWeights(*weights, mesh, buffers, from_file)));
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
      DecoderSpec plain = recipe.engine.model;
      plain.adapter = nullptr;
      RETURN_IF_ERROR(Adapted(*adapter, plain).status());
      return LoadAdapter(*adapter, recipe.engine.model, buffers, alive);
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
