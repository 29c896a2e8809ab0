#include "models/formats/gguf/gguf.h"

#include <absl/strings/match.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <type_traits>
#include <unordered_set>

#include "data/unicode/unicode.h"

namespace trireme {
namespace {

constexpr uint64_t kMaxKeys = 1 << 16;
constexpr uint64_t kMaxTensors = 1 << 20;
constexpr size_t kMaxKeyBytes = 65535;           // as the format says
constexpr size_t kMaxTensorNameBytes = 64;       // as the format says
constexpr uint64_t kMaxArrayElements = 1 << 24;  // of all arrays together: bounds what is allocated
constexpr uint64_t kMaxHeaderBytes = uint64_t{1} << 30;
constexpr uint64_t kMaxAlignment = 1 << 20;
constexpr uint32_t kMaxDimensions = 4;

// A name from the file for a message: no more than 80 bytes, none of them unprintable.
std::string Shown(const std::string& text) {
  std::string shown = "\"";
  for (const char c : text.substr(0, 80)) shown.push_back(c < ' ' || c == 0x7F ? '?' : c);
  return shown + (text.size() > 80 ? "...\"" : "\"");
}

// Walks over the part before the data. The first thing that is wrong ends the walk: later reads give zeros, and
// status() tells.
class Cursor {
 public:
  explicit Cursor(const MappedFile& file) : file_(file), limit_(std::min(file.size(), kMaxHeaderBytes)) {}

  uint64_t position() const { return position_; }
  uint64_t remaining() const { return limit_ - position_; }
  bool ok() const { return status_.ok(); }
  const absl::Status& status() const { return status_; }

  template <typename... Args>
  void Fail(const Args&... args) {
    if (ok()) status_ = Error(ExitCode::kData, "gguf ", file_.path(), ": ", args...);
  }

  bool Take(uint64_t size, const std::string& what) {
    if (!ok()) return false;
    if (size > remaining()) {
      Fail(what, " needs ", size, " bytes at byte ", position_, ", ", remaining(), " are left",
           file_.size() > limit_ ? " of what may come before the data" : "", "; the file is truncated or damaged");
      return false;
    }
    position_ += size;
    return true;
  }

  template <typename T>
  T Number(const std::string& what) {
    T value{};
    if (Take(sizeof(T), what)) std::memcpy(&value, file_.data() + position_ - sizeof(T), sizeof(T));
    return value;
  }

  std::string String(const std::string& what) {
    const auto size = Number<uint64_t>(what);
    if (!Take(size, what)) return "";
    return std::string(reinterpret_cast<const char*>(file_.data()) + position_ - size, size);
  }

