#include "models/source/model_config.h"

#include <absl/strings/str_join.h>

#include <filesystem>
#include <set>

#include "models/formats/gguf/gguf_config.h"
#include "models/formats/hf/hf_config.h"
#include "models/formats/hf/hf_directory.h"
#include "models/formats/hf/peft.h"
#include "models/weights/checkpoint_manifest.h"

namespace trireme {
namespace {

absl::StatusOr<GgufModel> GgufModelOf(const std::string& path) {
  ASSIGN_OR_RETURN(const auto file, GgufFile::Open(path));
  return ReadGgufModel(*file);
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
    const absl::StatusOr<GgufModel> read = GgufModelOf(model->from());
    if (read.ok()) {
      MergeHfConfig(read->config, model->from(), model, problems);
    } else {
      problems->push_back(absl::StrCat("model.from: ", read.status().message()));
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

}  // namespace trireme
