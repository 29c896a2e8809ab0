#include "trainer/export.h"

#include <ATen/ops/isinf.h>
#include <absl/strings/ascii.h>
#include <absl/strings/match.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_format.h>
#include <absl/strings/strip.h>
#include <google/protobuf/util/message_differencer.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "launch/file.h"
#include "launch/log.h"
#include "models/formats/hf_directory.h"
#include "models/formats/hf_model_type.h"
#include "trainer/agreement.h"
#include "trainer/checkpointer.h"
#include "trainer/export_source.h"
#include "trainer/export_tokenizer.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPieceBytes = 16 << 20;

struct DtypeNames {
  const char *safetensors, *transformers;
};
DtypeNames NamesOf(at::ScalarType dtype) {
  if (dtype == at::kBFloat16) return {"BF16", "bfloat16"};
  if (dtype == at::kHalf) return {"F16", "float16"};
  return {"F32", "float32"};
}

at::ScalarType Target(ExportConfig::Dtype wanted, at::ScalarType stored) {
  switch (wanted) {
    case ExportConfig::FP32:
      return at::kFloat;
    case ExportConfig::BF16:
      return at::kBFloat16;
    case ExportConfig::FP16:
      return at::kHalf;
    case ExportConfig::AS_STORED:
      break;
  }
  return stored;
}

int64_t Rows(const ExportTensor& tensor) { return tensor.shape[0]; }
int64_t RowNumel(const ExportTensor& tensor) { return tensor.shape.size() == 2 ? tensor.shape[1] : 1; }

// One file to write.
struct Shard {
  std::string name;
  std::vector<const ExportTensor*> tensors;
  uint64_t bytes = 0;
  Digest digest;  // once written
};

// As many tensors in a file as fit, in the model's order.
std::vector<Shard> CutIntoShards(const ExportSource& source, const ExportOptions& options) {
  std::vector<Shard> shards(1);
  for (const ExportTensor& tensor : source.tensors) {
    const uint64_t bytes = Rows(tensor) * RowNumel(tensor) * at::elementSize(Target(options.dtype, tensor.dtype));
    if (shards.back().bytes > 0 && shards.back().bytes + bytes > options.shard_bytes) shards.emplace_back();
    shards.back().tensors.push_back(&tensor);
    shards.back().bytes += bytes;
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    shards[i].name =
        shards.size() == 1 ? kHfWeightsName : absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, shards.size());
  }
  return shards;
}

std::vector<SafetensorsEntry> EntriesOf(const Shard& shard, const ExportOptions& options) {
  std::vector<SafetensorsEntry> entries;
  for (const ExportTensor* tensor : shard.tensors) {
    SafetensorsEntry entry;
    entry.name = tensor->name;
    entry.dtype = NamesOf(Target(options.dtype, tensor->dtype)).safetensors;
    entry.shape = tensor->shape;
    entries.push_back(std::move(entry));
  }
  return entries;
}

absl::Status WriteTensor(const ExportSource& source, const ExportTensor& tensor, at::ScalarType dtype,
                         FileWriter& writer, const std::function<void(int64_t)>& wrote) {
  const int64_t row_bytes = std::max<int64_t>(1, RowNumel(tensor) * 4);
  const int64_t step = std::max<int64_t>(1, kPieceBytes / row_bytes);
  for (int64_t begin = 0; begin < Rows(tensor); begin += step) {
    const int64_t end = std::min(Rows(tensor), begin + step);
    ASSIGN_OR_RETURN(const at::Tensor stored, source.read(tensor, begin, end));
    const at::Tensor values = stored.to(dtype);
    // float16 ends at 65504; what exceeds it would become infinite in silence.
    if (dtype == at::kHalf && tensor.dtype != at::kHalf && at::isinf(values).any().item<bool>())
      return Error(ExitCode::kData, "export: ", tensor.name, " holds numbers beyond float16's range; use --dtype bf16");
    RETURN_IF_ERROR(writer.Append(values.const_data_ptr(), values.nbytes()));
    wrote(static_cast<int64_t>(values.nbytes()));
  }
  return absl::OkStatus();
}

