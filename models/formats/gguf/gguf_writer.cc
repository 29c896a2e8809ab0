#include "models/formats/gguf/gguf_writer.h"

#include <algorithm>
#include <set>
#include <type_traits>

namespace trireme {
namespace {

constexpr uint64_t kAlignment = 32;
constexpr size_t kMaxNameBytes = 63;
constexpr int64_t kValuesAtOnce = 1 << 16;

uint64_t Padded(uint64_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

template <typename T>
void Put(const T& value, std::string* out) {
  if constexpr (std::is_same_v<T, std::string>) {
    Put<uint64_t>(value.size(), out);
    out->append(value);
  } else if constexpr (std::is_same_v<T, bool>) {
    out->push_back(value ? 1 : 0);
  } else {
    out->append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
}

void PutArray(const GgufArray& array, std::string* out) {
  Put(static_cast<uint32_t>(array.index()), out);
  std::visit(
      [out]<typename Elements>(const Elements& elements) {
        if constexpr (std::is_same_v<Elements, std::monostate>) {
          TRIREME_CHECK(false, "an array of arrays");
        } else {
          Put<uint64_t>(elements.size(), out);
          for (const typename Elements::value_type& element : elements) Put(element, out);
        }
      },
      array);
}

std::string Header(const GgufMetadata& metadata, const std::vector<GgufTensor>& tensors) {
  std::string out = "GGUF";
  Put<uint32_t>(3, &out);
  Put<uint64_t>(tensors.size(), &out);
  Put<uint64_t>(metadata.size(), &out);
  std::set<std::string> names;
  for (const auto& [key, value] : metadata) {
    TRIREME_CHECK(!key.empty() && key != "general.alignment" && names.insert(key).second, "key ", key);
    Put(key, &out);
    Put(static_cast<uint32_t>(value.index()), &out);
    std::visit(
        [&out]<typename T>(const T& v) {
          if constexpr (std::is_same_v<T, GgufArray>) {
            PutArray(v, &out);
          } else {
            Put(v, &out);
          }
        },
        value);
  }
  names.clear();
  for (const GgufTensor& tensor : tensors) {
    TRIREME_CHECK(!tensor.name.empty() && tensor.name.size() <= kMaxNameBytes && names.insert(tensor.name).second,
                  "tensor name ", tensor.name);
    Put(tensor.name, &out);
    Put(static_cast<uint32_t>(tensor.shape.size()), &out);
    for (size_t i = tensor.shape.size(); i > 0; --i) Put(tensor.shape[i - 1], &out);
    Put(static_cast<uint32_t>(tensor.type), &out);
    Put(tensor.begin, &out);
  }
  out.resize(Padded(out.size()));
  return out;
}

}  // namespace

absl::StatusOr<std::unique_ptr<GgufWriter>> GgufWriter::Create(const std::string& path, const GgufMetadata& metadata,
                                                               std::vector<GgufTensor> tensors) {
  uint64_t at = 0;
  for (GgufTensor& tensor : tensors) {
    TRIREME_CHECK(tensor.shape.size() <= 4 &&
                      std::all_of(tensor.shape.begin(), tensor.shape.end(), [](int64_t extent) { return extent >= 1; }),
                  "shape of ", tensor.name);
    tensor.begin = at;
    at = Padded(at + tensor.rows() * GgufRowBytes(tensor.type, tensor.columns()));
  }
  const std::string header = Header(metadata, tensors);
  for (GgufTensor& tensor : tensors) {
    tensor.begin += header.size();
    tensor.end = tensor.begin + tensor.rows() * GgufRowBytes(tensor.type, tensor.columns());
  }
  std::unique_ptr<GgufWriter> writer(new GgufWriter(path, std::move(tensors)));
  ASSIGN_OR_RETURN(writer->file_, FileWriter::Create(path + ".tmp"));
  RETURN_IF_ERROR(writer->file_->Append(header.data(), header.size()));
  return writer;
}

GgufWriter::~GgufWriter() {
  if (file_ == nullptr) return;
  file_.reset();
  RemoveAll(path_ + ".tmp").IgnoreError();
}

const GgufTensor* GgufWriter::current() const { return current_ < tensors_.size() ? &tensors_[current_] : nullptr; }

absl::Status GgufWriter::Append(const float* values, int64_t count) {
  TRIREME_CHECK(current() != nullptr && count >= 0, "nothing left to write in ", path_);
  const GgufTensor& tensor = *current();
  std::vector<uint8_t> bytes(GgufRowBytes(tensor.type, std::min(count, kValuesAtOnce)));
  for (int64_t done = 0; done < count;) {
    const int64_t now = std::min(count - done, kValuesAtOnce);
    const absl::Status status = GgufQuantize(tensor.type, values + done, now, bytes.data());
    if (!status.ok()) return Annotate(status, absl::StrCat(path_, ", tensor ", tensor.name));
    RETURN_IF_ERROR(AppendRaw(bytes.data(), GgufRowBytes(tensor.type, now)));
    done += now;
  }
  return absl::OkStatus();
}

absl::Status GgufWriter::AppendRaw(const void* data, uint64_t size) {
  TRIREME_CHECK(current() != nullptr, "nothing left to write in ", path_);
  const uint64_t end = current()->end;
  TRIREME_CHECK(size <= end - file_->size(), "too much for tensor ", current()->name);
  RETURN_IF_ERROR(file_->Append(data, size));
  if (file_->size() < end) return absl::OkStatus();
  ++current_;
  return Pad();
}

absl::Status GgufWriter::Pad() {
  const char zeros[kAlignment] = {};
  return file_->Append(zeros, Padded(file_->size()) - file_->size());
}

absl::StatusOr<GgufWritten> GgufWriter::Close() {
  TRIREME_CHECK(current() == nullptr, "tensor ", current()->name, " is not complete");
  GgufWritten written = {file_->size(), file_->digest()};
  RETURN_IF_ERROR(file_->Close());
  RETURN_IF_ERROR(RenameDurably(path_ + ".tmp", path_));
  file_.reset();
  return written;
}

}  // namespace trireme
