#include "models/source/model_source.h"

#include <absl/strings/match.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <filesystem>
#include <memory>

#include "data/tokenizer/tokenizer.h"
#include "launch/base/file.h"
#include "launch/base/folder.h"
#include "launch/base/log.h"
#include "models/formats/gguf/gguf_config.h"
#include "models/formats/hf/hf_directory.h"
#include "models/spec/parameters.h"
#include "models/weights/adapter_source.h"
#include "models/weights/checkpoint_list.h"
#include "models/weights/checkpoint_manifest.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

// The decoder of source->model; sets what its family brings.
absl::StatusOr<DecoderSpec> Specify(const std::vector<ModelFamily>& families, ModelSource* source) {
  ASSIGN_OR_RETURN(const DecoderSpec spec, SpecifyModel(source->model, families));
  ASSIGN_OR_RETURN(const ModelFamily family, FindFamily(families, source->model.family()));
  source->table = MakeWeightTable(spec);
  source->hf_types = family.hf_types;
  return spec;
}

absl::Status CheckWeights(const std::string& folder, const CheckpointManifest& manifest, const std::string& part,
                          const std::function<void()>& alive) {
  int64_t total = 0, done = 0;
  const auto is_weights = [&](const CheckpointFile& file) { return absl::StartsWith(file.path(), part + "/"); };
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

// Does what AddOrigin does for a GGUF file. A corpus's tokenizer.json is never the same file as the GGUF's, and goes
// before it.
absl::Status AddGgufOrigin(ModelSource* source) {
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
absl::Status AddOrigin(ModelSource* source) {
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
absl::StatusOr<ModelSource> OpenBase(const std::string& description, const RunConfig& config,
                                     const std::vector<ModelFamily>& families, const std::function<void()>& alive) {
  if (!config.model().has_from())
    return Error(ExitCode::kConfig, description, ": its adapter is trained on a model of random weights");
  absl::StatusOr<ModelSource> base = OpenModelSource(config.model().from(), families, alive);
  if (!base.ok())
    return Annotate(base.status(), absl::StrCat(description, ": the base model of its adapter, ", config.model().from(),
                                                ", cannot be opened"));
  if (config.model().has_quantization()) *base->model.mutable_quantization() = config.model().quantization();
  return base;
}

// All but the weights of what a run with this config trains, which is no adapter. run_dir: where the run lies now,
// which may be another place than when it was trained; "" where that is not known.
absl::StatusOr<ModelSource> OpenTrained(const RunConfig& config, const std::string& run_dir,
                                        const std::vector<ModelFamily>& families) {
  ModelSource source;
  source.model = config.model();
  RETURN_IF_ERROR(Specify(families, &source).status());
  if (const std::string kept = absl::StrCat(run_dir, "/", kKeptTokenizer);
      !run_dir.empty() && !FindTokenizer(kept).empty())
    source.tokenizer_folders.push_back(kept);
  // One tokenizer made all sources.
  for (const DataSource& data : config.data().source()) source.tokenizer_folders.push_back(data.path());
  if (source.model.has_from()) RETURN_IF_ERROR(AddOrigin(&source));
  return source;
}

absl::StatusOr<ModelSource> OpenCheckpoint(const std::string& folder, const std::vector<ModelFamily>& families,
                                           const std::function<void()>& alive, bool averaged) {
  ASSIGN_OR_RETURN(const CheckpointManifest manifest, ReadCheckpointManifest(folder, /*verify=*/false, 0, 1));
  const RunConfig& config = manifest.config();
  const std::string part = averaged ? kAveragesPart : kWeightsPart;
  const std::string description =
      absl::StrCat(averaged ? "the averaged weights of checkpoint " : "checkpoint ", folder);
  if (averaged && manifest.progress().ema_updates() == 0)
    return Error(ExitCode::kConfig, "checkpoint ", folder,
                 ": holds no averaged weights; train with ema { }, or leave out --ema");
  RETURN_IF_ERROR(CheckWeights(folder, manifest, part, alive));
  if (config.has_adapter()) {
    ASSIGN_OR_RETURN(ModelSource source, OpenBase(description, config, families, alive));
    ASSIGN_OR_RETURN(source.adapter, OpenAdapter(folder, part));
    RETURN_IF_ERROR(UseRunText(source.adapter->text, &source));
    source.document_mask = config.data().document_mask();
    return source;
  }
  ASSIGN_OR_RETURN(ModelSource source, OpenTrained(config, RunDirOf(folder), families));
  source.description = description;
  source.document_mask = config.data().document_mask();
  ASSIGN_OR_RETURN(const RunText text, RunTextOf(manifest));
  RETURN_IF_ERROR(Annotate(UseRunText(text, &source), description));
  ASSIGN_OR_RETURN(const DecoderSpec spec, SpecifyModel(source.model, families));
  ASSIGN_OR_RETURN(source.weights,
                   OpenCheckpointWeights(folder, manifest, spec, averaged ? at::kFloat : StoredBy(config), part));
  return source;
}

absl::StatusOr<ModelSource> OpenDirectory(const std::string& folder, const std::vector<ModelFamily>& families,
                                          const std::function<void()>& alive) {
  ASSIGN_OR_RETURN(const HfConfig config, ReadHfConfig(folder + "/" + kHfConfigName, HfTypesOf(families)));
  ModelSource source;
  source.description = absl::StrCat("model ", folder);
  source.model = config.model;
  source.ids = config.ids;
  source.tokenizer_folders = {folder};
  ASSIGN_OR_RETURN(const DecoderSpec spec, Specify(families, &source));
  ASSIGN_OR_RETURN(source.weights, OpenHfWeights(folder, source.table, spec, /*compare_head=*/true, alive));
  return source;
}

absl::StatusOr<ModelSource> OpenGguf(const std::string& path, const std::vector<ModelFamily>& families) {
  ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> opened, GgufFile::Open(path));
  const std::shared_ptr<const GgufFile> file = std::move(opened);
  ASSIGN_OR_RETURN(const GgufModel read, ReadGgufModel(*file));
  ModelSource source;
  source.description = absl::StrCat("model ", path);
  source.model = read.config;
  ASSIGN_OR_RETURN(const DecoderSpec spec, Specify(families, &source));
  ASSIGN_OR_RETURN(source.weights, OpenGgufWeights(file, *read.architecture, spec));
  source.tokenizer_gguf = file;
  ASSIGN_OR_RETURN(source.ids, ReadGgufTokenIds(*file, read.config.vocab_size()));
  return source;
}

}  // namespace

absl::StatusOr<ModelSource> OpenFutureCheckpoint(const RunConfig& config, const DecoderSpec& spec,
                                                 const std::vector<ModelFamily>& families,
                                                 const std::function<void()>& alive) {
  const std::string description = "the model to be trained";
  CheckpointManifest manifest;
  *manifest.mutable_config() = config;
  ASSIGN_OR_RETURN(const RunText text, RunTextOf(manifest));
  if (config.has_adapter()) {
    ASSIGN_OR_RETURN(ModelSource source, OpenBase(description, config, families, alive));
    source.adapter = FutureAdapter(config, spec);
    RETURN_IF_ERROR(UseRunText(text, &source));
    return source;
  }
  ASSIGN_OR_RETURN(ModelSource source, OpenTrained(config, config.run_dir(), families));
  RETURN_IF_ERROR(UseRunText(text, &source));
  source.description = source.weights.description = description;
  for (const ParameterSpec& parameter : DecoderParameters(spec))
    source.weights.tensors.push_back({parameter.name, parameter.shape, StoredBy(config)});
  source.weights.read = [](const SourceTensor&, const Rectangle&, const at::Tensor& out) {
    out.zero_();
    return absl::OkStatus();
  };
  return source;
}

absl::Status UseRunText(const RunText& text, ModelSource* source) {
  if (!text.chat_template.empty()) source->text.chat_template = text.chat_template;
  source->text.ends.insert(source->text.ends.end(), text.ends.begin(), text.ends.end());
  source->text.ends_by_template = source->text.ends_by_template || text.ends_by_template;
  if (text.tokenizer.empty()) return absl::OkStatus();
  const auto failed = [&](const absl::Status& why) {
    return Annotate(why,
                    absl::StrCat("data.conversations.tokenizer: the run was trained with that of ", text.tokenizer));
  };
  if (NamesGguf(text.tokenizer)) {
    absl::StatusOr<std::unique_ptr<GgufFile>> file = GgufFile::Open(text.tokenizer);
    if (!file.ok()) return failed(file.status());
    source->tokenizer_gguf = *std::move(file);
    source->tokenizer_folders.clear();
    ASSIGN_OR_RETURN(source->ids, ReadGgufTokenIds(*source->tokenizer_gguf, source->model.vocab_size()));
    return absl::OkStatus();
  }
  const absl::StatusOr<std::string> folder = FindHfDirectory(text.tokenizer);
  if (!folder.ok()) return failed(folder.status());
  const absl::StatusOr<Digest> digest = TokenizerDigest(*folder);
  if (!digest.ok()) return failed(digest.status());
  if (digest->empty() || (!text.tokenizer_digest.empty() && *digest != text.tokenizer_digest))
    return failed(Error(ExitCode::kData, *folder, digest->empty() ? " holds no tokenizer" : " now holds another",
                        "; put the one back that was there"));
  Digest other;
  for (const std::string& known : source->tokenizer_folders) {
    if (!other.empty()) break;
    ASSIGN_OR_RETURN(other, TokenizerDigest(known));
  }
  if (other != *digest) {
    source->tokenizer_folders.clear();
    source->tokenizer_gguf = nullptr;
    source->ids = {};
    const absl::StatusOr<HfTokenIds> ids = ReadHfTokenIds(*folder + "/" + kHfConfigName);
    if (ids.ok()) source->ids = *ids;
  }
  source->tokenizer_folders.insert(source->tokenizer_folders.begin(), *folder);
  return absl::OkStatus();
}

absl::StatusOr<DecoderSpec> SpecifyModel(const ModelConfig& model, const std::vector<ModelFamily>& families) {
  ASSIGN_OR_RETURN(const ModelFamily family, FindFamily(families, model.family()));
  std::vector<std::string> problems;
  const DecoderSpec spec = Specify(family, model, &problems);
  if (problems.empty()) return spec;
  return Error(ExitCode::kData, "the model does not fit:\n  ", absl::StrJoin(problems, "\n  "));
}

absl::StatusOr<ModelSource> OpenModelSource(const std::string& source, const std::vector<ModelFamily>& families,
                                            const std::function<void()>& alive, bool averaged) {
  ASSIGN_OR_RETURN(const std::string checkpoint, CheckpointOf(source));
  if (!checkpoint.empty()) return OpenCheckpoint(checkpoint, families, alive, averaged);
  if (averaged)
    return Error(ExitCode::kConfig, source,
                 ": is no run and no checkpoint, which alone have averaged weights; leave out --ema");
  if (NamesGguf(source)) return OpenGguf(source, families);
  const absl::StatusOr<std::string> folder = FindHfDirectory(source);
  std::error_code error;
  if (folder.ok() && fs::exists(fs::path(*folder) / kHfConfigName, error))
    return OpenDirectory(*folder, families, alive);
  return Error(ExitCode::kConfig, source,
               folder.ok() ? ": is neither a run_dir, nor a checkpoint, nor a Hugging Face directory, nor a GGUF file"
                           : absl::StrCat(": ", folder.status().message()));
}

absl::StatusOr<ModelSource> Merged(const ModelSource& base, std::shared_ptr<const AdapterSource> adapter,
                                   const DecoderSpec& spec, bool keep_dtype, const std::function<void()>& alive) {
  ModelSource merged = base;
  merged.description = absl::StrCat(base.description, " + ", adapter->description);
  merged.adapter = nullptr;
  ASSIGN_OR_RETURN(merged.weights, MergedWeights(base.weights, adapter, spec, keep_dtype, alive));
  return merged;
}

}  // namespace trireme
