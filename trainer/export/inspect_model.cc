#include "trainer/export/inspect_model.h"

#include <absl/strings/match.h>
#include <absl/strings/str_format.h>
#include <absl/strings/str_join.h>

#include <filesystem>
#include <map>
#include <vector>

#include "data/tokenizer/tokenizer.h"
#include "launch/base/file.h"
#include "launch/base/log.h"
#include "models/formats/base/json_file.h"
#include "models/formats/gguf/gguf_config.h"
#include "models/formats/gguf/gguf_tokenizer_json.h"
#include "models/formats/hf/hf_directory.h"
#include "models/source/model_source.h"
#include "models/weights/checkpoint_manifest.h"
#include "models/weights/sharded_tensors.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

struct Findings {
  std::string source;        // "Hugging Face directory DIR"
  std::string architecture;  // "llama, 30 blocks of width 576, ..."
  std::string trained;       // of a checkpoint: step, tokens, layout
  std::string tokenizer;
  std::string problem;                                          // why it cannot be imported; "" if nothing is known
  std::map<std::string, std::pair<int64_t, int64_t>> of_dtype;  // tensors, parameters
  uint64_t bytes = 0;

  void Add(const std::string& dtype, const std::vector<int64_t>& shape) {
    int64_t numel = 1;
    for (const int64_t extent : shape) numel *= extent;
    of_dtype[dtype].first += 1;
    of_dtype[dtype].second += numel;
  }
};

std::string Sizes(const std::string& architecture, const ModelConfig& m) {
  return absl::StrCat(
      architecture, ", ", m.num_hidden_layers(), " blocks of width ", m.hidden_size(), ", ", m.num_attention_heads(),
      " heads", m.has_num_key_value_heads() ? absl::StrCat(" (", m.num_key_value_heads(), " for keys and values)") : "",
      ", feed-forward ", m.intermediate_size(), ", vocabulary ", m.vocab_size(), ", context ",
      m.max_position_embeddings(), m.tie_word_embeddings() ? ", tied embeddings" : "");
}

std::string DescribeTokenizer(const std::vector<std::string>& folders) {
  for (const std::string& folder : folders) {
    const std::string path = FindTokenizer(folder);
    if (path.empty()) continue;
    const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(path);
    return tokenizer.ok() ? absl::StrCat((*tokenizer)->vocab_size(), " ids, ", path)
                          : absl::StrCat("cannot be used here: ", tokenizer.status().message());
  }
  return "none";
}

absl::StatusOr<Findings> InspectGguf(const std::string& path) {
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(path));
  Findings found;
  found.source = absl::StrCat("GGUF file ", path, ", version ", file->version());
  const absl::StatusOr<GgufModel> read = ReadGgufModel(*file);
  if (read.ok()) {
    found.architecture = Sizes(read->architecture->name, read->config);
  } else {
    found.architecture = file->String("general.architecture", "unknown").value_or("unknown");
    found.problem = std::string(read.status().message());
  }
  found.tokenizer = DescribeGgufTokenizer(*file);
  for (const GgufTensor& tensor : file->tensors()) found.Add(GgufTypeName(tensor.type), tensor.shape);
  std::error_code error;
  found.bytes = fs::file_size(path, error);
  return found;
}

absl::StatusOr<Findings> InspectHf(const std::string& name, const std::vector<ModelFamily>& families) {
  ASSIGN_OR_RETURN(const std::string folder, FindHfDirectory(name));
  const std::string config_path = absl::StrCat(folder, "/", kHfConfigName);
  ASSIGN_OR_RETURN(const nlohmann::json json, ReadJsonObject(config_path));
  ASSIGN_OR_RETURN(const HfDirectory directory, HfDirectory::Open(folder));
  Findings found;
  found.source = absl::StrCat("Hugging Face directory ", folder);
  found.architecture = JsonTextOr(JsonMember(json, "model_type"), "unknown");
  const absl::StatusOr<HfConfig> config = ReadHfConfig(config_path, HfTypesOf(families));
  if (config.ok()) {
    found.architecture = Sizes(found.architecture, config->model);
  } else {
    found.problem = std::string(config.status().message());
  }
  found.tokenizer = DescribeTokenizer({folder});
  for (const auto& [tensor_name, tensor] : directory.tensors()) {
    found.Add(tensor.entry->dtype, tensor.entry->shape);
    found.bytes += tensor.entry->end - tensor.entry->begin;
  }
  return found;
}