 private:
  const MappedFile& file_;
  const uint64_t limit_;
  uint64_t position_ = 0;
  absl::Status status_;
};

void CheckName(Cursor* cursor, const std::string& what, const std::string& name, size_t max_bytes) {
  if (name.empty() || name.size() > max_bytes)
    cursor->Fail(what, " has a name of ", name.size(), " bytes; 1 to ", max_bytes, " are allowed");
  if (!IsValidUtf8(name)) cursor->Fail(what, " has a name that is not UTF-8");
}

template <typename T>
T ReadScalar(Cursor* cursor, const std::string& what) {
  if constexpr (std::is_same_v<T, std::string>) {
    return cursor->String(what);
  } else if constexpr (std::is_same_v<T, bool>) {
    const auto byte = cursor->Number<uint8_t>(what);
    if (byte > 1) cursor->Fail(what, " is a bool of value ", byte, "; it must be 0 or 1");
    return byte == 1;
  } else {
    return cursor->Number<T>(what);
  }
}

// Makes the alternative of a variant that stands at `type`.
template <typename Variant, typename Make, size_t index = 0>
bool MakeAlternative(uint32_t type, const Make& make, Variant* result) {
  if constexpr (index < std::variant_size_v<Variant>) {
    if (type == index) {
      make(&result->template emplace<index>());
      return true;
    }
    return MakeAlternative<Variant, Make, index + 1>(type, make, result);
  } else {
    return false;
  }
}

GgufArray ReadArray(Cursor* cursor, const std::string& what, uint64_t* elements_left) {
  GgufArray result;
  const auto type = cursor->Number<uint32_t>(what);
  const auto count = cursor->Number<uint64_t>(what);
  if (cursor->ok() && count > *elements_left) {
    cursor->Fail(what, " has ", count, " elements; at most ", kMaxArrayElements, " are taken from a file");
  }
  if (!cursor->ok()) return result;
  *elements_left -= count;
  const auto make = [&]<typename Elements>(Elements* elements) {
    if constexpr (std::is_same_v<Elements, std::monostate>) {
      cursor->Fail(what, " is an array of arrays, which is not supported (nor is it by llama.cpp); remove the key");
    } else {
      using Element = typename Elements::value_type;
      const uint64_t least = std::is_same_v<Element, std::string> ? 8 : sizeof(Element);
      if (count > cursor->remaining() / least) {
        cursor->Fail(what, " claims ", count, " elements, ", cursor->remaining(),
                     " bytes are left; the file is truncated or damaged");
        return;
      }
      elements->reserve(count);
      for (uint64_t i = 0; i < count && cursor->ok(); ++i) elements->push_back(ReadScalar<Element>(cursor, what));
    }
  };
  if (!MakeAlternative(type, make, &result)) cursor->Fail(what, " is an array of unknown type ", type);
  return result;
}

GgufValue ReadValue(Cursor* cursor, const std::string& what, uint64_t* elements_left) {
  GgufValue result;
  const auto type = cursor->Number<uint32_t>(what);
  if (!cursor->ok()) return result;
  const auto make = [&]<typename Value>(Value* value) {
    if constexpr (std::is_same_v<Value, GgufArray>) {
      *value = ReadArray(cursor, what, elements_left);
    } else {
      *value = ReadScalar<Value>(cursor, what);
    }
  };
  if (!MakeAlternative(type, make, &result)) cursor->Fail(what, " has unknown type ", type);
  return result;
}

// All but where its bytes are: `begin` is the offset from the start of the data, `end` - `begin` the size.
GgufTensor ReadTensor(Cursor* cursor, uint64_t index) {
  GgufTensor tensor;
  tensor.name = cursor->String(absl::StrCat("the name of tensor ", index));
  const std::string what = absl::StrCat("tensor ", Shown(tensor.name));
  const auto dimensions = cursor->Number<uint32_t>(what);
  if (dimensions > kMaxDimensions) cursor->Fail(what, " has ", dimensions, " dimensions; at most 4 are allowed");
  for (uint32_t i = 0; i < dimensions && cursor->ok(); ++i) {
    tensor.shape.insert(tensor.shape.begin(), cursor->Number<int64_t>(what));
    if (tensor.shape.front() < 1 && cursor->ok()) cursor->Fail(what, " has extent ", tensor.shape.front());
  }
  tensor.type = static_cast<GgufType>(cursor->Number<uint32_t>(what));
  tensor.begin = cursor->Number<uint64_t>(what);
  if (!cursor->ok()) return tensor;
  CheckName(cursor, what, tensor.name, kMaxTensorNameBytes);
  const GgufTypeInfo* info = FindGgufType(tensor.type);
  if (info == nullptr) {
    cursor->Fail(what, " has unknown type ", static_cast<uint32_t>(tensor.type),
                 "; the file may come from a newer llama.cpp: requantize it to Q8_0 or F16");
    return tensor;
  }
  uint64_t elements = 1;
  for (const int64_t extent : tensor.shape) {
    // At most 8 bytes an element: what passes here cannot overflow below.
    if (__builtin_mul_overflow(elements, static_cast<uint64_t>(extent), &elements) || elements > uint64_t{1} << 60) {
      cursor->Fail(what, " has a shape that overflows");
      return tensor;
    }
  }
  if (tensor.columns() % info->block_elements != 0) {
    cursor->Fail(what, " has rows of ", tensor.columns(), " elements, which are not whole blocks of ", info->name, " (",
                 info->block_elements, ")");
    return tensor;
  }
  const uint64_t size = elements / info->block_elements * info->block_bytes;
  if (tensor.begin > uint64_t{1} << 62) cursor->Fail(what, " begins at byte ", tensor.begin, " of the data");
  tensor.end = tensor.begin + size;
  return tensor;
}

}  // namespace

int64_t GgufTensor::rows() const {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  return rows;
}

int64_t GgufTensor::columns() const { return shape.empty() ? 1 : shape.back(); }

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path) {
  ASSIGN_OR_RETURN(const std::shared_ptr<MappedFile> mapped, MappedFile::Open(path));
  const MappedFile& file = *mapped;
  if (file.size() < 24 || std::memcmp(file.data(), "GGUF", 4) != 0)
    return Error(ExitCode::kData, "gguf ", path, ": does not begin as a GGUF file; is it one, and whole?");
  Cursor cursor(file);
  cursor.Number<uint32_t>("the magic");
  const auto version = cursor.Number<uint32_t>("the version");
  if (version != 2 && version != 3) {
    return Error(ExitCode::kData, "gguf ", path, ": version ", version,
                 version << 16 == 0 ? " (a big-endian file)" : "",
                 " is not read (2 and 3 are); convert the model again with a current llama.cpp");
  }
  const auto num_tensors = cursor.Number<uint64_t>("the number of tensors");
  const auto num_keys = cursor.Number<uint64_t>("the number of keys");
  // 13 and 24 bytes are the least a key and a tensor take.
  if (num_keys > kMaxKeys || num_keys > cursor.remaining() / 13)
    cursor.Fail("claims ", num_keys, " keys in ", file.size(), " bytes; it is truncated or damaged");
  if (num_tensors > kMaxTensors || num_tensors > cursor.remaining() / 24)
    cursor.Fail("claims ", num_tensors, " tensors in ", file.size(), " bytes; it is truncated or damaged");

  GgufMetadata metadata;
  std::vector<GgufTensor> tensors;
  std::unordered_set<std::string> keys, names;
  uint64_t elements_left = kMaxArrayElements;
  for (uint64_t i = 0; i < num_keys && cursor.ok(); ++i) {
    std::string key = cursor.String(absl::StrCat("the name of key ", i));
    const std::string what = absl::StrCat("key ", Shown(key));
    if (cursor.ok()) CheckName(&cursor, absl::StrCat("key ", i), key, kMaxKeyBytes);
    if (key.rfind("GGUF.", 0) == 0) cursor.Fail(what, " begins as the gguf package names the header's own fields");
    GgufValue value = ReadValue(&cursor, what, &elements_left);
    if (!cursor.ok()) break;
    if (!keys.insert(key).second) cursor.Fail(what, " stands twice");
    metadata.emplace_back(std::move(key), std::move(value));
  }
  for (uint64_t i = 0; i < num_tensors && cursor.ok(); ++i) {
    GgufTensor tensor = ReadTensor(&cursor, i);
    if (!cursor.ok()) break;
    if (!names.insert(tensor.name).second) cursor.Fail("tensor ", Shown(tensor.name), " stands twice");
    tensors.push_back(std::move(tensor));
  }
  RETURN_IF_ERROR(cursor.status());

  uint64_t alignment = 32;
  for (const auto& [key, value] : metadata) {
    if (key != "general.alignment") continue;
    const uint32_t* number = std::get_if<uint32_t>(&value);
    if (number == nullptr || !std::has_single_bit(*number) || *number > kMaxAlignment)
      return Error(ExitCode::kData, "gguf ", path, ": general.alignment is not a u32 power of two up to ",
                   kMaxAlignment);
    alignment = *number;
  }
  const auto pad = [alignment](uint64_t size) { return (size + alignment - 1) / alignment * alignment; };
  const uint64_t data_begin = pad(cursor.position());
  uint64_t at = data_begin;
  for (GgufTensor& tensor : tensors) {
    if (tensor.begin != at - data_begin) {
      return Error(ExitCode::kData, "gguf ", path, ": tensor ", Shown(tensor.name), " begins at byte ", tensor.begin,
                   " of the data where ", at - data_begin, " was expected: a hole, an overlap or a wrong alignment");
    }
    if (tensor.end > file.size() || tensor.end + data_begin > file.size()) {
      return Error(ExitCode::kData, "gguf ", path, ": tensor ", Shown(tensor.name), " ends at byte ",
                   tensor.end + data_begin, ", the file has ", file.size(), "; it is truncated: fetch it again");
    }
    tensor.begin += data_begin;
    tensor.end += data_begin;
    at = pad(tensor.end);
  }
  if (file.size() > at) {
    return Error(ExitCode::kData, "gguf ", path, ": ", file.size() - at,
                 " bytes follow the last tensor; it is damaged");
  }
  return std::unique_ptr<GgufFile>(
      new GgufFile(mapped, version, GgufHeader(path, std::move(metadata), std::move(tensors))));
}

