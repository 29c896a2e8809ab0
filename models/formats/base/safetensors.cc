#include "models/formats/base/safetensors.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "models/formats/base/json_file.h"

namespace trireme {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kMaxHeader = 100'000'000;  // The reference's limit.
constexpr int kMaxHeaderDepth = 4;

absl::StatusOr<Json> ParseHeader(const std::string& path, const char* begin, uint64_t size) {
  JsonProblem problem;
  std::optional<Json> header =
      ParseJson<Json>(absl::string_view(begin, size), {.max_depth = kMaxHeaderDepth, .unique_keys = true}, &problem);
  const bool unreadable = !header.has_value();
  if (unreadable && problem.fault != JsonFault::kSyntax)
    return Error(ExitCode::kData, "safetensors ", path, ": the header ", DescribeJsonProblem(problem));
  if (unreadable || !header->is_object())
    return Error(ExitCode::kData, "safetensors ", path, ": the header is not a JSON object");
  return *std::move(header);
}

bool IsUnsigned(const Json& value) { return value.is_number_unsigned(); }

absl::StatusOr<SafetensorsEntry> ParseEntry(const std::string& path, const std::string& name, const Json& value) {
  const auto bad = [&](const std::string& why) {
    return Error(ExitCode::kData, "safetensors ", path, ": tensor \"", name, "\" ", why);
  };
  if (!value.is_object() || !value.contains("dtype") || !value.contains("shape") || !value.contains("data_offsets") ||
      value.size() != 3) {
    return bad("does not have exactly dtype, shape and data_offsets");
  }
  const Json &dtype = JsonMember(value, "dtype"), &shape = JsonMember(value, "shape"),
             &offsets = JsonMember(value, "data_offsets");
  if (SafetensorsElementSize(JsonTextOr(dtype, "")) == 0)
    return bad(absl::StrCat("has unknown dtype ", DumpJson(dtype)));
  if (!shape.is_array() || !std::all_of(shape.begin(), shape.end(), IsUnsigned))
    return bad("has a shape that is not a list of sizes");
  if (!offsets.is_array() || offsets.size() != 2 || !IsUnsigned(offsets[0]) || !IsUnsigned(offsets[1]))
    return bad("has no two data_offsets");
  SafetensorsEntry entry;
  entry.name = name;
  entry.dtype = JsonTextOr(dtype, "");
  uint64_t bytes = SafetensorsElementSize(entry.dtype);
  for (const Json& extent : shape) {
    const uint64_t size = JsonNatural(extent).value_or(0);
    if (size > uint64_t{1} << 62 || __builtin_mul_overflow(bytes, size, &bytes))
      return bad("has a shape that overflows");
    entry.shape.push_back(static_cast<int64_t>(size));
  }
  entry.begin = JsonNatural(offsets[0]).value_or(0);
  entry.end = JsonNatural(offsets[1]).value_or(0);
  if (entry.end < entry.begin || entry.end - entry.begin != bytes) {
    return bad(
        absl::StrCat("needs ", bytes, " bytes by its shape but has data_offsets [", entry.begin, ", ", entry.end, ")"));
  }
  return entry;
}

}  // namespace

