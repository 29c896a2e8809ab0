#include "trainer/export_source.h"

#include <absl/strings/match.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <filesystem>
#include <memory>

#include "data/tokenizer.h"
#include "launch/file.h"
#include "launch/log.h"
#include "models/formats/gguf_config.h"
#include "models/formats/hf_directory.h"
#include "models/parameters.h"
#include "trainer/adapter_source.h"
#include "trainer/checkpoint_list.h"
#include "trainer/checkpointer.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

// The decoder of source->model; sets what its family brings.
absl::StatusOr<DecoderSpec> Specify(const std::vector<ModelFamily>& families, ExportSource* source) {
  ASSIGN_OR_RETURN(const DecoderSpec spec, SpecifyModel(source->model, families));
  ASSIGN_OR_RETURN(const ModelFamily family, FindFamily(families, source->model.family()));
  source->table = MakeWeightTable(family.weights, spec);
  source->hf_types = family.hf_types;
  return spec;
}

absl::Status CheckWeights(const std::string& folder, const CheckpointManifest& manifest,
                          const std::function<void()>& alive) {
  int64_t total = 0, done = 0;
  const auto is_weights = [](const CheckpointFile& file) { return absl::StartsWith(file.path(), "weights/"); };
  for (const CheckpointFile& file : manifest.file()) total += is_weights(file) ? file.bytes() : 0;
  Progress progress(absl::StrCat("checking ", folder), total, "B");
  for (const CheckpointFile& file : manifest.file()) {
    if (!is_weights(file)) continue;
    ASSIGN_OR_RETURN(const Digest digest, HashFile(absl::StrCat(folder, "/", file.path()), [&](uint64_t bytes) {
                       progress.Update(done + static_cast<int64_t>(bytes));
                       if (alive) alive();
                     }));
    done += file.bytes();
    if (digest != file.digest())
      return Error(ExitCode::kCheckpoint, "checkpoint ", folder, ": ", file.path(),
                   " has another content than when it was saved; use another checkpoint");
  }
  progress.Update(done);
  return absl::OkStatus();
}

// The digest of a folder's tokenizer; "" when it has none.
absl::StatusOr<Digest> TokenizerDigest(const std::string& folder) {
  const std::string path = FindTokenizer(folder);
  return path.empty() ? absl::StatusOr<Digest>("") : HashFile(path);
}

// As AddOrigin. A corpus's tokenizer.json is never the same file, so it goes before the GGUF's.
absl::Status AddGgufOrigin(ExportSource* source) {
  absl::StatusOr<std::unique_ptr<GgufFile>> file = GgufFile::Open(source->model.from());
  if (!file.ok()) return absl::OkStatus();
  for (const std::string& folder : source->tokenizer_folders) {
    ASSIGN_OR_RETURN(const Digest digest, TokenizerDigest(folder));
    if (!digest.empty()) return absl::OkStatus();
  }
  source->tokenizer_gguf = *std::move(file);
  ASSIGN_OR_RETURN(source->ids, ReadGgufTokenIds(*source->tokenizer_gguf, source->model.vocab_size()));
  return absl::OkStatus();
}

// What the directory that a run started from adds, if it is still there: tokenizer files, and the ids of special tokens
// unless the run's corpora have another tokenizer.
absl::Status AddOrigin(ExportSource* source) {
  if (NamesGguf(source->model.from())) return AddGgufOrigin(source);
  const absl::StatusOr<std::string> origin = FindHfDirectory(source->model.from());
  if (!origin.ok()) return absl::OkStatus();
  bool same = true;
  ASSIGN_OR_RETURN(const Digest own, TokenizerDigest(*origin));
  for (const std::string& folder : source->tokenizer_folders) {
    ASSIGN_OR_RETURN(const Digest other, TokenizerDigest(folder));
    same = same && (other.empty() || other == own);
  }
  source->tokenizer_folders.push_back(*origin);
  const absl::StatusOr<HfTokenIds> ids = ReadHfTokenIds(*origin + "/" + kHfConfigName);
  if (same && ids.ok()) source->ids = *ids;
  return absl::OkStatus();
}

// The base model of a run that trains an adapter, without it. description: of what has the adapter.
absl::StatusOr<ExportSource> OpenBase(const std::string& description, const RunConfig& config,
                                      const std::vector<ModelFamily>& families, const std::function<void()>& alive) {
  if (!config.model().has_from())
    return Error(ExitCode::kConfig, description, ": its adapter is trained on a model of random weights");
  absl::StatusOr<ExportSource> base = OpenExportSource(config.model().from(), families, alive);
  if (!base.ok())
    return Annotate(base.status(), absl::StrCat(description, ": the base model of its adapter, ", config.model().from(),
                                                ", cannot be opened"));
  if (config.model().has_quantization()) *base->model.mutable_quantization() = config.model().quantization();
  return base;
}

// All but the weights of what a run with this config trains, which is no adapter.
absl::StatusOr<ExportSource> OpenTrained(const RunConfig& config, const std::vector<ModelFamily>& families) {
  ExportSource source;
  source.model = config.model();
  RETURN_IF_ERROR(Specify(families, &source).status());
  // One tokenizer made all sources.
  for (const DataSource& data : config.data().source()) source.tokenizer_folders.push_back(data.path());
  if (const std::string& given = config.data().conversations().tokenizer(); !given.empty() && !NamesGguf(given)) {
    const absl::StatusOr<std::string> folder = FindHfDirectory(given);
    if (folder.ok()) source.tokenizer_folders.push_back(*folder);
  }
  if (source.model.has_from()) RETURN_IF_ERROR(AddOrigin(&source));
  return source;
}

