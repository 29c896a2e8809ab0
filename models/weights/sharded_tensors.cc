#include "models/weights/sharded_tensors.h"

#include <ATen/ops/empty.h>
#include <absl/strings/match.h>
#include <absl/strings/str_format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "launch/base/folder.h"
#include "launch/base/json.h"

namespace trireme {
namespace {

using Json = nlohmann::json;

constexpr char kShardingInfo[] = "DCP_SHARDING_INFO";
constexpr int kMaxPieces = 3;

std::vector<int64_t> ExtentOf(const Rectangle& r) {
  std::vector<int64_t> extent;
  for (size_t i = 0; i < r.size.size(); ++i) extent.push_back(r.offset[i] + r.size[i]);
  return extent;
}

bool Overlap(const Rectangle& a, const Rectangle& b) {
  for (size_t i = 0; i < a.size.size(); ++i) {
    if (a.offset[i] >= b.offset[i] + b.size[i] || b.offset[i] >= a.offset[i] + a.size[i]) return false;
  }
  return true;
}

// Copies the overlap of `source` (at `bytes`, row-major) into `target` values.
void CopyOverlap(const Rectangle& source, const uint8_t* bytes, const Rectangle& target, uint8_t* out,
                 const Rectangle& common, int element_size, const std::function<void()>& alive) {
  const bool matrix = source.size.size() == 2;
  const int64_t rows = matrix ? common.size[0] : 1;
  const size_t last = matrix ? 1 : 0;
  const int64_t row_bytes = common.size[last] * element_size;
  int64_t since = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const auto index = [&](const Rectangle& box) {
      const int64_t row = matrix ? common.offset[0] + r - box.offset[0] : 0;
      return (row * box.size[last] + common.offset[last] - box.offset[last]) * element_size;
    };
    std::memcpy(out + index(target), bytes + index(source), row_bytes);
    since += row_bytes;
    if (since < kPieceBytes) continue;
    since = 0;
    if (alive) alive();
  }
}

// {key: offsets} of a file; empty when it says nothing (plain files).
absl::StatusOr<std::map<std::string, std::vector<int64_t>>> Offsets(const SafetensorsFile& file) {
  std::map<std::string, std::vector<int64_t>> offsets;
  const auto info = file.metadata().find(kShardingInfo);
  if (info == file.metadata().end()) return offsets;
  JsonProblem problem;
  const std::optional<Json> parsed = ParseJson<Json>(info->second, {}, &problem);
  const auto bad = [&] {
    return Error(ExitCode::kCheckpoint, "checkpoint ", file.path(), ": its ", kShardingInfo, " cannot be read");
  };
  if (!parsed.has_value() || !parsed->is_object()) return bad();
  for (const auto& [key, value] : parsed->items()) {
    if (!JsonMember(value, "saved_offsets").is_array()) return bad();
    for (const Json& offset : JsonMember(value, "saved_offsets")) {
      const std::optional<uint64_t> at = JsonNatural(offset);
      if (!at.has_value() || *at > uint64_t{1} << 60) return bad();
      offsets[key].push_back(static_cast<int64_t>(*at));
    }
  }
  return offsets;
}

// The rectangles of a tensor with a number for every `block` elements of a segment.
std::vector<TensorPart> PartsOfBlocks(const ParameterBuffer& buffer, const Segment& segment, int64_t block,
                                      const at::Tensor& values) {
  const ParameterSpec& spec = buffer.specs()[segment.parameter];
  const Rectangle& held = buffer.rectangle(segment.parameter);
  const int64_t columns = spec.shape.back();
  TensorPart part;
  part.name = spec.name;
  if (spec.shape.size() < 2 || columns % block != 0) {
    const int64_t numel = spec.shape[0] * (spec.shape.size() == 2 ? columns : 1);
    part.shape = {(numel + block - 1) / block};
    part.rectangle = {{buffer.WholeIndexOf(segment).Of(0) / block}, {values.numel()}};
    part.values = values;
    return {part};
  }
  part.shape = {spec.shape[0], columns / block};
  std::vector<TensorPart> parts;
  const int64_t first = segment.parameter_begin / block;
  for (const FlatPiece& piece :
       FlatRangeToPieces({held.size[0], held.size[1] / block}, first, first + values.numel())) {
    part.rectangle = piece.rectangle;
    part.rectangle.offset[0] += held.offset[0];
    part.rectangle.offset[1] += held.offset[1] / block;
    part.values = values.narrow(0, piece.flat_begin - first, piece.rectangle.numel());
    parts.push_back(part);
  }
  return parts;
}

}  // namespace