GgufHeader::GgufHeader(std::string origin, GgufMetadata metadata, std::vector<GgufTensor> tensors)
    : origin_(std::move(origin)), metadata_(std::move(metadata)), tensors_(std::move(tensors)) {
  for (size_t i = 0; i < metadata_.size(); ++i) key_index_.emplace(metadata_[i].first, i);
  for (size_t i = 0; i < tensors_.size(); ++i) tensor_index_.emplace(tensors_[i].name, i);
}

const GgufValue* GgufHeader::Find(const std::string& key) const {
  const auto found = key_index_.find(key);
  return found == key_index_.end() ? nullptr : &metadata_[found->second].second;
}

const GgufTensor* GgufHeader::FindTensor(const std::string& name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

namespace {

absl::Status Absent(const GgufHeader& file, const std::string& key) {
  return Error(ExitCode::kData, "gguf ", file.origin(), ": has no ", key, "; convert the model again");
}

absl::Status WrongKind(const GgufHeader& file, const std::string& key, const char* wanted) {
  return Error(ExitCode::kData, "gguf ", file.origin(), ": ", key, " is not ", wanted);
}

}  // namespace

absl::StatusOr<int64_t> GgufHeader::Integer(const std::string& key, std::optional<int64_t> if_absent) const {
  const GgufValue* value = Find(key);
  if (value == nullptr && if_absent.has_value()) return *if_absent;
  if (value == nullptr) return Absent(*this, key);
  return std::visit(
      [&]<typename T>(const T& number) -> absl::StatusOr<int64_t> {
        if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) {
          if (std::in_range<int64_t>(number)) return static_cast<int64_t>(number);
        }
        return WrongKind(*this, key, "a whole number");
      },
      *value);
}

