#include "trainer/export/export_gguf.h"

#include <absl/strings/match.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "launch/base/file.h"
#include "launch/base/log.h"
#include "models/formats/gguf/gguf_config.h"
#include "models/formats/gguf/gguf_fields.h"
#include "models/formats/gguf/gguf_tokenizer.h"
#include "models/formats/gguf/gguf_writer.h"
#include "models/source/end_ids.h"
#include "models/source/model_text.h"
#include "trainer/export/export_tokenizer.h"

namespace trireme {
namespace {

GgufType GgufTarget(ExportConfig::Dtype wanted, at::ScalarType stored) {
  switch (wanted) {
    case ExportConfig::FP32:
      return GgufType::kF32;
    case ExportConfig::BF16:
      return GgufType::kBF16;
    case ExportConfig::FP16:
      return GgufType::kF16;
    case ExportConfig::Q8_0:
      return GgufType::kQ8_0;
    case ExportConfig::Q4_0:
      return GgufType::kQ4_0;
    case ExportConfig::AS_STORED:
      break;
  }
  return stored == at::kBFloat16 ? GgufType::kBF16 : stored == at::kHalf ? GgufType::kF16 : GgufType::kF32;
}

// Adds to a file's tokenizer what training taught to stop at, where the file names nothing yet.
GgufMetadata WithEnds(const ModelSource& source, GgufMetadata metadata) {
  // A file may have no tokenizer, or one that is only passed on.
  const absl::StatusOr<ModelText> text =
      OpenModelText(source.tokenizer_gguf->path(), source.text.chat_template, TemplateDate::kOneDay);
  const bool by_template = source.text.ends_by_template && text.ok() && text->chat_template.ok();
  const auto has = [&](const std::string& key) {
    return std::any_of(metadata.begin(), metadata.end(), [&](const auto& entry) { return entry.first == key; });
  };
  for (const int64_t end :
       EndIds(source, text.ok() ? text->tokenizer.get() : nullptr, by_template ? &*text->chat_template : nullptr)) {
    if (std::find(source.ids.eos.begin(), source.ids.eos.end(), end) != source.ids.eos.end()) continue;
    std::vector<std::string> keys = {"tokenizer.ggml.eos_token_id"};
    keys.insert(keys.end(), std::begin(kGgufMoreEnds), std::end(kGgufMoreEnds));
    const auto free = std::find_if(keys.begin(), keys.end(), [&](const std::string& key) { return !has(key); });
    if (free == keys.end()) {
      Warning("export: a GGUF file has no room for token ", end, " among those at which to stop");
    } else {
      metadata.emplace_back(*free, static_cast<uint32_t>(end));
    }
  }
  return metadata;
}

// A file's tokenizer is kept as it is, but for what the run changed; another is translated.
absl::StatusOr<GgufMetadata> TokenizerOf(const ModelSource& source, const std::string& folder) {
  if (source.tokenizer_gguf == nullptr) {
    ASSIGN_OR_RETURN(const HfTokenIds ids, ExportTokenizer(source, folder));
    return ExportedGgufTokenizer(folder, ids, source.model.vocab_size());
  }
  GgufMetadata metadata;
  const std::string& own_template = source.text.chat_template;
  for (const auto& entry : source.tokenizer_gguf->metadata()) {
    if (!absl::StartsWith(entry.first, "tokenizer.")) continue;
    if (!own_template.empty() && absl::StartsWith(entry.first, "tokenizer.chat_template")) continue;
    metadata.push_back(entry);
  }
  if (!own_template.empty()) metadata.emplace_back("tokenizer.chat_template", own_template);
  return WithEnds(source, std::move(metadata));
}

// One tensor: what the source has of it, in the order of the file.
absl::Status WriteTensor(const ModelSource& source, const GgufLayout& layout, size_t stored, GgufWriter& writer,
                         const std::function<void()>& alive) {
  const GgufLayout::Extra& extra = layout.extras[stored];
  const int64_t heads = std::max<int64_t>(1, extra.paired_heads);
  const std::vector<int64_t>& shape = layout.table.stored[stored].shape;
  const int64_t columns = shape.size() == 2 ? shape[1] : 1;
  return ReadStoredPieces(source.weights, layout.table, stored, heads, [&](const at::Tensor& piece) -> absl::Status {
    if (alive) alive();
    const at::Tensor values = piece.to(at::kFloat);
    const float* data = values.const_data_ptr<float>();
    if (extra.paired_heads == 0 && extra.offset == 0) return writer.Append(data, values.numel());
    std::vector<float> moved(data, data + values.numel());
    for (float& value : moved) value += extra.offset;
    for (int64_t row = 0; extra.paired_heads > 0 && row < values.numel() / columns; ++row)
      std::copy_n(data + OwnRow(row, extra.paired_heads) * columns, columns, moved.data() + row * columns);
    return writer.Append(moved.data(), values.numel());
  });
}

absl::StatusOr<GgufWritten> WriteTensors(const ModelSource& source, const ExportOptions& options, const GgufPlan& plan,
                                         GgufWriter& writer, int64_t total) {
  Progress progress(absl::StrCat("exporting ", source.description), total, "B");
  int64_t done = 0;
  size_t stored = 0;
  while (const GgufTensor* tensor = writer.current()) {
    const auto bytes = static_cast<int64_t>(tensor->end - tensor->begin);
    const auto factor = std::find_if(plan.factors.begin(), plan.factors.end(),
                                     [&](const auto& one) { return one.first == tensor->name; });
    if (factor != plan.factors.end()) {
      RETURN_IF_ERROR(writer.Append(factor->second.data(), static_cast<int64_t>(factor->second.size())));
    } else {
      while (!plan.layout.extras[stored].key.empty()) ++stored;
      RETURN_IF_ERROR(WriteTensor(source, plan.layout, stored++, writer, options.alive));
    }
    progress.Update(done += bytes);
    if (options.alive) options.alive();
  }
  progress.Finish();
  return writer.Close();
}

// Parameters that are metadata: lists of a number for each layer.
absl::StatusOr<GgufMetadata> NumbersOf(const ModelSource& source, const GgufLayout& layout) {
  std::map<std::string, std::vector<float>> lists;
  for (size_t i = 0; i < layout.table.stored.size(); ++i) {
    const GgufLayout::Extra& extra = layout.extras[i];
    if (extra.key.empty()) continue;
    RETURN_IF_ERROR(ReadStoredPieces(source.weights, layout.table, i, 1, [&](const at::Tensor& piece) {
      lists[extra.key].push_back(piece.to(at::kFloat).const_data_ptr<float>()[0]);
      return absl::OkStatus();
    }));
  }
  GgufMetadata metadata;
  for (auto& [key, numbers] : lists) metadata.emplace_back(key, GgufArray(std::move(numbers)));
  return metadata;
}

// What is on disk, read by the importing code, is what was meant to be written.
absl::Status Verify(const std::string& path, const GgufPlan& plan, const GgufMetadata& metadata,
                    const GgufWritten& written, const ExportOptions& options) {
  const auto bad = [&](const auto&... what) {
    return Error(ExitCode::kStorage, "export: ", path, " does not read back as it was written: ", what...);
  };
  ASSIGN_OR_RETURN(const Digest digest, HashFile(path, [&](uint64_t) {
                     if (options.alive) options.alive();
                   }));
  if (digest != written.digest) return bad("it has another content");
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(path));
  if (file->metadata() != metadata) return bad("its metadata differ");
  if (file->tensors().size() != plan.tensors.size()) return bad("it has another number of tensors");
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    const GgufTensor &a = file->tensors()[i], &b = plan.tensors[i];
    if (a.name != b.name || a.type != b.type || a.shape != b.shape) return bad(b.name, " is missing or another");
  }
  const absl::Status means = CheckGgufMeans(file->header(), plan.model);
  return means.ok() ? means : bad(means.message());
}

}  // namespace