absl::Status WriteShards(const ExportSource& source, const ExportOptions& options, const std::string& folder,
                         std::vector<Shard>* shards) {
  int64_t total = 0, done = 0;
  for (const Shard& shard : *shards) total += static_cast<int64_t>(shard.bytes);
  Progress progress(absl::StrCat("exporting ", source.description), total, "B");
  for (Shard& shard : *shards) {
    size_t next = 0;
    const auto produce = [&](const SafetensorsEntry&, FileWriter& writer) {
      const ExportTensor& tensor = *shard.tensors[next++];
      return WriteTensor(source, tensor, Target(options.dtype, tensor.dtype), writer, [&](int64_t bytes) {
        progress.Update(done += bytes);
        if (options.alive) options.alive();
      });
    };
    ASSIGN_OR_RETURN(const SafetensorsWritten written,
                     WriteSafetensors(absl::StrCat(folder, "/", shard.name), EntriesOf(shard, options),
                                      {{"format", "pt"}}, produce));
    shard.digest = written.digest;
  }
  progress.Finish();
  return absl::OkStatus();
}

absl::Status WriteText(const std::string& path, const std::string& text) {
  ASSIGN_OR_RETURN(const std::unique_ptr<FileWriter> writer, FileWriter::Create(path));
  RETURN_IF_ERROR(writer->Append(text.data(), text.size()));
  return writer->Close();
}

std::string IndexText(const std::vector<Shard>& shards) {
  nlohmann::ordered_json index;
  uint64_t bytes = 0;
  int64_t parameters = 0;
  nlohmann::json files = nlohmann::json::object();
  for (const Shard& shard : shards) {
    bytes += shard.bytes;
    for (const ExportTensor* tensor : shard.tensors) {
      parameters += Rows(*tensor) * RowNumel(*tensor);
      files[tensor->name] = shard.name;
    }
  }
  index["metadata"] = {{"total_parameters", parameters}, {"total_size", bytes}};
  index["weight_map"] = files;
  return index.dump(2) + "\n";
}

// What is on disk, read by the importing code, is what was meant to be written.
absl::Status Verify(const std::string& folder, const ModelConfig& model, const ExportOptions& options,
                    const std::vector<Shard>& shards) {
  const auto bad = [&](const auto&... what) {
    return Error(ExitCode::kStorage, "export: ", folder, " does not read back as it was written: ", what...);
  };
  ASSIGN_OR_RETURN(const HfConfig config, ReadHfConfig(absl::StrCat(folder, "/", kHfConfigName)));
  ModelConfig merged = model;
  std::vector<std::string> problems;
  MergeHfConfig(config.model, kHfConfigName, &merged, &problems);
  if (!problems.empty()) return bad(problems[0]);
  ASSIGN_OR_RETURN(const HfDirectory directory, HfDirectory::Open(folder));
  size_t tensors = 0;
  for (const Shard& shard : shards) {
    ASSIGN_OR_RETURN(const Digest digest, HashFile(absl::StrCat(folder, "/", shard.name), [&](uint64_t) {
                       if (options.alive) options.alive();
                     }));
    if (digest != shard.digest) return bad(shard.name, " has another content");
    for (const SafetensorsEntry& entry : EntriesOf(shard, options)) {
      const auto found = directory.tensors().find(entry.name);
      if (found == directory.tensors().end() || found->second.entry->dtype != entry.dtype ||
          found->second.entry->shape != entry.shape)
        return bad(entry.name, " is missing or another");
      ++tensors;
    }
  }
  return tensors == directory.tensors().size() ? absl::OkStatus() : bad("there are more tensors");
}