const char* SafetensorsName(at::ScalarType dtype) {
  return dtype == at::kBFloat16 ? "BF16" : dtype == at::kHalf ? "F16" : dtype == at::kByte ? "U8" : "F32";
}

std::optional<at::ScalarType> FloatTypeOf(const std::string& safetensors_dtype) {
  if (safetensors_dtype == "F32") return at::kFloat;
  if (safetensors_dtype == "BF16") return at::kBFloat16;
  if (safetensors_dtype == "F16") return at::kHalf;
  return std::nullopt;
}

std::vector<TensorPart> PartsOfElements(const ParameterBuffer& buffer, int parameter, int64_t begin, int64_t end,
                                        const at::Tensor& values) {
  std::vector<TensorPart> parts;
  const ParameterSpec& spec = buffer.specs()[parameter];
  const Rectangle& held = buffer.rectangle(parameter);
  for (const FlatPiece& piece : FlatRangeToPieces(held.size, begin, end)) {
    TensorPart part;
    part.name = spec.name;
    part.shape = spec.shape;
    part.rectangle = piece.rectangle;
    for (size_t dim = 0; dim < held.offset.size(); ++dim) part.rectangle.offset[dim] += held.offset[dim];
    part.values = values.narrow(0, piece.flat_begin - begin, piece.rectangle.numel());
    parts.push_back(std::move(part));
  }
  return parts;
}

std::vector<TensorPart> PartsOf(const ParameterBuffer& buffer, const at::Tensor& own, const std::string& suffix,
                                bool unique) {
  std::vector<TensorPart> parts;
  if (!own.defined()) return parts;
  for (const Segment& segment : unique ? buffer.unique_segments() : buffer.segments()) {
    // Optimizers have no state of what no gradient moves.
    if (!suffix.empty() && !buffer.specs()[segment.parameter].trainable) continue;
    const int64_t first = segment.parameter_begin;
    for (TensorPart& part : PartsOfElements(buffer, segment.parameter, first, first + segment.numel,
                                            own.narrow(0, segment.own_begin, segment.numel))) {
      if (!suffix.empty()) absl::StrAppend(&part.name, ".", suffix);
      parts.push_back(std::move(part));
    }
  }
  return parts;
}

std::vector<TensorPart> PartsOfSegments(const ParameterBuffer& buffer, const at::Tensor& values,
                                        const std::vector<int64_t>& begin, int64_t block, const std::string& suffix,
                                        bool unique) {
  std::vector<TensorPart> parts;
  for (size_t i = 0; i < buffer.segments().size(); ++i) {
    if (begin[i] < 0) continue;
    const Segment& held = buffer.segments()[i];
    for (const Segment& segment : unique ? buffer.unique_segments() : buffer.segments()) {
      if (segment.parameter != held.parameter) continue;
      const int64_t at = begin[i] + (segment.own_begin - held.own_begin) / block;
      const int64_t first = segment.parameter_begin, end = first + segment.numel;
      const int64_t numel = (segment.numel + block - 1) / block;
      std::vector<TensorPart> added =
          block == 1 ? PartsOfElements(buffer, segment.parameter, first, end, values.narrow(0, at, numel))
                     : PartsOfBlocks(buffer, segment, block, values.narrow(0, at, numel));
      for (TensorPart& part : added) {
        absl::StrAppend(&part.name, ".", suffix);
        parts.push_back(std::move(part));
      }
    }
  }
  return parts;
}

