#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <absl/strings/match.h>
#include <absl/strings/str_join.h>
#include <absl/strings/strip.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "launch/log.h"
#include "models/formats/hf_directory.h"
#include "trainer/weight_source.h"

namespace trireme {
namespace {

constexpr size_t kListed = 12;

std::string List(const std::vector<std::string>& names) {
  const size_t shown = std::min(names.size(), kListed);
  return absl::StrCat(absl::StrJoin(names.begin(), names.begin() + shown, ", "),
                      names.size() > shown ? absl::StrCat(" and ", names.size() - shown, " more") : "");
}

std::string ShapeText(const std::vector<int64_t>& shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

absl::StatusOr<at::ScalarType> DtypeOf(const SafetensorsEntry& entry) {
  if (entry.dtype == "F32") return at::kFloat;
  if (entry.dtype == "BF16") return at::kBFloat16;
  if (entry.dtype == "F16") return at::kHalf;
  return Error(ExitCode::kData, "\"", entry.name, "\" is stored as ", entry.dtype,
               "; F32, BF16 and F16 weights can be read");
}

// A directory's tensors by the table's names.
class NamedTensors {
 public:
  NamedTensors(const HfDirectory& directory, const WeightTable& table) : directory_(directory), table_(table) {}

  // Null: there is none.
  const HfDirectory::Tensor* Find(const std::string& stored) const {
    const auto& tensors = directory_.tensors();
    auto found = tensors.find(stored);
    if (found == tensors.end()) found = tensors.find(std::string(absl::StripPrefix(stored, table_.optional_prefix)));
    return found == tensors.end() ? nullptr : &found->second;
  }

  // The table's name of a tensor, which may lack the prefix.
  bool Names(const std::string& stored, const std::string& in_directory) const {
    return in_directory == stored || in_directory == absl::StripPrefix(stored, table_.optional_prefix);
  }

 private:
  const HfDirectory& directory_;
  const WeightTable& table_;
};

// Every stored tensor in the table's order, or what is wrong.
absl::StatusOr<std::vector<HfDirectory::Tensor>> FindTensors(const HfDirectory& directory, const WeightTable& table) {
  const NamedTensors named(directory, table);
  std::vector<HfDirectory::Tensor> tensors;
  std::vector<std::string> missing, unexpected, wrong;
  std::set<std::string> expected;
  for (const WeightTable::Stored& stored : table.stored) {
    const HfDirectory::Tensor* tensor = named.Find(stored.name);
    if (tensor == nullptr) {
      missing.push_back(stored.name);
      continue;
    }
    expected.insert(tensor->entry->name);
    if (tensor->entry->shape != stored.shape)
      wrong.push_back(
          absl::StrCat(stored.name, " ", ShapeText(tensor->entry->shape), " instead of ", ShapeText(stored.shape)));
    tensors.push_back(*tensor);
  }
  for (const auto& [name, tensor] : directory.tensors()) {
    const auto ends = [&name = name](const std::string& ending) { return absl::EndsWith(name, ending); };
    if (expected.count(name) > 0 || std::any_of(table.ignored.begin(), table.ignored.end(), ends)) continue;
    // That of a tied model; CheckTiedHead knows more.
    if (!named.Names(table.head, name)) unexpected.push_back(name);
  }
  if (missing.empty() && unexpected.empty() && wrong.empty()) return tensors;
  std::string text;
  const auto say = [&](const char* what, const std::vector<std::string>& names) {
    if (!names.empty()) absl::StrAppend(&text, "\n  ", names.size(), " ", what, ": ", List(names));
  };
  say("missing", missing);
  say("unexpected", unexpected);
  say("of another shape", wrong);
  return Error(ExitCode::kData, "model ", directory.folder(),
               ": its tensors are not those that its config.json needs:", text);
}

// A tied model's head is its embedding: a copy in the file is fine, another matrix would be lost.
absl::Status CheckTiedHead(const HfDirectory& directory, const WeightTable& table) {
  for (const WeightTable::Stored& stored : table.stored) {
    if (stored.name == table.head) return absl::OkStatus();  // untied
  }
  const NamedTensors named(directory, table);
  const HfDirectory::Tensor *head = named.Find(table.head), *embedding = named.Find(table.embedding);
  if (head == nullptr || embedding == nullptr) return absl::OkStatus();
  const SafetensorsEntry &a = *head->entry, &b = *embedding->entry;
  if (a.shape != b.shape || a.dtype != b.dtype || std::memcmp(head->data(), embedding->data(), a.end - a.begin) != 0) {
    return Error(ExitCode::kData, "model ", directory.folder(), ": config.json ties the head to the embedding, but ",
                 a.name, " differs from ", b.name, "; set tie_word_embeddings to false in a copy of config.json");
  }
  Info("model ", directory.folder(), ": ", a.name, " repeats ", b.name, " of this tied model and is left alone");
  return absl::OkStatus();
}

// Rows [row, row + rows) x columns [column, column + columns) of a stored tensor (a vector has one column): a view of
// the mapped file where elements are aligned, else a copy of them. Headers of any length are legal.
at::Tensor View(const HfDirectory::Tensor& tensor, at::ScalarType dtype, int64_t row, int64_t rows, int64_t column,
                int64_t columns) {
  const std::vector<int64_t>& shape = tensor.entry->shape;
  const int64_t stride = shape.size() == 2 ? shape[1] : 1;
  const auto element_size = static_cast<int64_t>(at::elementSize(dtype));
  const uint8_t* begin = tensor.data() + (row * stride + column) * element_size;
  const at::TensorOptions options = at::TensorOptions().dtype(dtype);
  if (reinterpret_cast<uintptr_t>(begin) % element_size == 0)
    return at::from_blob(const_cast<uint8_t*>(begin), {rows, columns}, {stride, 1}, options);
  at::Tensor copy = at::empty({rows, columns}, options);
  const bool whole = columns == stride;
  const int64_t lines = whole ? 1 : rows, line_bytes = (whole ? rows : 1) * columns * element_size;
  for (int64_t i = 0; i < lines; ++i)
    std::memcpy(static_cast<uint8_t*>(copy.mutable_data_ptr()) + i * line_bytes, begin + i * stride * element_size,
                line_bytes);
  return copy;
}

struct Opened {
  HfDirectory directory;
  WeightTable table;
  std::vector<HfDirectory::Tensor> tensors;  // as table.stored
};

// Only these elements of the mapped files are touched.
void Read(const Opened& opened, size_t parameter, at::ScalarType dtype, const Rectangle& r, const at::Tensor& out) {
  const WeightTable::Parameter& p = opened.table.parameters[parameter];
  const HfDirectory::Tensor& tensor = opened.tensors[p.stored];
  const int64_t begin = r.offset[0], end = begin + r.size[0];
  const int64_t column = r.offset.size() == 2 ? r.offset[1] : 0, columns = r.size.size() == 2 ? r.size[1] : 1;
  for (const RowRun& run : p.runs) {
    const int64_t first = std::max(begin, run.row), last = std::min(end, run.row + run.rows);
    if (first >= last) continue;
    const int64_t stored = run.stored_row + first - run.row, rows = last - first;
    const at::Tensor from = opened.table.stored[p.stored].transposed
                                ? View(tensor, dtype, column, columns, stored, rows).t()
                                : View(tensor, dtype, stored, rows, column, columns);
    out.narrow(0, first - begin, rows).copy_(from);
  }
}

}  // namespace

absl::StatusOr<WeightSource> OpenHfWeights(const std::string& folder, const WeightTable& table, bool compare_head) {
  ASSIGN_OR_RETURN(HfDirectory directory, HfDirectory::Open(folder));
  ASSIGN_OR_RETURN(std::vector<HfDirectory::Tensor> tensors, FindTensors(directory, table));
  if (compare_head) RETURN_IF_ERROR(CheckTiedHead(directory, table));
  const auto opened = std::make_shared<const Opened>(Opened{std::move(directory), table, std::move(tensors)});
  WeightSource source;
  source.description = absl::StrCat("model ", folder);
  auto index = std::make_shared<std::map<std::string, size_t>>();
  for (const WeightTable::Parameter& parameter : table.parameters) {
    const absl::StatusOr<at::ScalarType> dtype = DtypeOf(*opened->tensors[parameter.stored].entry);
    if (!dtype.ok()) return Annotate(dtype.status(), source.description);
    index->emplace(parameter.name, source.tensors.size());
    source.tensors.push_back({parameter.name, parameter.shape, *dtype});
  }
  source.read = [opened, index](const SourceTensor& tensor, const Rectangle& rectangle, const at::Tensor& out) {
    Read(*opened, index->at(tensor.name), tensor.dtype, rectangle, out);
    return absl::OkStatus();
  };
  return source;
}

}  // namespace trireme