absl::StatusOr<Findings> InspectCheckpoint(const std::string& folder) {
  ASSIGN_OR_RETURN(const CheckpointManifest manifest, ReadCheckpointManifest(folder, /*verify=*/false, 0, 1));
  ASSIGN_OR_RETURN(const ShardedTensorReader reader, ShardedTensorReader::Open(folder, manifest, "weights"));
  const RunConfig& config = manifest.config();
  Findings found;
  found.source = absl::StrCat("checkpoint ", folder, ", written by ", manifest.written_by());
  found.architecture = Sizes(config.model().family(), config.model());
  found.trained = absl::StrCat("step ", manifest.progress().step(), ", ",
                               HumanCount(static_cast<double>(manifest.progress().tokens())),
                               " tokens, saved by ranks of pipeline x data_replicate x data_shard x context x tensor ",
                               absl::StrJoin(manifest.mesh(), " x "));
  std::vector<std::string> folders;
  for (const DataSource& source : config.data().source()) folders.push_back(source.path());
  if (config.model().has_from()) folders.push_back(config.model().from());
  found.tokenizer = DescribeTokenizer(folders);
  const std::string dtype = config.precision().master_weights() ? "F32" : "BF16";
  for (const auto& [name, shape] : reader.shapes()) found.Add(dtype, shape);
  for (const CheckpointFile& file : manifest.file()) found.bytes += file.bytes();
  return found;
}

}  // namespace

bool LooksLikeModel(const std::string& path) {
  if (Exists(path)) {
    return NamesGguf(path) || Exists(fs::path(path) / "manifest.pb") || Exists(fs::path(path) / "checkpoints") ||
           Exists(fs::path(path) / kHfConfigName);
  }
  return FindHfDirectory(path).ok();
}

absl::Status InspectModel(const std::string& path, const std::vector<ModelFamily>& families, std::ostream& out) {
  ASSIGN_OR_RETURN(const std::string checkpoint, CheckpointOf(path));
  ASSIGN_OR_RETURN(const Findings found, !checkpoint.empty() ? InspectCheckpoint(checkpoint)
                                         : NamesGguf(path)   ? InspectGguf(path)
                                                             : InspectHf(path, families));
  int64_t tensors = 0, parameters = 0;
  std::vector<std::string> dtypes;
  for (const auto& [dtype, counts] : found.of_dtype) {
    tensors += counts.first;
    parameters += counts.second;
    dtypes.push_back(absl::StrCat(dtype, " (", counts.first, counts.first == 1 ? " tensor, " : " tensors, ",
                                  HumanCount(static_cast<double>(counts.second)), ")"));
  }
  const auto line = [&out](const char* name, const std::string& text) {
    if (!text.empty()) out << absl::StrFormat("%-12s%s\n", name, text);
  };
  line("source", found.source);
  line("model", found.architecture);
  line("trained", found.trained);
  line("tensors", absl::StrCat(tensors));
  line("parameters", absl::StrCat(HumanCount(static_cast<double>(parameters)), " (", parameters, ")"));
  line("dtypes", absl::StrJoin(dtypes, ", "));
  line("size", HumanBytes(static_cast<double>(found.bytes)));
  line("tokenizer", found.tokenizer);
  if (!found.problem.empty()) line("import", absl::StrCat("not possible: ", found.problem));
  return absl::OkStatus();
}

}  // namespace trireme
