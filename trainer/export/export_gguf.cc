#include "trainer/export/export_gguf.h"

#include <absl/strings/match.h>
#include <google/protobuf/util/message_differencer.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "launch/base/file.h"
#include "launch/base/log.h"
#include "models/formats/gguf/gguf_config.h"
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

absl::Status WriteTensor(const ModelSource& source, const SourceTensor& tensor, const GgufModelFacts& facts,
                         GgufWriter& writer, const std::function<void()>& alive) {
  const bool reorders = GgufReordersRows(*facts.architecture, tensor.name);
  return ReadPieces(
      source.weights, tensor, reorders ? facts.head_dim : 1, [&](const at::Tensor& stored) -> absl::Status {
        if (alive) alive();
        const at::Tensor values = stored.to(at::kFloat);
        const float* data = values.const_data_ptr<float>();
        const int64_t columns = tensor.row_numel();
        if (!reorders) {
          const float offset = GgufOffset(*facts.architecture, tensor.name);
          if (offset == 0) return writer.Append(data, values.numel());
          std::vector<float> moved(data, data + values.numel());
          for (float& value : moved) value += offset;
          return writer.Append(moved.data(), values.numel());
        }
        for (int64_t row = 0; row < values.numel() / columns; ++row)
          RETURN_IF_ERROR(writer.Append(data + LlamaCanonicalRow(row, facts.head_dim) * columns, columns));
        return absl::OkStatus();
      });
}

absl::StatusOr<GgufWritten> WriteTensors(const ModelSource& source, const ExportOptions& options,
                                         const GgufModelFacts& facts, GgufWriter& writer, int64_t total) {
  std::map<std::string, const SourceTensor*> by_name;
  for (const SourceTensor& tensor : source.weights.tensors) {
    const std::optional<std::string> name = ToGgufName(*facts.architecture, tensor.name);
    if (name.has_value()) by_name[*name] = &tensor;
  }
  Progress progress(absl::StrCat("exporting ", source.description), total, "B");
  int64_t done = 0;
  while (const GgufTensor* tensor = writer.current()) {
    const auto bytes = static_cast<int64_t>(tensor->end - tensor->begin);
    const auto found = by_name.find(tensor->name);
    if (found != by_name.end()) {
      RETURN_IF_ERROR(WriteTensor(source, *found->second, facts, writer, options.alive));
    } else {
      TRIREME_CHECK(facts.rope_scaling.has_value() && tensor->rows() == 1, "no source for ", tensor->name);
      const std::vector<float> factors = GgufRopeFactors(facts);
      RETURN_IF_ERROR(writer.Append(factors.data(), static_cast<int64_t>(factors.size())));
    }
    progress.Update(done += bytes);
    if (options.alive) options.alive();
  }
  progress.Finish();
  return writer.Close();
}

// What is on disk, read by the importing code, is what was meant to be written.
absl::Status Verify(const std::string& path, const GgufModelFacts& facts, const GgufMetadata& metadata,
                    const std::vector<GgufTensor>& tensors, const GgufWritten& written, const ExportOptions& options) {
  const auto bad = [&](const auto&... what) {
    return Error(ExitCode::kStorage, "export: ", path, " does not read back as it was written: ", what...);
  };
  ASSIGN_OR_RETURN(const Digest digest, HashFile(path, [&](uint64_t) {
                     if (options.alive) options.alive();
                   }));
  if (digest != written.digest) return bad("it has another content");
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(path));
  if (file->metadata() != metadata) return bad("its metadata differ");
  if (file->tensors().size() != tensors.size()) return bad("it has another number of tensors");
  for (size_t i = 0; i < tensors.size(); ++i) {
    const GgufTensor &a = file->tensors()[i], &b = tensors[i];
    if (a.name != b.name || a.type != b.type || a.shape != b.shape) return bad(b.name, " is missing or another");
  }
  ASSIGN_OR_RETURN(const GgufModelFacts read,
                   ReadGgufFacts(*file, facts.rope_scaling.has_value() ? &*facts.rope_scaling : nullptr));
  // Files hold 32-bit numbers, and position scaling only by what it does: comparing those is for the tests.
  ModelConfig ours = ConfigOfGguf(facts), theirs = ConfigOfGguf(read);
  for (ModelConfig* config : {&ours, &theirs}) {
    config->clear_rope_theta();
    config->clear_rms_norm_eps();
    config->clear_rope_scaling();
    config->clear_rope_local_base_freq();
    config->clear_attn_logit_softcapping();
    config->clear_final_logit_softcapping();
  }
  return google::protobuf::util::MessageDifferencer::Equals(ours, theirs) ? absl::OkStatus()
                                                                          : bad("it describes another model");
}

}  // namespace

absl::Status CheckGgufModel(const ModelConfig& model, ExportConfig::Dtype dtype) {
  ASSIGN_OR_RETURN(const GgufModelFacts facts, GgufFactsOf(model, ""));
  return GgufModelTensors(facts, GgufTarget(dtype, at::kFloat)).status();
}

absl::Status WriteGgufModel(const ModelSource& source, const ExportOptions& options, const std::string& folder) {
  // Matrices have one type in a file; the largest stands for the rest.
  const SourceTensor& largest = *std::max_element(
      source.weights.tensors.begin(), source.weights.tensors.end(),
      [](const auto& a, const auto& b) { return a.rows() * a.row_numel() < b.rows() * b.row_numel(); });
  const GgufType type = GgufTarget(options.dtype, largest.copied_as());
  const std::string name = std::filesystem::path(options.output).stem().string();
  ASSIGN_OR_RETURN(const GgufModelFacts facts, GgufFactsOf(source.model, name));
  ASSIGN_OR_RETURN(const std::vector<GgufTensor> tensors, GgufModelTensors(facts, type));
  GgufMetadata metadata = GgufModelMetadata(facts, type);
  ASSIGN_OR_RETURN(const GgufMetadata tokenizer, TokenizerOf(source, folder));
  metadata.insert(metadata.end(), tokenizer.begin(), tokenizer.end());
  if (!source.merged.empty()) metadata.emplace_back("trireme.merged", source.merged);
  if (options.without_weights) return absl::OkStatus();
  int64_t total = 0;
  for (const GgufTensor& tensor : tensors) total += tensor.rows() * GgufRowBytes(tensor.type, tensor.columns());
  const std::string path = absl::StrCat(folder, "/", kGgufModelName);
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufWriter> writer, GgufWriter::Create(path, metadata, tensors));
  ASSIGN_OR_RETURN(const GgufWritten written, WriteTensors(source, options, facts, *writer, total));
  return Verify(path, facts, metadata, tensors, written, options);
}

}  // namespace trireme
