#include "trainer/export/export_hf.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/isinf.h>
#include <absl/strings/str_format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "kernels/matrix/nf4.h"
#include "launch/base/file.h"
#include "launch/base/json.h"
#include "launch/base/log.h"
#include "models/formats/hf/bitsandbytes.h"
#include "models/formats/hf/hf_directory.h"
#include "models/formats/hf/hf_model_type.h"
#include "models/spec/parameters.h"
#include "models/weights/sharded_tensors.h"
#include "trainer/export/export_tokenizer.h"

namespace trireme {
namespace {

const char* TransformersName(at::ScalarType dtype) {
  return dtype == at::kBFloat16 ? "bfloat16" : dtype == at::kHalf ? "float16" : "float32";
}

at::ScalarType HfTarget(ExportConfig::Dtype wanted, at::ScalarType stored) {
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

// Matrices of blocks, but for those that stay as they are.
bool IsQuantized(const ModelSource& source, const ExportOptions& options, const WeightTable::Stored& tensor) {
  if (!options.quantize_nf4 || tensor.shape.size() != 2) return false;
  // bitsandbytes knows no experts and leaves routers alone.
  return source.table.parameters[tensor.runs[0].parameter].linear &&
         QuantizedByName(tensor.name, source.model.quantization());
}

// The number format that the source stores the tensor in; all parameters of a tensor have the same.
at::ScalarType StoredDtype(const ModelSource& source, const WeightTable::Stored& tensor) {
  return source.weights.tensors[tensor.runs[0].parameter].copied_as();
}

int64_t Numel(const WeightTable::Stored& tensor) {
  int64_t n = 1;
  for (const int64_t extent : tensor.shape) n *= extent;
  return n;
}

// One tensor to write, as one or several entries.
struct Item {
  size_t stored;  // index into the source's table
  at::ScalarType dtype;
  std::vector<SafetensorsEntry> entries;
  std::string quant_state;  // "": not quantized
};

// One file to write.
struct Shard {
  std::string name;
  std::vector<Item> items;
  uint64_t bytes = 0;
  Digest digest;  // once written
};

// Rows whose elements are whole blocks.
int64_t RowsOfBlocks(const WeightTable::Stored& matrix) { return kNf4Block / std::gcd(kNf4Block, matrix.shape[1]); }

// Quantizes a matrix piece by piece; the scales of all its blocks come together.
absl::StatusOr<at::Tensor> QuantizePieces(const ModelSource& source, const Item& item,
                                          const std::function<absl::Status(const std::vector<uint8_t>&)>& use) {
  const WeightTable::Stored& matrix = source.table.stored[item.stored];
  at::Tensor absmax = at::empty({Numel(matrix) / kNf4Block}, at::TensorOptions().dtype(at::kFloat));
  float* scales = absmax.mutable_data_ptr<float>();
  std::vector<uint8_t> packed;
  const auto quantize = [&](const at::Tensor& piece) -> absl::Status {
    const at::Tensor values = piece.to(item.dtype).to(at::kFloat);
    packed.resize(static_cast<size_t>(values.numel() / 2));
    if (!QuantizeNf4(values.numel(), values.const_data_ptr<float>(), packed.data(), scales))
      return Error(ExitCode::kData, "export: ", matrix.name, " holds numbers that are not finite");
    scales += values.numel() / kNf4Block;
    return use(packed);
  };
  RETURN_IF_ERROR(ReadStoredPieces(source.weights, source.table, item.stored, RowsOfBlocks(matrix), quantize));
  return absmax;
}

// Puts as many tensors into a file as fit, in the model's order.
absl::StatusOr<std::vector<Shard>> CutIntoShards(const ModelSource& source, const ExportOptions& options) {
  const std::vector<WeightTable::Stored>& tensors = source.table.stored;
  if (options.quantize_nf4 && std::none_of(tensors.begin(), tensors.end(), [&](const WeightTable::Stored& tensor) {
        return IsQuantized(source, options, tensor);
      }))
    return Error(ExitCode::kConfig, "export: no matrix of this model of family \"", source.model.family(),
                 "\" can be quantized; leave out --quantize");
  std::vector<Shard> shards(1);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const WeightTable::Stored& tensor = tensors[i];
    const at::ScalarType stored = StoredDtype(source, tensor);
    const bool exact = tensor.exact && stored == at::kFloat;
    Item item = {i, exact ? stored : HfTarget(options.dtype, stored), {}, ""};
    if (IsQuantized(source, options, tensor)) {
      if (Numel(tensor) % kNf4Block != 0)
        return Error(ExitCode::kConfig, "export: ", tensor.name, " has ", tensor.shape[0], " x ", tensor.shape[1],
                     " elements, no whole NF4 blocks of ", kNf4Block, "; leave out --quantize");
      // Its length depends on how many digits the offset has.
      ASSIGN_OR_RETURN(const at::Tensor absmax, QuantizePieces(source, item, [&](const std::vector<uint8_t>&) {
                         if (options.alive) options.alive();
                         return absl::OkStatus();
                       }));
      item.quant_state = BnbQuantState(tensor.shape, TransformersName(item.dtype), QuantizeScales(absmax).offset);
      item.entries = BnbNf4Entries(tensor.name, tensor.shape, item.quant_state);
    } else {
      SafetensorsEntry entry;
      entry.name = tensor.name;
      entry.dtype = SafetensorsName(item.dtype);
      entry.shape = tensor.label;
      item.entries.push_back(std::move(entry));
    }
    uint64_t bytes = 0;
    for (const SafetensorsEntry& entry : item.entries) {
      uint64_t entry_bytes = static_cast<uint64_t>(SafetensorsElementSize(entry.dtype));
      for (const int64_t extent : entry.shape) entry_bytes *= static_cast<uint64_t>(extent);
      bytes += entry_bytes;
    }
    if (shards.back().bytes > 0 && shards.back().bytes + bytes > options.shard_bytes) shards.emplace_back();
    shards.back().items.push_back(std::move(item));
    shards.back().bytes += bytes;
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    shards[i].name =
        shards.size() == 1 ? kHfWeightsName : absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, shards.size());
  }
  return shards;
}

std::vector<SafetensorsEntry> EntriesOf(const Shard& shard) {
  std::vector<SafetensorsEntry> entries;
  for (const Item& item : shard.items) entries.insert(entries.end(), item.entries.begin(), item.entries.end());
  return entries;
}

absl::Status WritePlain(const ModelSource& source, const Item& item, FileWriter& writer,
                        const std::function<void(uint64_t)>& wrote) {
  const auto write = [&](const at::Tensor& piece) -> absl::Status {
    const at::Tensor values = piece.to(item.dtype);
    // float16 ends at 65504; what exceeds it would become infinite in silence.
    if (item.dtype == at::kHalf && piece.scalar_type() != at::kHalf && at::isinf(values).any().item<bool>())
      return Error(ExitCode::kData, "export: ", source.table.stored[item.stored].name,
                   " holds numbers beyond float16's range; use --dtype bf16");
    RETURN_IF_ERROR(writer.Append(values.const_data_ptr(), values.nbytes()));
    wrote(values.nbytes());
    return absl::OkStatus();
  };
  return ReadStoredPieces(source.weights, source.table, item.stored, /*multiple=*/1, write);
}

// Writes the entries of a shard in their order: codes first, which bring the scales of the entries after them.
class ShardWriter {
 public:
  ShardWriter(const ModelSource& source, const Shard& shard, std::function<void(uint64_t)> wrote)
      : source_(source), shard_(shard), wrote_(std::move(wrote)) {}

