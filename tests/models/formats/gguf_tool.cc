// What tests/oracle/gguf_oracle.py compares with other software: prints, decodes, encodes, writes and reads GGUF files.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "models/formats/base/safetensors.h"
#include "models/formats/gguf/gguf.h"
#include "models/formats/gguf/gguf_model.h"
#include "models/formats/gguf/gguf_tokenizer.h"
#include "models/formats/gguf/gguf_writer.h"

namespace trireme {
namespace {

using Json = nlohmann::json;

Json ToJson(const GgufValue& value) {
  return std::visit(
      []<typename T>(const T& v) -> Json {
        if constexpr (std::is_same_v<T, GgufArray>) {
          return std::visit(
              []<typename Elements>(const Elements& elements) -> Json {
                if constexpr (std::is_same_v<Elements, std::monostate>) {
                  return nullptr;
                } else {
                  return elements;
                }
              },
              v);
        } else {
          return v;
        }
      },
      value);
}

Json ToJson(const GgufModelFacts& f) {
  Json facts = {{"name", f.name},
                {"block_count", f.block_count},
                {"context_length", f.context_length},
                {"embedding_length", f.embedding_length},
                {"feed_forward_length", f.feed_forward_length},
                {"head_count", f.head_count},
                {"head_count_kv", f.head_count_kv},
                {"head_dim", f.head_dim},
                {"vocab_size", f.vocab_size},
                {"layer_norm_rms_epsilon", f.layer_norm_rms_epsilon},
                {"rope_freq_base", f.rope_freq_base},
                {"tied_embeddings", f.tied_embeddings}};
  if (f.rope_scaling.has_value()) {
    facts["rope_scaling"] = {{"factor", f.rope_scaling->factor},
                             {"low_freq_factor", f.rope_scaling->low_freq_factor},
                             {"high_freq_factor", f.rope_scaling->high_freq_factor},
                             {"original_max_position_embeddings", f.rope_scaling->original_max_position_embeddings}};
  }
  return facts;
}

GgufModelFacts FactsFromJson(const Json& json) {
  GgufModelFacts f;
  f.name = json.at("name");
  f.block_count = json.at("block_count");
  f.context_length = json.at("context_length");
  f.embedding_length = json.at("embedding_length");
  f.feed_forward_length = json.at("feed_forward_length");
  f.head_count = json.at("head_count");
  f.head_count_kv = json.at("head_count_kv");
  f.head_dim = json.at("head_dim");
  f.vocab_size = json.at("vocab_size");
  f.layer_norm_rms_epsilon = json.at("layer_norm_rms_epsilon");
  f.rope_freq_base = json.at("rope_freq_base");
  f.tied_embeddings = json.at("tied_embeddings");
  if (json.contains("rope_scaling")) {
    const Json& s = json["rope_scaling"];
    f.rope_scaling = GgufRopeScaling{s.at("factor"), s.at("low_freq_factor"), s.at("high_freq_factor"),
                                     s.at("original_max_position_embeddings")};
  }
  return f;
}

void Print(const Json& json) {
  std::cout << json.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace) << "\n";
}

absl::Status PrintTypes() {
  Json types = Json::object();
  for (uint32_t number = 0; number < 100; ++number) {
    const GgufTypeInfo* info = FindGgufType(static_cast<GgufType>(number));
    if (info != nullptr) types[info->name] = {number, info->block_elements, info->block_bytes};
  }
  Print(types);
  return absl::OkStatus();
}

absl::Status Describe(const std::string& path) {
  ASSIGN_OR_RETURN(const auto file, GgufFile::Open(path));
  Json json = {{"version", file->version()}, {"metadata", Json::object()}, {"tensors", Json::array()}};
  for (const auto& [key, value] : file->metadata()) {
    const auto* array = std::get_if<GgufArray>(&value);
    json["metadata"][key] = {value.index(), array == nullptr ? -1 : static_cast<int>(array->index()), ToJson(value)};
  }
  for (const GgufTensor& tensor : file->tensors())
    json["tensors"].push_back({tensor.name, GgufTypeName(tensor.type), tensor.shape, tensor.begin, tensor.end});
  Print(json);
  return absl::OkStatus();
}

absl::Status Decode(const std::string& path, const std::string& output) {
  ASSIGN_OR_RETURN(const auto file, GgufFile::Open(path));
  ASSIGN_OR_RETURN(const auto writer, FileWriter::Create(output));
  for (const GgufTensor& tensor : file->tensors()) {
    std::vector<float> row(tensor.columns());
    for (int64_t i = 0; i < tensor.rows(); ++i) {
      // In two pieces, cut inside a block.
      const int64_t cut = tensor.columns() * 2 / 5;
      RETURN_IF_ERROR(file->Read(tensor, i, i + 1, 0, cut, row.data()));
      RETURN_IF_ERROR(file->Read(tensor, i, i + 1, cut, tensor.columns(), row.data() + cut));
      RETURN_IF_ERROR(writer->Append(row.data(), row.size() * sizeof(float)));
    }
  }
  return writer->Close();
}

absl::Status Encode(const std::string& type_name, const std::string& input, const std::string& output) {
  const std::optional<GgufType> type = GgufTypeNamed(type_name);
  if (!type.has_value()) return Error(ExitCode::kConfig, "no type ", type_name);
  ASSIGN_OR_RETURN(const std::string bytes, ReadFile(input));
  std::vector<float> values(bytes.size() / sizeof(float));
  std::copy_n(bytes.data(), values.size() * sizeof(float), reinterpret_cast<char*>(values.data()));
  std::vector<uint8_t> encoded(GgufRowBytes(*type, static_cast<int64_t>(values.size())));
  RETURN_IF_ERROR(GgufQuantize(*type, values.data(), static_cast<int64_t>(values.size()), encoded.data()));
  ASSIGN_OR_RETURN(const auto writer, FileWriter::Create(output));
  RETURN_IF_ERROR(writer->Append(encoded.data(), encoded.size()));
  return writer->Close();
}

absl::StatusOr<GgufTokenizer> TokenizerOf(const Json& spec) {
  GgufTokenizerOptions options;
  options.vocab_size = spec.at("facts").at("vocab_size");
  const Json& given = spec.at("tokenizer_options");
  if (given.contains("bos")) options.bos_token_id = given["bos"].get<int32_t>();
  if (given.contains("eos")) options.eos_token_id = given["eos"].get<int32_t>();
  if (given.contains("pad")) options.pad_token_id = given["pad"].get<int32_t>();
  options.add_bos_token = given.value("add_bos", false);
  options.chat_template = given.value("chat_template", "");
  ASSIGN_OR_RETURN(const std::string contents, ReadFile(spec.at("tokenizer")));
  return MakeGgufTokenizer(contents, options);
}

// A model from F32 safetensors with canonical names; a few rows at a time.
absl::Status Write(const std::string& spec_path, const std::string& output) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(spec_path));
  const Json spec = Json::parse(text);
  const GgufModelFacts facts = FactsFromJson(spec.at("facts"));
  const GgufType type = GgufTypeNamed(spec.at("type").get<std::string>()).value();
  GgufMetadata metadata = GgufModelMetadata(facts, type);
  if (spec.contains("tokenizer")) {
    ASSIGN_OR_RETURN(const GgufTokenizer tokenizer, TokenizerOf(spec));
    metadata.insert(metadata.end(), tokenizer.metadata.begin(), tokenizer.metadata.end());
    for (const std::string& warning : tokenizer.warnings) std::cerr << "warning: " << warning << "\n";
  }
  ASSIGN_OR_RETURN(const std::vector<GgufTensor> tensors, GgufModelTensors(facts, type));
  ASSIGN_OR_RETURN(const auto weights, SafetensorsFile::Open(spec.at("weights")));
  std::map<std::string, const uint8_t*> data;
  for (const SafetensorsEntry& entry : weights->entries()) data[entry.name] = weights->data(entry);
  ASSIGN_OR_RETURN(const auto writer, GgufWriter::Create(output, metadata, tensors));
  while (const GgufTensor* tensor = writer->current()) {
    if (tensor->name == "rope_freqs.weight") {
      const std::vector<float> factors = GgufRopeFactors(facts);
      RETURN_IF_ERROR(writer->Append(factors.data(), static_cast<int64_t>(factors.size())));
      continue;
    }
    const std::string name = ToCanonicalName(*facts.architecture, tensor->name).value();
    const int64_t rows = tensor->rows(), columns = tensor->columns();
    std::vector<float> values(columns);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t from = GgufReordersRows(*facts.architecture, name) ? LlamaCanonicalRow(row, facts.head_dim) : row;
      std::copy_n(data.at(name) + from * columns * sizeof(float), columns * sizeof(float),
                  reinterpret_cast<uint8_t*>(values.data()));
      for (float& value : values) value += GgufOffset(*facts.architecture, name);
      RETURN_IF_ERROR(writer->Append(values.data(), columns));
    }
  }
  return writer->Close().status();
}