absl::StatusOr<std::vector<CheckpointFile>> WriteParts(const std::string& folder, int rank,
                                                       const std::vector<TensorPart>& parts,
                                                       const std::function<void()>& alive) {
  // The k-th rectangle of each tensor goes into the k-th file.
  std::vector<std::vector<const TensorPart*>> per_file(kMaxPieces);
  std::map<std::string, int> pieces;
  for (const TensorPart& part : parts) {
    const int k = pieces[part.name]++;
    TRIREME_CHECK(k < kMaxPieces, part.name, " has more than ", kMaxPieces, " rectangles");
    per_file[k].push_back(&part);
  }
  std::vector<CheckpointFile> files;
  for (int k = 0; k < kMaxPieces; ++k) {
    if (per_file[k].empty()) continue;
    std::vector<SafetensorsEntry> entries;
    Json info = Json::object();
    for (const TensorPart* part : per_file[k]) {
      entries.push_back({part->name, SafetensorsName(part->values.scalar_type()), part->rectangle.size});
      info[part->name] = {{"saved_offsets", part->rectangle.offset}};
    }
    size_t next = 0;
    const std::string name = absl::StrFormat("shard-%05d-%d.safetensors", rank, k);
    const auto produce = [&](const SafetensorsEntry&, FileWriter& writer) -> absl::Status {
      const at::Tensor host = per_file[k][next++]->values.cpu().contiguous();
      const auto bytes = static_cast<int64_t>(host.nbytes());
      for (int64_t begin = 0; begin < bytes; begin += kPieceBytes) {
        RETURN_IF_ERROR(writer.Append(static_cast<const uint8_t*>(host.const_data_ptr()) + begin,
                                      static_cast<size_t>(std::min(kPieceBytes, bytes - begin))));
        if (alive) alive();
      }
      return absl::OkStatus();
    };
    ASSIGN_OR_RETURN(
        const SafetensorsWritten written,
        WriteSafetensors(absl::StrCat(folder, "/", name), entries,
                         {{"format", "pt"}, {"DCP_VERSION", "1.0"}, {kShardingInfo, DumpJson(info)}}, produce));
    CheckpointFile file;
    file.set_path(absl::StrCat(std::filesystem::path(folder).filename().string(), "/", name));
    file.set_bytes(static_cast<int64_t>(written.bytes));
    file.set_digest(written.digest);
    files.push_back(std::move(file));
  }
  RETURN_IF_ERROR(SyncDirectory(folder));
  return files;
}

absl::StatusOr<ShardedTensorReader> ShardedTensorReader::Open(const std::string& folder) {
  std::vector<std::string> paths;
  const absl::StatusOr<std::vector<std::string>> names = ListFolder(folder);
  for (const std::string& name : names.ok() ? *names : std::vector<std::string>()) {
    if (absl::EndsWith(name, ".safetensors")) paths.push_back(absl::StrCat(folder, "/", name));
  }
  if (paths.empty()) {
    return Error(ExitCode::kCheckpoint, "checkpoint: ", folder, " holds no safetensors files",
                 names.ok() ? "" : absl::StrCat(" (", names.status().message(), ")"));
  }
  return OpenFiles(folder, std::move(paths), nullptr);
}

absl::StatusOr<ShardedTensorReader> ShardedTensorReader::Open(const std::string& checkpoint,
                                                              const CheckpointManifest& manifest,
                                                              const std::string& part, std::function<void()> alive) {
  std::vector<std::string> paths;
  for (const CheckpointFile& file : manifest.file()) {
    if (absl::StartsWith(file.path(), part + "/")) paths.push_back(absl::StrCat(checkpoint, "/", file.path()));
  }
  const std::string folder = absl::StrCat(checkpoint, "/", part);
  if (paths.empty())
    return Error(ExitCode::kCheckpoint, "checkpoint: ", folder, " holds no files that its manifest names");
  return OpenFiles(folder, std::move(paths), std::move(alive));
}