  absl::Status WriteNext(FileWriter& writer) {
    const Item& item = shard_.items[item_];
    const size_t entry = entry_;
    if (++entry_ == item.entries.size()) {
      entry_ = 0;
      ++item_;
    }
    if (item.quant_state.empty()) return WritePlain(source_, item, writer, wrote_);
    const auto append = [&](const void* data, size_t bytes) {
      wrote_(bytes);
      return writer.Append(data, bytes);
    };
    if (entry == 0) {
      ASSIGN_OR_RETURN(absmax_, QuantizePieces(source_, item, [&](const std::vector<uint8_t>& packed) {
                         return append(packed.data(), packed.size());
                       }));
      nested_ = QuantizeScales(absmax_);
      return absl::OkStatus();
    }
    if (entry == 1) {
      std::vector<uint8_t> codes(static_cast<size_t>(absmax_.numel()));
      for (size_t i = 0; i < codes.size(); ++i)
        codes[i] = ScaleCode(nested_, static_cast<int64_t>(i), absmax_.const_data_ptr<float>()[i]);
      return append(codes.data(), codes.size());
    }
    if (entry == 2) return append(nested_.absmax.data(), nested_.absmax.size() * sizeof(float));
    if (entry == 3) return append(nested_.map.data(), nested_.map.size() * sizeof(float));
    if (entry == 4) return append(kNf4Codes, sizeof(kNf4Codes));
    return append(item.quant_state.data(), item.quant_state.size());
  }