// The model of a GGUF file as F32 safetensors with canonical names; prints its facts.
absl::Status Import(const std::string& path, const std::string& output) {
  ASSIGN_OR_RETURN(const auto file, GgufFile::Open(path));
  ASSIGN_OR_RETURN(const GgufModelFacts facts, ReadGgufFacts(*file));
  std::vector<SafetensorsEntry> entries;
  for (const GgufTensor& tensor : file->tensors()) {
    const std::optional<std::string> name = ToCanonicalName(*facts.architecture, tensor.name);
    if (name.has_value()) entries.push_back({*name, "F32", tensor.shape});
  }
  const auto produce = [&](const SafetensorsEntry& entry, FileWriter& writer) -> absl::Status {
    const GgufTensor& tensor = *file->FindTensor(ToGgufName(*facts.architecture, entry.name).value());
    std::vector<float> values(tensor.columns());
    for (int64_t row = 0; row < tensor.rows(); ++row) {
      RETURN_IF_ERROR(ReadGgufRows(*file, facts, entry.name, row, row + 1, 0, tensor.columns(), values.data()));
      RETURN_IF_ERROR(writer.Append(values.data(), values.size() * sizeof(float)));
    }
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(WriteSafetensors(output, entries, {}, produce).status());
  Print(ToJson(facts));
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  CLI::App app("Drives the GGUF code for tests.");
  app.require_subcommand(1);
  std::string first, second, third;
  CLI::App* types = app.add_subcommand("types");
  CLI::App* describe = app.add_subcommand("describe");
  CLI::App* decode = app.add_subcommand("decode");
  CLI::App* encode = app.add_subcommand("encode");
  CLI::App* write = app.add_subcommand("write");
  CLI::App* import = app.add_subcommand("import");
  for (CLI::App* command : {describe, decode, encode, write, import}) command->add_option("first", first)->required();
  for (CLI::App* command : {decode, encode, write, import}) command->add_option("second", second)->required();
  encode->add_option("third", third)->required();
  CLI11_PARSE(app, argc, argv);
  absl::Status status;
  if (types->parsed()) status = PrintTypes();
  if (describe->parsed()) status = Describe(first);
  if (decode->parsed()) status = Decode(first, second);
  if (encode->parsed()) status = Encode(first, second, third);
  if (write->parsed()) status = Write(first, second);
  if (import->parsed()) status = Import(first, second);
  if (!status.ok()) std::cerr << status.message() << "\n";
  return status.ok() ? 0 : static_cast<int>(ExitCodeOf(status));
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) { return trireme::Main(argc, argv); }