absl::StatusOr<ShardedTensorReader> ShardedTensorReader::OpenFiles(const std::string& folder,
                                                                   std::vector<std::string> paths,
                                                                   std::function<void()> alive) {
  ShardedTensorReader reader;
  reader.folder_ = folder;
  reader.alive_ = std::move(alive);
  std::sort(paths.begin(), paths.end());
  for (const std::string& path : paths) {
    if (reader.alive_) reader.alive_();
    absl::StatusOr<std::unique_ptr<SafetensorsFile>> file = SafetensorsFile::Open(path);
    if (!file.ok()) return Error(ExitCode::kCheckpoint, "checkpoint: ", file.status().message());
    ASSIGN_OR_RETURN(const auto offsets, Offsets(**file));
    for (const SafetensorsEntry& entry : (*file)->entries()) {
      Source source = {file->get(), &entry, {std::vector<int64_t>(entry.shape.size(), 0), entry.shape}};
      const auto found = offsets.find(entry.name);
      if (found != offsets.end()) {
        if (found->second.size() != entry.shape.size())
          return Error(ExitCode::kCheckpoint, "checkpoint ", path, ": \"", entry.name,
                       "\" has offsets of another rank than its shape");
        source.rectangle.offset = found->second;
      }
      const std::vector<int64_t> extent = ExtentOf(source.rectangle);
      std::vector<int64_t>& shape = reader.shapes_[entry.name];
      if (shape.empty()) shape = extent;
      if (shape.size() != extent.size())
        return Error(ExitCode::kCheckpoint, "checkpoint ", path, ": \"", entry.name,
                     "\" has another number of dimensions than in other files");
      for (size_t i = 0; i < extent.size(); ++i) shape[i] = std::max(shape[i], extent[i]);
      reader.sources_[entry.name].push_back(std::move(source));
    }
    reader.files_.push_back(std::move(*file));
  }
  return reader;
}

std::optional<at::ScalarType> ShardedTensorReader::StoredType(const std::string& name) const {
  const auto found = sources_.find(name);
  return found == sources_.end() ? std::nullopt : FloatTypeOf(found->second.front().entry->dtype);
}

absl::Status ShardedTensorReader::Read(const TensorPart& part) const {
  const auto bad = [&](const std::string& why) {
    return Error(ExitCode::kCheckpoint, "checkpoint ", folder_, ": \"", part.name, "\" ", why);
  };
  const auto found = sources_.find(part.name);
  if (found == sources_.end()) return bad("is missing; was it saved by another model or optimizer?");
  const std::vector<int64_t>& shape = shapes_.at(part.name);
  if (shape != part.shape) {
    const Rectangle have = {std::vector<int64_t>(shape.size(), 0), shape},
                    want = {std::vector<int64_t>(part.shape.size(), 0), part.shape};
    return bad(absl::StrCat("has shape ", have.ToString(), ", the model needs ", want.ToString()));
  }
  at::Tensor host =
      part.values.is_cpu() ? part.values : at::empty(part.values.sizes(), part.values.options().device(at::kCPU));
  const int element_size = static_cast<int>(host.element_size());
  int64_t covered = 0;
  std::vector<Rectangle> seen;  // Counting alone would accept one shard in the place of another of its size.
  for (const Source& source : found->second) {
    const Rectangle common = Intersect(source.rectangle, part.rectangle);
    if (common.numel() == 0) continue;
    for (const Rectangle& other : seen) {
      if (Overlap(common, other))
        return bad(absl::StrCat(common.ToString(), " stands in several files; is a shard file doubled?"));
    }
    seen.push_back(common);
    if (source.entry->dtype != SafetensorsName(host.scalar_type()))
      return bad(
          absl::StrCat("is stored as ", source.entry->dtype, ", this run needs ", SafetensorsName(host.scalar_type())));
    CopyOverlap(source.rectangle, source.file->data(*source.entry), part.rectangle,
                static_cast<uint8_t*>(host.data_ptr()), common, element_size, alive_);
    covered += common.numel();
    bytes_read_ += common.numel() * element_size;
  }
  if (covered != part.rectangle.numel())
    return bad(absl::StrCat("covers ", covered, " of the ", part.rectangle.numel(), " elements of ",
                            part.rectangle.ToString(), "; a shard file is missing"));
  if (!part.values.is_cpu()) part.values.copy_(host);
  return absl::OkStatus();
}

}  // namespace trireme