absl::Status WriteDirectory(const ExportSource& source, const ExportOptions& options, const std::string& folder) {
  RETURN_IF_ERROR(MakeDirectories(folder));
  ASSIGN_OR_RETURN(const HfTokenIds ids, ExportTokenizer(source.tokenizer_folders, source.model, source.ids, folder));
  // The largest tensor stands for the rest: norms may be kept in another type.
  const ExportTensor& largest =
      *std::max_element(source.tensors.begin(), source.tensors.end(),
                        [](const auto& a, const auto& b) { return Rows(a) * RowNumel(a) < Rows(b) * RowNumel(b); });
  const std::string dtype = NamesOf(Target(options.dtype, largest.dtype)).transformers;
  RETURN_IF_ERROR(WriteText(absl::StrCat(folder, "/", kHfConfigName), WriteHfConfig(source.model, ids, dtype)));
  std::vector<Shard> shards = CutIntoShards(source, options);
  RETURN_IF_ERROR(WriteShards(source, options, folder, &shards));
  if (shards.size() > 1) RETURN_IF_ERROR(WriteText(absl::StrCat(folder, "/", kHfIndexName), IndexText(shards)));
  RETURN_IF_ERROR(SyncDirectory(folder));
  return Verify(folder, source.model, options, shards);
}

bool Exists(const std::string& path) {
  std::error_code error;
  return fs::exists(fs::symlink_status(path, error));
}

}  // namespace

absl::Status ExportHf(const ExportOptions& options, const std::vector<ModelFamily>& families) {
  std::string output = options.output;
  while (output.size() > 1 && output.back() == '/') output.pop_back();
  if (output.empty()) return Error(ExitCode::kConfig, "export: no output; give a folder with --output");
  if (Exists(output))
    return Error(ExitCode::kConfig, "export: ", output, " exists already; remove it or choose another output");
  ASSIGN_OR_RETURN(const ExportSource source, OpenExportSource(options.source, families, options.alive));
  if (HfModelTypeOf(source.model) == nullptr)
    return Error(ExitCode::kConfig, "export: ", source.description, " is of the family \"", source.model.family(),
                 "\", which --format hf cannot express; it knows the model types ", KnownHfModelTypes());
  const int64_t now = std::chrono::system_clock::now().time_since_epoch().count();
  const std::string temporary = absl::StrFormat("%s.tmp-%x-%x", output, now, ::getpid());
  absl::Status status = WriteDirectory(source, options, temporary);
  if (status.ok() && Exists(output)) status = Error(ExitCode::kStorage, "export: ", output, " has appeared meanwhile");
  if (status.ok()) status = RenameDurably(temporary, output);
  if (!status.ok()) {
    RemoveAll(temporary).IgnoreError();
    return status;
  }
  Info("exported ", source.description, " to ", output);
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> ParseSize(const std::string& text) {
  const std::string upper = absl::AsciiStrToUpper(text);
  absl::string_view number = upper;
  double unit = 1;
  for (const auto& [suffix, factor] : {std::pair("TB", 1e12), {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1.0}}) {
    if (absl::ConsumeSuffix(&number, suffix)) {
      unit = factor;
      break;
    }
  }
  double value = 0;
  if (!absl::SimpleAtod(number, &value) || !(value * unit >= 1 && value * unit < 1e18))
    return Error(ExitCode::kConfig, "size ", text, ": give a number of bytes, as in 5GB or 500MB");
  return static_cast<uint64_t>(value * unit);
}

absl::Status CheckExport(const RunConfig& config) {
  if (!config.has_export_()) return absl::OkStatus();
  const std::string& output = config.export_().output();
  if (output.empty()) return Error(ExitCode::kConfig, "export.output: not set; give the folder to write");
  if (Exists(output))
    return Error(ExitCode::kConfig, "export.output: ", output, " exists already; remove it or choose another");
  return absl::OkStatus();
}

absl::Status ExportAtEnd(const Recipe& recipe, int64_t step, const std::vector<ModelFamily>& families, Mesh& mesh) {
  if (!recipe.config.has_export_()) return absl::OkStatus();
  absl::Status status = absl::OkStatus();
  if (mesh.control().rank() == 0 && !Exists(recipe.config.export_().output())) {
    ExportOptions options;
    options.source = Checkpointer::FolderFor(recipe.config.run_dir(), step);
    options.output = recipe.config.export_().output();
    options.dtype = recipe.config.export_().dtype();
    options.alive = [&mesh] { mesh.log().Beat("exporting"); };
    options.alive();
    status = ExportHf(options, families);
  }
  return Agree(mesh.control(), status);
}

}  // namespace trireme