absl::StatusOr<double> GgufHeader::Number(const std::string& key, std::optional<double> if_absent) const {
  const GgufValue* value = Find(key);
  if (value == nullptr && if_absent.has_value()) return *if_absent;
  if (value == nullptr) return Absent(*this, key);
  return std::visit(
      [&]<typename T>(const T& number) -> absl::StatusOr<double> {
        if constexpr (std::is_arithmetic_v<T> && !std::is_same_v<T, bool>) {
          return static_cast<double>(number);
        } else {
          return WrongKind(*this, key, "a number");
        }
      },
      *value);
}

absl::StatusOr<std::string> GgufHeader::String(const std::string& key, std::optional<std::string> if_absent) const {
  const GgufValue* value = Find(key);
  if (value == nullptr && if_absent.has_value()) return *if_absent;
  if (value == nullptr) return Absent(*this, key);
  if (!std::holds_alternative<std::string>(*value)) return WrongKind(*this, key, "a string");
  return std::get<std::string>(*value);
}

absl::Status GgufFile::Read(const GgufTensor& tensor, int64_t row_begin, int64_t row_end, int64_t column_begin,
                            int64_t column_end, float* out) const {
  TRIREME_CHECK(0 <= row_begin && row_begin <= row_end && row_end <= tensor.rows() && 0 <= column_begin &&
                    column_begin <= column_end && column_end <= tensor.columns(),
                tensor.name, " rows ", row_begin, " to ", row_end, ", columns ", column_begin, " to ", column_end);
  const int64_t row_bytes = GgufRowBytes(tensor.type, tensor.columns());
  for (int64_t row = row_begin; row < row_end; ++row) {
    const absl::Status status =
        GgufDequantize(tensor.type, data(tensor) + row * row_bytes, column_begin, column_end, out);
    if (!status.ok()) return Annotate(status, absl::StrCat(path(), ", tensor ", tensor.name));
    out += column_end - column_begin;
  }
  return absl::OkStatus();
}

bool NamesGguf(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) return false;
  if (absl::EndsWith(path, ".gguf")) return true;
  char magic[4] = {};
  return std::filesystem::is_regular_file(path, error) && std::ifstream(path).read(magic, sizeof(magic)) &&
         std::memcmp(magic, "GGUF", sizeof(magic)) == 0;
}

}  // namespace trireme
