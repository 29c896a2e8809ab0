#include "trainer/export_source.h"

#include <ATen/ops/empty.h>
#include <absl/strings/match.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>

#include "data/tokenizer.h"
#include "kernels/nf4.h"
#include "launch/file.h"
#include "launch/log.h"
#include "models/decoder.h"
#include "models/formats/gguf_config.h"
#include "models/formats/hf_directory.h"
#include "trainer/adapter_source.h"
#include "trainer/checkpointer.h"
#include "trainer/import.h"
#include "trainer/sharded_tensors.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPieceBytes = 16 << 20;

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
  const absl::StatusOr<HfConfig> config = ReadHfConfig(*origin + "/" + kHfConfigName);
  if (same && config.ok()) source->ids = config->ids;
  return absl::OkStatus();
}

// The base model of a run that trains an adapter, with it.
absl::StatusOr<ExportSource> OpenAdapterRun(const std::string& folder, const RunConfig& config,
                                            const std::vector<ModelFamily>& families,
                                            const std::function<void()>& alive) {
  if (!config.model().has_from())
    return Error(ExitCode::kConfig, "checkpoint ", folder, ": its adapter was trained on a model of random weights");
  absl::StatusOr<ExportSource> base = OpenExportSource(config.model().from(), families, alive);
  if (!base.ok())
    return Annotate(base.status(), absl::StrCat("checkpoint ", folder, ": the base model of its adapter, ",
                                                config.model().from(), ", cannot be opened"));
  ASSIGN_OR_RETURN(base->adapter, OpenAdapter(folder));
  return base;
}

absl::StatusOr<ExportSource> OpenCheckpoint(const std::string& folder, const std::vector<ModelFamily>& families,
                                            const std::function<void()>& alive) {
  ASSIGN_OR_RETURN(const CheckpointManifest manifest, ReadCheckpointManifest(folder, /*verify=*/false, 0, 1));
  RETURN_IF_ERROR(CheckWeights(folder, manifest, alive));
  const RunConfig& config = manifest.config();
  if (config.has_adapter()) return OpenAdapterRun(folder, config, families, alive);
  ExportSource source;
  source.description = absl::StrCat("checkpoint ", folder);
  source.model = config.model();
  ASSIGN_OR_RETURN(const DecoderSpec spec, SpecifyModel(source.model, families));
  ASSIGN_OR_RETURN(ShardedTensorReader opened, ShardedTensorReader::Open(folder + "/weights"));
  const auto reader = std::make_shared<const ShardedTensorReader>(std::move(opened));
  const at::ScalarType stored = config.precision().master_weights() ? at::kFloat : at::kBFloat16;
  for (const ParameterSpec& parameter : DecoderParameters(spec))
    source.tensors.push_back({parameter.name, parameter.shape, stored});
  source.read = [reader](const ExportTensor& tensor, int64_t begin, int64_t end) {
    return ReadRows(*reader, tensor, begin, end);
  };
  // One tokenizer made all sources.
  for (const DataSource& data : config.data().source()) source.tokenizer_folders.push_back(data.path());
  if (const std::string& given = config.data().conversations().tokenizer(); !given.empty() && !NamesGguf(given)) {
    const absl::StatusOr<std::string> folder = FindHfDirectory(given);
    if (folder.ok()) source.tokenizer_folders.push_back(*folder);
  }
  if (source.model.has_from()) RETURN_IF_ERROR(AddOrigin(&source));
  return source;
}

at::ScalarType DtypeOf(ValueType type) {
  return type == ValueType::kBfloat16 ? at::kBFloat16 : type == ValueType::kFloat16 ? at::kHalf : at::kFloat;
}