int SafetensorsElementSize(const std::string& dtype) {
  static const std::map<std::string, int> sizes = {
      {"BOOL", 1},        {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"F8_E8M0", 1}, {"F8_E4M3FNUZ", 1},
      {"F8_E5M2FNUZ", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2},     {"BF16", 2},    {"I32", 4},     {"U32", 4},
      {"F32", 4},         {"I64", 8}, {"U64", 8}, {"F64", 8},     {"C64", 8}};
  const auto found = sizes.find(dtype);
  return found == sizes.end() ? 0 : found->second;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  std::unique_ptr<SafetensorsFile> result(new SafetensorsFile);
  ASSIGN_OR_RETURN(result->file_, MappedFile::Open(path));
  const MappedFile& file = *result->file_;
  if (file.size() < 8)
    return Error(ExitCode::kData, "safetensors ", path, ": ", file.size(),
                 " bytes are too few for a header; is the file whole?");
  uint64_t header_size = 0;
  for (int i = 7; i >= 0; --i) header_size = header_size << 8 | file.data()[i];
  if (header_size > kMaxHeader || header_size > file.size() - 8) {
    return Error(ExitCode::kData, "safetensors ", path, ": the header claims ", header_size, " bytes, the file has ",
                 file.size(), "; it is truncated or not a safetensors file");
  }
  const char* header_begin = reinterpret_cast<const char*>(file.data()) + 8;
  if (header_size == 0 || header_begin[0] != '{')
    return Error(ExitCode::kData, "safetensors ", path, ": the header does not begin with '{'");
  ASSIGN_OR_RETURN(const Json header, ParseHeader(path, header_begin, header_size));
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") {
      if (!value.is_object()) return Error(ExitCode::kData, "safetensors ", path, ": __metadata__ is not an object");
      for (const auto& [key, text] : value.items()) {
        if (!text.is_string())
          return Error(ExitCode::kData, "safetensors ", path, ": __metadata__ \"", key, "\" is not a string");
        result->metadata_[key] = JsonTextOr(text, "");
      }
      continue;
    }
    ASSIGN_OR_RETURN(SafetensorsEntry entry, ParseEntry(path, name, value));
    result->entries_.push_back(std::move(entry));
  }
  std::sort(result->entries_.begin(), result->entries_.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t at = 0;
  const uint64_t data_begin = 8 + header_size;
  for (SafetensorsEntry& entry : result->entries_) {
    if (entry.begin != at) {
      return Error(ExitCode::kData, "safetensors ", path, ": tensor \"", entry.name, "\" begins at byte ", entry.begin,
                   " where ", at, " was expected: a hole or an overlap");
    }
    at = entry.end;
    entry.begin += data_begin;
    entry.end += data_begin;
  }
  if (at != file.size() - data_begin) {
    return Error(ExitCode::kData, "safetensors ", path, ": the tensors take ", at, " bytes, the file has ",
                 file.size() - data_begin, "; it is truncated or damaged");
  }
  return result;
}

absl::StatusOr<SafetensorsWritten> WriteSafetensors(
    const std::string& path, const std::vector<SafetensorsEntry>& entries,
    const std::map<std::string, std::string>& metadata,
    const std::function<absl::Status(const SafetensorsEntry&, FileWriter&)>& produce) {
  nlohmann::ordered_json header;
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t at = 0;
  for (const SafetensorsEntry& entry : entries) {
    uint64_t bytes = SafetensorsElementSize(entry.dtype);
    for (int64_t extent : entry.shape) bytes *= extent;
    TRIREME_CHECK(!header.contains(entry.name), "tensor ", entry.name, " twice in ", path);
    header[entry.name] = {{"dtype", entry.dtype}, {"shape", entry.shape}, {"data_offsets", {at, at + bytes}}};
    at += bytes;
  }
  std::string text = header.is_null() ? "{}" : DumpJson(header);
  text.resize((text.size() + 7) / 8 * 8, ' ');  // Tensors begin aligned.
  ASSIGN_OR_RETURN(std::unique_ptr<FileWriter> writer, FileWriter::Create(path));
  char length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<char>(static_cast<uint64_t>(text.size()) >> (8 * i));
  RETURN_IF_ERROR(writer->Append(length, sizeof(length)));
  RETURN_IF_ERROR(writer->Append(text.data(), text.size()));
  const uint64_t data_begin = writer->size();
  uint64_t expected = data_begin;
  for (const SafetensorsEntry& entry : entries) {
    RETURN_IF_ERROR(produce(entry, *writer));
    uint64_t bytes = SafetensorsElementSize(entry.dtype);
    for (int64_t extent : entry.shape) bytes *= extent;
    expected += bytes;
    TRIREME_CHECK(writer->size() == expected, "tensor ", entry.name, " was written with the wrong size");
  }
  SafetensorsWritten written = {writer->size(), writer->digest()};
  RETURN_IF_ERROR(writer->Close());
  return written;
}

}  // namespace trireme
