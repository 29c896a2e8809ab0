#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <absl/strings/match.h>
#include <absl/strings/numbers.h>
#include <absl/strings/strip.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "kernels/matrix/nf4.h"
#include "launch/base/log.h"
#include "models/formats/hf/bitsandbytes.h"
#include "models/formats/hf/hf_directory.h"
#include "models/formats/hf/packed.h"
#include "models/spec/parameters.h"
#include "models/weights/tensor_mismatch.h"
#include "models/weights/weight_source.h"

namespace trireme {
namespace {

absl::StatusOr<at::ScalarType> PlainDtype(const SafetensorsEntry& entry) {
  const std::optional<at::ScalarType> dtype = FloatTypeOf(entry.dtype);
  if (dtype.has_value()) return *dtype;
  return Error(ExitCode::kData, "\"", entry.name, "\" is stored as ", entry.dtype,
               "; F32, BF16 and F16 weights can be read");
}

at::ScalarType DtypeOf(ValueType type) {
  return type == ValueType::kBfloat16 ? at::kBFloat16 : type == ValueType::kFloat16 ? at::kHalf : at::kFloat;
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

// A directory whose tensors are the table's.
struct Opened {
  HfDirectory directory;
  WeightTable table;
  BnbTensors bnb;
  PackedTensors packed;
  std::vector<HfDirectory::Tensor> tensors;  // as table.stored; of quantized matrices: their codes
};

bool IsTied(const WeightTable& table) {
  return std::none_of(table.stored.begin(), table.stored.end(),
                      [&](const WeightTable::Stored& stored) { return stored.name == table.head; });
}

// The table, or the one of another layout of the family that the directory has.
WeightTable LayoutOf(const HfDirectory& directory, const WeightTable& table, const DecoderSpec& spec) {
  const auto lacks = [&](const WeightTable& candidate) {
    const NamedTensors named(directory, candidate);
    return std::count_if(candidate.stored.begin(), candidate.stored.end(),
                         [&](const WeightTable::Stored& stored) { return named.Find(stored.name) == nullptr; });
  };
  const WeightTable* best = &table;
  auto fewest = lacks(table);
  std::vector<WeightTable> others;
  if (spec.names != nullptr && fewest > 0) {
    for (const std::vector<WeightRule>& before : spec.names->also) {
      WeightNames names = *spec.names;
      names.rules.insert(names.rules.begin(), before.begin(), before.end());
      others.push_back(MakeWeightTable(spec, names));
    }
  }
  for (const WeightTable& other : others) {
    if (const auto missing = lacks(other); missing < fewest) {
      best = &other;
      fewest = missing;
    }
  }
  return *best;
}

// Whether a tensor is of a layer behind the last, which files of some families have for predicting further tokens.
bool IsOfFurtherLayer(const DecoderSpec& spec, const std::string& name) {
  absl::string_view rest = name;
  int64_t layer = 0;
  return spec.names != nullptr && spec.names->further_layers && absl::ConsumePrefix(&rest, "model.layers.") &&
         absl::SimpleAtoi(rest.substr(0, rest.find('.')), &layer) && layer >= spec.num_layers;
}

// Finds every stored tensor, or says what is wrong.
absl::Status FindTensors(const DecoderSpec& spec, Opened* opened) {
  const HfDirectory& directory = opened->directory;
  const NamedTensors named(directory, opened->table);
  const std::vector<ParameterSpec> parameters = DecoderParameters(spec);
  TensorMismatch mismatch;
  const bool tied = IsTied(opened->table);
  std::set<std::string> expected = opened->bnb.parts;
  expected.insert(opened->packed.parts.begin(), opened->packed.parts.end());
  for (const WeightTable::Stored& stored : opened->table.stored) {
    const HfDirectory::Tensor* tensor = named.Find(stored.name);
    // A tied matrix may stand under either of its names.
    if (tensor == nullptr && stored.name == opened->table.embedding && tied) tensor = named.Find(opened->table.head);
    if (tensor == nullptr) {
      mismatch.missing.push_back(stored.name);
      continue;
    }
    opened->tensors.push_back(*tensor);
    expected.insert(tensor->entry->name);
    const auto quantized = opened->bnb.matrices.find(tensor->entry->name);
    const bool should_be = parameters[stored.runs[0].parameter].quantized;
    if (quantized == opened->bnb.matrices.end()) {
      // A directory of plain matrices is quantized while it is read, a mixture is not.
      if (should_be && !opened->bnb.matrices.empty())
        return Error(ExitCode::kData, "model ", directory.folder(), ": ", stored.name,
                     " is not quantized though others are and its config.json does not say so");
      const auto packed = opened->packed.matrices.find(tensor->entry->name);
      const bool plain = packed == opened->packed.matrices.end();
      mismatch.CheckShape(stored.name, plain ? tensor->entry->shape : packed->second.shape, stored.label);
      continue;
    }
    const QuantizationFormat& format = quantized->second.format;
    if (!should_be || !(format == *spec.quantization))
      return Error(ExitCode::kData, "model ", directory.folder(), ": ", stored.name, " is stored as ", NameOf(format),
                   ", which its config.json does not say");
    mismatch.CheckShape(stored.name, quantized->second.shape, stored.label);
  }
  const std::vector<std::string>& ignored = opened->table.ignored;
  for (const auto& [name, tensor] : directory.tensors()) {
    const auto ends = [&name = name](const std::string& ending) { return absl::EndsWith(name, ending); };
    if (expected.count(name) > 0 || IsOfFurtherLayer(spec, name) || std::any_of(ignored.begin(), ignored.end(), ends))
      continue;
    // The head of a tied model is allowed here; CheckTiedHead compares it with the embedding.
    if (!named.Names(opened->table.head, name)) mismatch.unexpected.push_back(name);
  }
  if (mismatch.empty()) return absl::OkStatus();
  return Error(ExitCode::kData, "model ", directory.folder(),
               ": its tensors are not those that its config.json needs:", mismatch.ToString());
}

// A tied model's head is its embedding: a copy in the file is fine, another matrix would be lost.
absl::Status CheckTiedHead(const HfDirectory& directory, const WeightTable& table, const std::function<void()>& alive) {
  if (!IsTied(table)) return absl::OkStatus();
  const NamedTensors named(directory, table);
  const HfDirectory::Tensor *head = named.Find(table.head), *embedding = named.Find(table.embedding);
  if (head == nullptr || embedding == nullptr) return absl::OkStatus();
  const SafetensorsEntry &a = *head->entry, &b = *embedding->entry;
  bool same = a.shape == b.shape && a.dtype == b.dtype;
  for (uint64_t at = 0, bytes = a.end - a.begin; same && at < bytes; at += kPieceBytes) {
    same = std::memcmp(head->data() + at, embedding->data() + at, std::min<uint64_t>(kPieceBytes, bytes - at)) == 0;
    if (alive) alive();
  }
  if (!same) {
    return Error(ExitCode::kData, "model ", directory.folder(), ": config.json ties the head to the embedding, but ",
                 a.name, " differs from ", b.name, "; set tie_word_embeddings to false in a copy of config.json");
  }
  Info("model ", directory.folder(), ": ", a.name, " repeats ", b.name, " of this tied model and is left alone");
  return absl::OkStatus();
}

// Rows [row, row + rows) x columns [column, column + columns) of a tensor of that shape (a vector has one column): a
// view of the mapped file where elements are aligned, else a copy of them. Headers of any length are legal.
at::Tensor View(const HfDirectory::Tensor& tensor, const std::vector<int64_t>& shape, at::ScalarType dtype, int64_t row,
                int64_t rows, int64_t column, int64_t columns) {
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

// Only these elements of the mapped files are touched.
void Read(const Opened& opened, size_t parameter, at::ScalarType dtype, const Rectangle& r, const at::Tensor& out) {
  const WeightTable::Parameter& p = opened.table.parameters[parameter];
  const int64_t begin = r.offset[0], end = begin + r.size[0];
  const int64_t column = r.offset.size() == 2 ? r.offset[1] : 0, columns = r.size.size() == 2 ? r.size[1] : 1;
  const HfDirectory::Tensor& first_of = opened.tensors[p.runs.front().stored];
  if (const auto found = opened.bnb.matrices.find(first_of.entry->name); found != opened.bnb.matrices.end()) {
    out.copy_(DequantizeRows(found->second, begin, end).narrow(1, column, columns));
    return;
  }
  for (const RowRun& run : p.runs) {
    const int64_t first = std::max(begin, run.row), last = std::min(end, run.row + run.rows);
    if (first >= last) continue;
    const int64_t stored = run.stored_row + first - run.row, rows = last - first;
    const WeightTable::Stored& layout = opened.table.stored[run.stored];
    const HfDirectory::Tensor& tensor = opened.tensors[run.stored];
    if (const auto found = opened.packed.matrices.find(tensor.entry->name); found != opened.packed.matrices.end()) {
      const at::Tensor numbers = at::empty({rows, columns}, at::TensorOptions().dtype(at::kFloat));
      Unpack(found->second, stored, rows, column, columns, numbers.mutable_data_ptr<float>());
      out.narrow(0, first - begin, rows).copy_(numbers);
      continue;
    }
    if (!layout.transposed) {
      out.narrow(0, first - begin, rows).copy_(View(tensor, layout.shape, dtype, stored, rows, column, columns));
      continue;
    }
    // Our rows are columns of the matrices in the tensor, of one after the other.
    const int64_t ours = layout.shape[1], theirs = layout.shape[0] / layout.pieces;
    for (int64_t done = 0; done < rows;) {
      const int64_t matrix = (stored + done) / ours, at = (stored + done) % ours,
                    size = std::min(rows - done, ours - at);
      out.narrow(0, first - begin + done, size)
          .copy_(View(tensor, layout.shape, dtype, matrix * theirs + column, columns, at, size).t());
      done += size;
    }
  }
}

}  // namespace

absl::StatusOr<WeightSource> OpenHfWeights(const std::string& folder, const WeightTable& table, const DecoderSpec& spec,
                                           bool compare_head, const std::function<void()>& alive) {
  ASSIGN_OR_RETURN(HfDirectory directory, HfDirectory::Open(folder));
  ASSIGN_OR_RETURN(BnbTensors bnb, ReadBnbTensors(directory));
  ASSIGN_OR_RETURN(PackedTensors packed, ReadPackedTensors(directory));
  WeightTable layout = LayoutOf(directory, table, spec);
  const auto opened = std::make_shared<Opened>(
      Opened{std::move(directory), std::move(layout), std::move(bnb), std::move(packed), /*tensors=*/{}});
  RETURN_IF_ERROR(FindTensors(spec, opened.get()));
  if (compare_head) RETURN_IF_ERROR(CheckTiedHead(opened->directory, opened->table, alive));
  WeightSource source;
  source.description = absl::StrCat("model ", folder);
  auto index = std::make_shared<std::map<std::string, size_t>>();
  for (const WeightTable::Parameter& parameter : opened->table.parameters) {
    const SafetensorsEntry& entry = *opened->tensors[parameter.runs.front().stored].entry;
    for (const RowRun& run : parameter.runs) {
      const SafetensorsEntry& other = *opened->tensors[run.stored].entry;
      if (other.dtype == entry.dtype) continue;
      return Error(ExitCode::kData, source.description, ": ", other.name, " is stored as ", other.dtype, ", ",
                   entry.name, " as ", entry.dtype, "; they are one parameter, so convert one of them");
    }
    const auto quantized = opened->bnb.matrices.find(entry.name);
    const bool plain = quantized == opened->bnb.matrices.end();
    const auto packed_matrix = opened->packed.matrices.find(entry.name);
    const bool unpacked = packed_matrix != opened->packed.matrices.end();
    const bool fp8 = unpacked && packed_matrix->second.kind == PackedMatrix::kFp8;
    const absl::StatusOr<at::ScalarType> dtype = unpacked ? (fp8 ? at::kFloat : at::kBFloat16)
                                                 : plain  ? PlainDtype(entry)
                                                          : DtypeOf(quantized->second.type);
    if (!dtype.ok()) return Annotate(dtype.status(), source.description);
    if (!plain) source.quantized[parameter.name] = quantized->second;
    index->emplace(parameter.name, source.tensors.size());
    source.tensors.push_back({parameter.name, parameter.shape, *dtype});
    if (fp8) source.tensors.back().narrow = at::kBFloat16;
  }
  source.read = [opened, index](const SourceTensor& tensor, const Rectangle& rectangle, const at::Tensor& out) {
    Read(*opened, index->at(tensor.name), tensor.dtype, rectangle, out);
    return absl::OkStatus();
  };
  return source;
}

}  // namespace trireme