absl::StatusOr<ExportSource> OpenCheckpoint(const std::string& folder, const std::vector<ModelFamily>& families,
                                            const std::function<void()>& alive) {
  ASSIGN_OR_RETURN(const CheckpointManifest manifest, ReadCheckpointManifest(folder, /*verify=*/false, 0, 1));
  RETURN_IF_ERROR(CheckWeights(folder, manifest, alive));
  const RunConfig& config = manifest.config();
  const std::string description = absl::StrCat("checkpoint ", folder);
  if (config.has_adapter()) {
    ASSIGN_OR_RETURN(ExportSource source, OpenBase(description, config, families, alive));
    ASSIGN_OR_RETURN(source.adapter, OpenAdapter(folder));
    return source;
  }
  ASSIGN_OR_RETURN(ExportSource source, OpenTrained(config, families));
  source.description = description;
  ASSIGN_OR_RETURN(const DecoderSpec spec, SpecifyModel(source.model, families));
  ASSIGN_OR_RETURN(source.weights, OpenCheckpointWeights(folder, manifest, spec, StoredBy(config)));
  return source;
}

absl::StatusOr<ExportSource> OpenDirectory(const std::string& folder, const std::vector<ModelFamily>& families,
                                           const std::function<void()>& alive) {
  ASSIGN_OR_RETURN(const HfConfig config, ReadHfConfig(folder + "/" + kHfConfigName, HfTypesOf(families)));
  ExportSource source;
  source.description = absl::StrCat("model ", folder);
  source.model = config.model;
  source.ids = config.ids;
  source.tokenizer_folders = {folder};
  ASSIGN_OR_RETURN(const DecoderSpec spec, Specify(families, &source));
  ASSIGN_OR_RETURN(source.weights, OpenHfWeights(folder, source.table, spec, /*compare_head=*/true, alive));
  return source;
}

absl::StatusOr<ExportSource> OpenGguf(const std::string& path, const std::vector<ModelFamily>& families) {
  ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> opened, GgufFile::Open(path));
  const std::shared_ptr<const GgufFile> file = std::move(opened);
  ASSIGN_OR_RETURN(const GgufModelFacts facts, ReadGgufFacts(*file));
  ExportSource source;
  source.description = absl::StrCat("model ", path);
  source.model = ConfigOfGguf(facts);
  ASSIGN_OR_RETURN(const DecoderSpec spec, Specify(families, &source));
  ASSIGN_OR_RETURN(source.weights, OpenGgufWeights(file, facts, spec));
  source.tokenizer_gguf = file;
  ASSIGN_OR_RETURN(source.ids, ReadGgufTokenIds(*file, facts.vocab_size));
  return source;
}

// Newest first, the first whose manifest can be read.
absl::StatusOr<std::string> NewestCheckpoint(const std::string& run_dir) {
  for (const std::string& step : ListCheckpoints(run_dir)) {
    const absl::Status status = ReadCheckpointManifest(step, /*verify=*/false, 0, 1).status();
    if (status.ok()) return step;
    Warning(status.message(), "; trying an older one");
  }
  return Error(ExitCode::kCheckpoint, run_dir, ": holds no whole checkpoint");
}

}  // namespace

absl::StatusOr<ExportSource> OpenFutureCheckpoint(const RunConfig& config, const DecoderSpec& spec,
                                                  const std::vector<ModelFamily>& families,
                                                  const std::function<void()>& alive) {
  const std::string description = "the model to be trained";
  if (config.has_adapter()) {
    ASSIGN_OR_RETURN(ExportSource source, OpenBase(description, config, families, alive));
    source.adapter = FutureAdapter(config, spec);
    return source;
  }
  ASSIGN_OR_RETURN(ExportSource source, OpenTrained(config, families));
  source.description = source.weights.description = description;
  for (const ParameterSpec& parameter : DecoderParameters(spec))
    source.weights.tensors.push_back({parameter.name, parameter.shape, StoredBy(config)});
  source.weights.read = [](const SourceTensor&, const Rectangle&, const at::Tensor& out) {
    out.zero_();
    return absl::OkStatus();
  };
  return source;
}

absl::StatusOr<DecoderSpec> SpecifyModel(const ModelConfig& model, const std::vector<ModelFamily>& families) {
  ASSIGN_OR_RETURN(const ModelFamily family, FindFamily(families, model.family()));
  std::vector<std::string> problems;
  const DecoderSpec spec = family.specify(model, &problems);
  if (problems.empty()) return spec;
  return Error(ExitCode::kData, "the model does not fit:\n  ", absl::StrJoin(problems, "\n  "));
}

absl::StatusOr<std::string> CheckpointOf(const std::string& source) {
  std::error_code error;
  if (fs::exists(fs::path(source) / "manifest.pb", error)) return source;
  if (fs::exists(fs::path(source) / "checkpoints", error)) return NewestCheckpoint(source);
  return std::string();
}

absl::StatusOr<ExportSource> OpenExportSource(const std::string& source, const std::vector<ModelFamily>& families,
                                              const std::function<void()>& alive) {
  ASSIGN_OR_RETURN(const std::string checkpoint, CheckpointOf(source));
  if (!checkpoint.empty()) return OpenCheckpoint(checkpoint, families, alive);
  if (NamesGguf(source)) return OpenGguf(source, families);
  const absl::StatusOr<std::string> folder = FindHfDirectory(source);
  std::error_code error;
  if (folder.ok() && fs::exists(fs::path(*folder) / kHfConfigName, error))
    return OpenDirectory(*folder, families, alive);
  return Error(ExitCode::kConfig, source,
               folder.ok() ? ": is neither a run_dir, nor a checkpoint, nor a Hugging Face directory, nor a GGUF file"
                           : absl::StrCat(": ", folder.status().message()));
}

}  // namespace trireme
