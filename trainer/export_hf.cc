#include "trainer/export_hf.h"

#include <ATen/ops/isinf.h>
#include <absl/strings/str_format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "launch/file.h"
#include "launch/log.h"
#include "models/formats/hf_directory.h"
#include "models/formats/hf_model_type.h"
#include "trainer/export_tokenizer.h"

namespace trireme {
namespace {

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
    default:
      break;
  }
  return stored;
}

// As the source stores it: its parameters have one dtype.
at::ScalarType StoredDtype(const ExportSource& source, size_t stored) {
  return source.weights.tensors[source.table.stored[stored].runs[0].parameter].dtype;
}

uint64_t Numel(const WeightTable::Stored& stored) {
  uint64_t n = 1;
  for (const int64_t extent : stored.shape) n *= static_cast<uint64_t>(extent);
  return n;
}

// One file to write.
struct Shard {
  std::string name;
  std::vector<size_t> tensors;  // of the source's table
  uint64_t bytes = 0;
  Digest digest;  // once written
};

// As many tensors in a file as fit, in the model's order.
std::vector<Shard> CutIntoShards(const ExportSource& source, const ExportOptions& options) {
  std::vector<Shard> shards(1);
  for (size_t i = 0; i < source.table.stored.size(); ++i) {
    const uint64_t bytes =
        Numel(source.table.stored[i]) * at::elementSize(Target(options.dtype, StoredDtype(source, i)));
    if (shards.back().bytes > 0 && shards.back().bytes + bytes > options.shard_bytes) shards.emplace_back();
    shards.back().tensors.push_back(i);
    shards.back().bytes += bytes;
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    shards[i].name =
        shards.size() == 1 ? kHfWeightsName : absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, shards.size());
  }
  return shards;
}

std::vector<SafetensorsEntry> EntriesOf(const ExportSource& source, const Shard& shard, const ExportOptions& options) {
  std::vector<SafetensorsEntry> entries;
  for (const size_t stored : shard.tensors) {
    SafetensorsEntry entry;
    entry.name = source.table.stored[stored].name;
    entry.dtype = NamesOf(Target(options.dtype, StoredDtype(source, stored))).safetensors;
    entry.shape = source.table.stored[stored].shape;
    entries.push_back(std::move(entry));
  }
  return entries;
}

absl::Status WriteTensor(const ExportSource& source, size_t stored, at::ScalarType dtype, FileWriter& writer,
                         const std::function<void(int64_t)>& wrote) {
  return ReadStoredPieces(source.weights, source.table, stored, [&](const at::Tensor& piece) -> absl::Status {
    const at::Tensor values = piece.to(dtype);
    // float16 ends at 65504; what exceeds it would become infinite in silence.
    if (dtype == at::kHalf && piece.scalar_type() != at::kHalf && at::isinf(values).any().item<bool>())
      return Error(ExitCode::kData, "export: ", source.table.stored[stored].name,
                   " holds numbers beyond float16's range; use --dtype bf16");
    RETURN_IF_ERROR(writer.Append(values.const_data_ptr(), values.nbytes()));
    wrote(static_cast<int64_t>(values.nbytes()));
    return absl::OkStatus();
  });
}

absl::Status WriteShards(const ExportSource& source, const ExportOptions& options, const std::string& folder,
                         std::vector<Shard>* shards) {
  int64_t total = 0, done = 0;
  for (const Shard& shard : *shards) total += static_cast<int64_t>(shard.bytes);
  Progress progress(absl::StrCat("exporting ", source.description), total, "B");
  for (Shard& shard : *shards) {
    size_t next = 0;
    const auto produce = [&](const SafetensorsEntry&, FileWriter& writer) {
      const size_t stored = shard.tensors[next++];
      return WriteTensor(source, stored, Target(options.dtype, StoredDtype(source, stored)), writer,
                         [&](int64_t bytes) {
                           progress.Update(done += bytes);
                           if (options.alive) options.alive();
                         });
    };
    ASSIGN_OR_RETURN(const SafetensorsWritten written,
                     WriteSafetensors(absl::StrCat(folder, "/", shard.name), EntriesOf(source, shard, options),
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

std::string IndexText(const ExportSource& source, const std::vector<Shard>& shards) {
  nlohmann::ordered_json index;
  uint64_t bytes = 0;
  int64_t parameters = 0;
  nlohmann::json files = nlohmann::json::object();
  for (const Shard& shard : shards) {
    bytes += shard.bytes;
    for (const size_t stored : shard.tensors) {
      parameters += static_cast<int64_t>(Numel(source.table.stored[stored]));
      files[source.table.stored[stored].name] = shard.name;
    }
  }
  index["metadata"] = {{"total_parameters", parameters}, {"total_size", bytes}};
  index["weight_map"] = files;
  return index.dump(2) + "\n";
}

// What is on disk, read by the importing code, is what was meant to be written.
absl::Status Verify(const std::string& folder, const ExportSource& source, const ExportOptions& options,
                    const std::vector<Shard>& shards) {
  const auto bad = [&](const auto&... what) {
    return Error(ExitCode::kStorage, "export: ", folder, " does not read back as it was written: ", what...);
  };
  ASSIGN_OR_RETURN(const HfConfig config, ReadHfConfig(absl::StrCat(folder, "/", kHfConfigName)));
  ModelConfig merged = source.model;
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
    for (const SafetensorsEntry& entry : EntriesOf(source, shard, options)) {
      const auto found = directory.tensors().find(entry.name);
      if (found == directory.tensors().end() || found->second.entry->dtype != entry.dtype ||
          found->second.entry->shape != entry.shape)
        return bad(entry.name, " is missing or another");
      ++tensors;
    }
  }
  return tensors == directory.tensors().size() ? absl::OkStatus() : bad("there are more tensors");
}

}  // namespace

absl::Status WriteHfDirectory(const ExportSource& source, const ExportOptions& options, const std::string& folder) {
  if (HfModelTypeOf(source.model) == nullptr)
    return Error(ExitCode::kConfig, "export: ", source.description, " is of the family \"", source.model.family(),
                 "\", which --format hf cannot express; it knows the model types ", KnownHfModelTypes());
  ASSIGN_OR_RETURN(const HfTokenIds ids, ExportTokenizer(source, folder));
  // The largest tensor stands for the rest: norms may be kept in another type.
  const SourceTensor& largest = *std::max_element(
      source.weights.tensors.begin(), source.weights.tensors.end(),
      [](const auto& a, const auto& b) { return a.rows() * a.row_numel() < b.rows() * b.row_numel(); });
  const std::string dtype = NamesOf(Target(options.dtype, largest.dtype)).transformers;
  RETURN_IF_ERROR(WriteText(absl::StrCat(folder, "/", kHfConfigName), WriteHfConfig(source.model, ids, dtype)));
  std::vector<Shard> shards = CutIntoShards(source, options);
  RETURN_IF_ERROR(WriteShards(source, options, folder, &shards));
  if (shards.size() > 1) RETURN_IF_ERROR(WriteText(absl::StrCat(folder, "/", kHfIndexName), IndexText(source, shards)));
  RETURN_IF_ERROR(SyncDirectory(folder));
  return Verify(folder, source, options, shards);
}

}  // namespace trireme
