// What tests/oracle/hostile_oracle.py compares with other software: `reader_tool safetensors|gguf FILE...` prints a
// line of JSON per file, {"error": ...} or {"tensors": [[name, type, shape, first byte, end], ...]}.
#include <cstring>
#include <iostream>
#include <nlohmann/json.hpp>

#include "models/formats/base/safetensors.h"
#include "models/formats/gguf/gguf.h"

namespace trireme {
namespace {

using Json = nlohmann::json;

absl::StatusOr<Json> SafetensorsTensors(const std::string& path) {
  ASSIGN_OR_RETURN(const auto file, SafetensorsFile::Open(path));
  Json tensors = Json::array();
  for (const SafetensorsEntry& entry : file->entries())
    tensors.push_back({entry.name, entry.dtype, entry.shape, entry.begin, entry.end});
  return tensors;
}

absl::StatusOr<Json> GgufTensors(const std::string& path) {
  ASSIGN_OR_RETURN(const auto file, GgufFile::Open(path));
  Json tensors = Json::array();
  for (const GgufTensor& tensor : file->tensors())
    tensors.push_back({tensor.name, GgufTypeName(tensor.type), tensor.shape, tensor.begin, tensor.end});
  return tensors;
}

int Main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: reader_tool safetensors|gguf FILE...\n";
    return static_cast<int>(ExitCode::kConfig);
  }
  const bool gguf = std::strcmp(argv[1], "gguf") == 0;
  for (int i = 2; i < argc; ++i) {
    const absl::StatusOr<Json> tensors = gguf ? GgufTensors(argv[i]) : SafetensorsTensors(argv[i]);
    const Json line =
        tensors.ok() ? Json{{"tensors", *tensors}} : Json{{"error", std::string(tensors.status().message())}};
    std::cout << line.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace) << "\n";
  }
  return 0;
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) { return trireme::Main(argc, argv); }
