// What tests/oracle/gguf_oracle.py compares with other software: prints and decodes GGUF files, encodes blocks.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "launch/base/file.h"
#include "models/formats/gguf/gguf.h"

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

int Main(int argc, char** argv) {
  CLI::App app("Drives the GGUF code for tests.");
  app.require_subcommand(1);
  std::string first, second, third;
  CLI::App* types = app.add_subcommand("types");
  CLI::App* describe = app.add_subcommand("describe");
  CLI::App* decode = app.add_subcommand("decode");
  CLI::App* encode = app.add_subcommand("encode");
  for (CLI::App* command : {describe, decode, encode}) command->add_option("first", first)->required();
  for (CLI::App* command : {decode, encode}) command->add_option("second", second)->required();
  encode->add_option("third", third)->required();
  CLI11_PARSE(app, argc, argv);
  absl::Status status;
  if (types->parsed()) status = PrintTypes();
  if (describe->parsed()) status = Describe(first);
  if (decode->parsed()) status = Decode(first, second);
  if (encode->parsed()) status = Encode(first, second, third);
  if (!status.ok()) std::cerr << status.message() << "\n";
  return status.ok() ? 0 : static_cast<int>(ExitCodeOf(status));
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) { return trireme::Main(argc, argv); }