absl::StatusOr<ExportSource> OpenDirectory(const std::string& folder, const std::vector<ModelFamily>& families) {
  ASSIGN_OR_RETURN(const HfConfig config, ReadHfConfig(folder + "/" + kHfConfigName));
  ExportSource source;
  source.description = absl::StrCat("model ", folder);
  source.model = config.model;
  source.ids = config.ids;
  source.tokenizer_folders = {folder};
  ASSIGN_OR_RETURN(const DecoderSpec spec, SpecifyModel(source.model, families));
  ASSIGN_OR_RETURN(HfDirectory opened, HfDirectory::Open(folder));
  const auto directory = std::make_shared<const HfDirectory>(std::move(opened));
  ASSIGN_OR_RETURN(source.quantized, CheckHfTensors(*directory, spec));
  const auto quantized = std::make_shared<const std::map<std::string, QuantizedMatrix>>(source.quantized);
  for (const ParameterSpec& parameter : DecoderParameters(spec)) {
    if (const auto found = quantized->find(parameter.name); found != quantized->end()) {
      source.tensors.push_back({parameter.name, parameter.shape, DtypeOf(found->second.type)});
      continue;
    }
    const std::string& stored = directory->tensors().at(parameter.name).entry->dtype;
    const std::optional<at::ScalarType> dtype = FloatTypeOf(stored);
    if (!dtype.has_value())
      return Error(ExitCode::kData, "model ", folder, ": ", parameter.name, " is stored as ", stored,
                   "; F32, BF16 and F16 weights can be exported");
    source.tensors.push_back({parameter.name, parameter.shape, *dtype});
  }
  source.read = [directory, quantized](const ExportTensor& tensor, int64_t begin,
                                       int64_t end) -> absl::StatusOr<at::Tensor> {
    if (const auto found = quantized->find(tensor.name); found != quantized->end())
      return DequantizeRows(found->second, begin, end).view({-1}).to(tensor.dtype);
    const int64_t row = tensor.shape.size() == 2 ? tensor.shape[1] : 1;
    at::Tensor values = at::empty({(end - begin) * row}, at::TensorOptions().dtype(tensor.dtype));
    const HfDirectory::Tensor& stored = directory->tensors().at(tensor.name);
    std::memcpy(values.mutable_data_ptr(), stored.data() + begin * row * values.element_size(), values.nbytes());
    return values;
  };
  return source;
}

at::ScalarType DtypeOf(const GgufTensor& tensor) {
  if (tensor.type == GgufType::kF16) return at::kHalf;
  if (tensor.type == GgufType::kBF16) return at::kBFloat16;
  return at::kFloat;
}

absl::StatusOr<ExportSource> OpenGguf(const std::string& path, const std::vector<ModelFamily>& families) {
  ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> opened, GgufFile::Open(path));
  const std::shared_ptr<const GgufFile> file = std::move(opened);
  ASSIGN_OR_RETURN(const GgufModelFacts facts, ReadGgufFacts(*file));
  ExportSource source;
  source.description = absl::StrCat("model ", path);
  source.model = ConfigOfGguf(facts);
  ASSIGN_OR_RETURN(const DecoderSpec spec, SpecifyModel(source.model, families));
  RETURN_IF_ERROR(CheckGgufTensors(*file, facts, spec));
  for (const ParameterSpec& parameter : DecoderParameters(spec)) {
    const std::string name = ToGgufName(*facts.architecture, parameter.name).value();
    source.tensors.push_back({parameter.name, parameter.shape, DtypeOf(*file->FindTensor(name))});
  }
  source.read = [file, facts](const ExportTensor& tensor, int64_t begin, int64_t end) -> absl::StatusOr<at::Tensor> {
    at::Tensor values = at::empty({(end - begin) * tensor.row_numel()}, at::TensorOptions().dtype(at::kFloat));
    float* out = values.mutable_data_ptr<float>();
    // A vector is one row in the file.
    const bool matrix = tensor.shape.size() == 2;
    RETURN_IF_ERROR(matrix ? ReadGgufRows(*file, facts, tensor.name, begin, end, 0, tensor.shape[1], out)
                           : ReadGgufRows(*file, facts, tensor.name, 0, 1, begin, end, out));
    return values.to(tensor.dtype);
  };
  source.tokenizer_gguf = file;
  ASSIGN_OR_RETURN(source.ids, ReadGgufTokenIds(*file, facts.vocab_size));
  return source;
}