absl::StatusOr<GgufPlan> PlanGguf(const ModelConfig& model, const std::vector<ModelFamily>& families,
                                  const std::string& name, GgufType type) {
  GgufPlan plan;
  ASSIGN_OR_RETURN(const ModelFamily family, FindFamily(families, model.family()));
  plan.model = Filled(family, model);
  ASSIGN_OR_RETURN(const DecoderSpec spec, SpecifyModel(plan.model, families));
  ASSIGN_OR_RETURN(plan.metadata, GgufModelMetadata(plan.model, name, type));
  plan.layout = GgufLayoutOf(*GgufArchitectureOf(plan.model), spec);
  plan.factors = GgufPositionFactors(plan.model, HeadDimOf(plan.model));
  ASSIGN_OR_RETURN(plan.tensors, GgufTensors(plan.layout, plan.factors, type));
  RETURN_IF_ERROR(CheckGgufMeans(GgufHeader("to be written", plan.metadata, plan.tensors), plan.model));
  return plan;
}

absl::Status CheckGgufModel(const ModelConfig& model, const std::vector<ModelFamily>& families,
                            ExportConfig::Dtype dtype) {
  return PlanGguf(model, families, "", GgufTarget(dtype, at::kFloat)).status();
}

absl::Status WriteGgufModel(const ModelSource& source, const ExportOptions& options,
                            const std::vector<ModelFamily>& families, const std::string& folder) {
  // Matrices have one type in a file; the largest stands for the rest.
  const SourceTensor& largest = *std::max_element(
      source.weights.tensors.begin(), source.weights.tensors.end(),
      [](const auto& a, const auto& b) { return a.rows() * a.row_numel() < b.rows() * b.row_numel(); });
  const GgufType type = GgufTarget(options.dtype, largest.copied_as());
  const std::string name = std::filesystem::path(options.output).stem().string();
  ASSIGN_OR_RETURN(const GgufPlan plan, PlanGguf(source.model, families, name, type));
  if (GgufArchitectureOf(plan.model)->untruncated_yarn && plan.model.rope_scaling().rope_type() == RopeScaling::YARN)
    Warning("export: llama.cpp rounds the ends of YaRN's ramp in every file of this architecture, which the model's ",
            "rope_scaling.truncate false does not; its probabilities differ by that from this program's");
  GgufMetadata metadata = plan.metadata;
  ASSIGN_OR_RETURN(const GgufMetadata tokenizer, TokenizerOf(source, folder));
  metadata.insert(metadata.end(), tokenizer.begin(), tokenizer.end());
  ASSIGN_OR_RETURN(const GgufMetadata numbers, NumbersOf(source, plan.layout));
  metadata.insert(metadata.end(), numbers.begin(), numbers.end());
  if (!source.merged.empty()) metadata.emplace_back("trireme.merged", source.merged);
  if (options.without_weights) return absl::OkStatus();
  int64_t total = 0;
  for (const GgufTensor& tensor : plan.tensors) total += tensor.rows() * GgufRowBytes(tensor.type, tensor.columns());
  const std::string path = absl::StrCat(folder, "/", kGgufModelName);
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufWriter> writer, GgufWriter::Create(path, metadata, plan.tensors));
  ASSIGN_OR_RETURN(const GgufWritten written, WriteTensors(source, options, plan, *writer, total));
  return Verify(path, plan, metadata, written, options);
}

}  // namespace trireme