 private:
  const ModelSource& source_;
  const Shard& shard_;
  std::function<void(uint64_t)> wrote_;
  size_t item_ = 0, entry_ = 0;
  at::Tensor absmax_;  // of the quantized matrix under way
  NestedScales nested_;
};

absl::Status WriteShards(const ModelSource& source, const ExportOptions& options, const std::string& folder,
                         std::vector<Shard>* shards) {
  int64_t total = 0, done = 0;
  for (const Shard& shard : *shards) total += static_cast<int64_t>(shard.bytes);
  Progress progress(absl::StrCat("exporting ", source.description), total, "B");
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
  if (!source.merged.empty()) metadata["trireme.merged"] = source.merged;
  for (Shard& shard : *shards) {
    ShardWriter next(source, shard, [&](uint64_t bytes) {
      progress.Update(done += static_cast<int64_t>(bytes));
      if (options.alive) options.alive();
    });
    ASSIGN_OR_RETURN(
        const SafetensorsWritten written,
        WriteSafetensors(absl::StrCat(folder, "/", shard.name), EntriesOf(shard), metadata,
                         [&](const SafetensorsEntry&, FileWriter& writer) { return next.WriteNext(writer); }));
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

std::string IndexText(const ModelSource& source, const std::vector<Shard>& shards) {
  nlohmann::ordered_json index;
  uint64_t bytes = 0;
  int64_t parameters = 0;
  nlohmann::json files = nlohmann::json::object();
  for (const Shard& shard : shards) {
    bytes += shard.bytes;
    for (const Item& item : shard.items) {
      parameters += Numel(source.table.stored[item.stored]);
      for (const SafetensorsEntry& entry : item.entries) files[entry.name] = shard.name;
    }
  }
  index["metadata"] = {{"total_parameters", parameters}, {"total_size", bytes}};
  index["weight_map"] = files;
  return DumpJson(index, 2) + "\n";
}

// What is on disk, read by the importing code, is what was meant to be written: config.json here, the weights below.
absl::Status VerifyConfig(const std::string& folder, const ModelConfig& model, const HfModelTypes& types) {
  ASSIGN_OR_RETURN(const HfConfig config, ReadHfConfig(absl::StrCat(folder, "/", kHfConfigName), types));
  ModelConfig merged = model;
  std::vector<std::string> problems;
  MergeHfConfig(config.model, kHfConfigName, &merged, &problems);
  if (problems.empty()) return absl::OkStatus();
  return Error(ExitCode::kStorage, "export: ", folder, " does not read back as it was written: ", problems[0]);
}

absl::Status Verify(const std::string& folder, const ModelConfig& model, const HfModelTypes& types,
                    const ExportOptions& options, const std::vector<Shard>& shards) {
  const auto bad = [&](const auto&... what) {
    return Error(ExitCode::kStorage, "export: ", folder, " does not read back as it was written: ", what...);
  };
  RETURN_IF_ERROR(VerifyConfig(folder, model, types));
  ASSIGN_OR_RETURN(const HfDirectory directory, HfDirectory::Open(folder));
  size_t tensors = 0;
  for (const Shard& shard : shards) {
    ASSIGN_OR_RETURN(const Digest digest, HashFile(absl::StrCat(folder, "/", shard.name), [&](uint64_t) {
                       if (options.alive) options.alive();
                     }));
    if (digest != shard.digest) return bad(shard.name, " has another content");
    for (const SafetensorsEntry& entry : EntriesOf(shard)) {
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

absl::Status WriteHfDirectory(const ModelSource& source, const ExportOptions& options, const std::string& folder) {
  const HfModelType* type = HfModelTypeOf(source.hf_types, source.model);
  if (type == nullptr)
    return Error(ExitCode::kConfig, "export: ", source.description, " is of the family \"", source.model.family(),
                 "\", which has no config.json (ModelFamily::hf_types)");
  ASSIGN_OR_RETURN(const HfTokenIds ids, ExportTokenizer(source, folder));
  // The largest tensor stands for the rest: norms may be kept in another type.
  const SourceTensor& largest = *std::max_element(
      source.weights.tensors.begin(), source.weights.tensors.end(),
      [](const auto& a, const auto& b) { return a.rows() * a.row_numel() < b.rows() * b.row_numel(); });
  const std::string dtype = TransformersName(HfTarget(options.dtype, largest.copied_as()));
  ModelConfig model = source.model;
  if (options.quantize_nf4) {
    // Layers that were left out stay so.
    model.mutable_quantization()->set_method(QuantizationConfig::NF4);
    model.mutable_quantization()->set_double_quantization(true);
    if (model.has_num_experts()) model.mutable_quantization()->set_experts(false);
  } else {
    model.clear_quantization();
  }
  RETURN_IF_ERROR(WriteText(absl::StrCat(folder, "/", kHfConfigName), WriteHfConfig(model, *type, ids, dtype)));
  ASSIGN_OR_RETURN(std::vector<Shard> shards, CutIntoShards(source, options));
  if (options.without_weights) return VerifyConfig(folder, model, source.hf_types);
  RETURN_IF_ERROR(WriteShards(source, options, folder, &shards));
  if (shards.size() > 1) RETURN_IF_ERROR(WriteText(absl::StrCat(folder, "/", kHfIndexName), IndexText(source, shards)));
  RETURN_IF_ERROR(SyncDirectory(folder));
  return Verify(folder, model, source.hf_types, options, shards);
}

}  // namespace trireme