// Newest first, the first whose manifest can be read.
absl::StatusOr<std::string> NewestCheckpoint(const std::string& run_dir) {
  std::vector<std::string> steps;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(run_dir + "/checkpoints", error)) {
    const std::string name = entry.path().filename().string();
    if (absl::StartsWith(name, "step-") && !absl::StrContains(name, ".")) steps.push_back(entry.path().string());
  }
  // Steps are padded with zeros; beyond eight digits the longer name is the later step.
  std::sort(steps.begin(), steps.end(), [](const std::string& a, const std::string& b) {
    return std::make_pair(a.size(), a) > std::make_pair(b.size(), b);
  });
  for (const std::string& step : steps) {
    const absl::Status status = ReadCheckpointManifest(step, /*verify=*/false, 0, 1).status();
    if (status.ok()) return step;
    Warning(status.message(), "; trying an older one");
  }
  return Error(ExitCode::kCheckpoint, run_dir, ": holds no whole checkpoint");
}

}  // namespace

absl::StatusOr<DecoderSpec> SpecifyModel(const ModelConfig& model, const std::vector<ModelFamily>& families) {
  ASSIGN_OR_RETURN(const ModelFamily family, FindFamily(families, model.family()));
  std::vector<std::string> problems;
  const DecoderSpec spec = family.specify(model, &problems);
  if (problems.empty()) return spec;
  return Error(ExitCode::kData, "the model does not fit:\n  ", absl::StrJoin(problems, "\n  "));
}

absl::StatusOr<at::Tensor> ReadRows(const ShardedTensorReader& reader, const ExportTensor& tensor, int64_t begin,
                                    int64_t end) {
  TensorPart part;
  part.name = tensor.name;
  part.shape = tensor.shape;
  part.rectangle.offset.assign(tensor.shape.size(), 0);
  part.rectangle.size = tensor.shape;
  part.rectangle.offset[0] = begin;
  part.rectangle.size[0] = end - begin;
  part.values = at::empty({part.rectangle.numel()}, at::TensorOptions().dtype(tensor.dtype));
  RETURN_IF_ERROR(reader.Read(part));
  return part.values;
}

absl::Status FillPart(const RowReader& read, const ExportTensor& tensor, const TensorPart& part) {
  const Rectangle& r = part.rectangle;
  ASSIGN_OR_RETURN(at::Tensor values, read(tensor, r.offset[0], r.offset[0] + r.size[0]));
  if (part.shape.size() == 2) values = values.view({r.size[0], part.shape[1]}).narrow(1, r.offset[1], r.size[1]);
  part.values.view(values.sizes()).copy_(values);
  return absl::OkStatus();
}

absl::Status ReadPieces(const ExportSource& source, const ExportTensor& tensor, int64_t multiple,
                        const std::function<absl::Status(const at::Tensor&)>& use) {
  const int64_t row_bytes = tensor.row_numel() * static_cast<int64_t>(sizeof(float));
  const int64_t step = multiple * std::max<int64_t>(1, kPieceBytes / (multiple * row_bytes));
  for (int64_t begin = 0; begin < tensor.rows(); begin += step) {
    ASSIGN_OR_RETURN(const at::Tensor piece, source.read(tensor, begin, std::min(tensor.rows(), begin + step)));
    RETURN_IF_ERROR(use(piece));
  }
  return absl::OkStatus();
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
  if (folder.ok() && fs::exists(fs::path(*folder) / kHfConfigName, error)) return OpenDirectory(*folder, families);
  return Error(ExitCode::kConfig, source,
               folder.ok() ? ": is neither a run_dir, nor a checkpoint, nor a Hugging Face directory, nor a GGUF file"
                           : absl::StrCat(": ", folder.status().message()));
}

}  // namespace trireme
