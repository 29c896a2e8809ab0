#include "trainer/import.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <absl/strings/match.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <set>

#include "launch/log.h"
#include "models/decoder.h"
#include "models/formats/gguf_config.h"
#include "models/formats/hf_config.h"
#include "models/formats/hf_directory.h"
#include "trainer/adapter_source.h"
#include "trainer/agreement.h"
#include "trainer/sharded_tensors.h"

namespace trireme {
namespace {

constexpr char kEmbedding[] = "model.embed_tokens.weight", kHead[] = "lm_head.weight";
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
               "; F32, BF16 and F16 weights can be imported");
}

// A tied model's head is its embedding: a copy in the file is fine, another matrix would be lost.
absl::Status CheckTiedHead(const HfDirectory& directory) {
  const auto head = directory.tensors().find(kHead), embedding = directory.tensors().find(kEmbedding);
  if (head == directory.tensors().end() || embedding == directory.tensors().end()) return absl::OkStatus();
  const SafetensorsEntry &a = *head->second.entry, &b = *embedding->second.entry;
  if (a.shape != b.shape || a.dtype != b.dtype ||
      std::memcmp(head->second.data(), embedding->second.data(), a.end - a.begin) != 0) {
    return Error(ExitCode::kData, "model ", directory.folder(), ": config.json ties the head to the embedding, but ",
                 kHead, " differs from ", kEmbedding, "; set tie_word_embeddings to false in a copy of config.json");
  }
  Info("model ", directory.folder(), ": ", kHead, " repeats ", kEmbedding, " of this tied model and is left alone");
  return absl::OkStatus();
}

// Only these elements of the mapped file are touched.
absl::Status ReadPart(const HfDirectory::Tensor& tensor, const TensorPart& part) {
  ASSIGN_OR_RETURN(const at::ScalarType dtype, DtypeOf(*tensor.entry));
  const bool matrix = part.shape.size() == 2;
  const Rectangle& r = part.rectangle;
  const int64_t rows = matrix ? r.size[0] : 1, columns = r.size.back();
  const int64_t stride = matrix ? part.shape[1] : columns, first_row = matrix ? r.offset[0] : 0;
  const int64_t element_size = static_cast<int64_t>(at::elementSize(dtype));
  const uint8_t* begin = tensor.data() + (first_row * stride + r.offset.back()) * element_size;
  at::Tensor source;
  if (reinterpret_cast<uintptr_t>(begin) % element_size == 0) {
    source = at::from_blob(const_cast<uint8_t*>(begin), {rows, columns}, {stride, 1}, at::TensorOptions().dtype(dtype));
  } else {
    // Headers of any length are legal, so elements may lie unaligned.
    source = at::empty({rows, columns}, at::TensorOptions().dtype(dtype));
    for (int64_t row = 0; row < rows; ++row) {
      std::memcpy(static_cast<uint8_t*>(source.mutable_data_ptr()) + row * columns * element_size,
                  begin + row * stride * element_size, columns * element_size);
    }
  }
  part.values.view({rows, columns}).copy_(source);
  return absl::OkStatus();
}

// Decodes these elements of the mapped file only, some 16 MiB at a time.
absl::Status ReadPart(const GgufFile& file, const GgufModelFacts& facts, const TensorPart& part) {
  const bool matrix = part.shape.size() == 2;
  const Rectangle& r = part.rectangle;
  const int64_t rows = matrix ? r.size[0] : 1, columns = r.size.back();
  const int64_t first_row = matrix ? r.offset[0] : 0, first_column = r.offset.back();
  const int64_t step = std::max<int64_t>(1, (int64_t{4} << 20) / std::max<int64_t>(1, columns));
  const at::Tensor target = part.values.view({rows, columns});
  for (int64_t row = 0; row < rows; row += step) {
    const int64_t now = std::min(step, rows - row);
    at::Tensor values = at::empty({now, columns}, at::TensorOptions().dtype(at::kFloat));
    RETURN_IF_ERROR(ReadGgufRows(file, facts, part.name, first_row + row, first_row + row + now, first_column,
                                 first_column + columns, values.mutable_data_ptr<float>()));
    target.narrow(0, row, now).copy_(values);
  }
  return absl::OkStatus();
}

absl::StatusOr<GgufModelFacts> FactsOf(const std::string& path) {
  ASSIGN_OR_RETURN(const auto file, GgufFile::Open(path));
  return ReadGgufFacts(*file);
}

using Wanted = std::function<bool(const ParameterBuffer&)>;

// Gives every rectangle that this rank owns in wanted buffers to `read`.
absl::Status FillParts(Mesh& mesh, Model& model, const Wanted& wanted,
                       const std::function<absl::Status(const TensorPart&)>& read) {
  for (ParameterBuffer* buffer : model.buffers()) {
    if (!wanted(*buffer)) continue;
    for (const TensorPart& part : PartsOf(*buffer, buffer->own_weights(), "", /*unique=*/false))
      RETURN_IF_ERROR(read(part));
    mesh.log().Beat("importing weights");
  }
  return absl::OkStatus();
}

absl::Status ImportGguf(const Recipe& recipe, Mesh& mesh, Model& model, const Wanted& wanted) {
  ASSIGN_OR_RETURN(const auto file, GgufFile::Open(recipe.config.model().from()));
  ASSIGN_OR_RETURN(const GgufModelFacts facts, ReadGgufFacts(*file));
  RETURN_IF_ERROR(CheckGgufTensors(*file, facts, recipe.model));
  const double start = MonotonicSeconds();
  RETURN_IF_ERROR(FillParts(mesh, model, wanted, [&](const TensorPart& part) { return ReadPart(*file, facts, part); }));
  Info("weights of ", file->path(), ": ", file->tensors().size(), " tensors, took ",
       HumanSeconds(MonotonicSeconds() - start));
  return absl::OkStatus();
}

absl::Status Import(const Recipe& recipe, Mesh& mesh, Model& model, const Wanted& wanted) {
  if (NamesGguf(recipe.config.model().from())) return ImportGguf(recipe, mesh, model, wanted);
  ASSIGN_OR_RETURN(const std::string folder, FindHfDirectory(recipe.config.model().from()));
  ASSIGN_OR_RETURN(const HfDirectory directory, HfDirectory::Open(folder));
  RETURN_IF_ERROR(CheckHfTensors(directory, recipe.model));
  // One rank reads the two matrices whole.
  if (recipe.model.tied_embeddings && mesh.control().rank() == 0) RETURN_IF_ERROR(CheckTiedHead(directory));
  const double start = MonotonicSeconds();
  RETURN_IF_ERROR(FillParts(mesh, model, wanted, [&](const TensorPart& part) {
    const absl::Status read = ReadPart(directory.tensors().at(part.name), part);
    return read.ok() ? read : Annotate(read, absl::StrCat("model ", folder));
  }));
  Info("weights of ", folder, ": ", directory.tensors().size(), " tensors, took ",
       HumanSeconds(MonotonicSeconds() - start));
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckHfTensors(const HfDirectory& directory, const DecoderSpec& spec) {
  std::vector<std::string> missing, unexpected, wrong;
  std::set<std::string> expected;
  for (const ParameterSpec& parameter : DecoderParameters(spec)) {
    expected.insert(parameter.name);
    const auto found = directory.tensors().find(parameter.name);
    if (found == directory.tensors().end()) {
      missing.push_back(parameter.name);
    } else if (found->second.entry->shape != parameter.shape) {
      wrong.push_back(absl::StrCat(parameter.name, " ", ShapeText(found->second.entry->shape), " instead of ",
                                   ShapeText(parameter.shape)));
    }
  }
  for (const auto& [name, tensor] : directory.tensors()) {
    // Old files carry the rotary frequencies, which follow from the config.
    if (absl::EndsWith(name, ".rotary_emb.inv_freq") || (spec.tied_embeddings && name == kHead)) continue;
    if (expected.count(name) == 0) unexpected.push_back(name);
  }
  if (missing.empty() && unexpected.empty() && wrong.empty()) return absl::OkStatus();
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

absl::Status CheckGgufTensors(const GgufFile& file, const GgufModelFacts& facts, const DecoderSpec& spec) {
  size_t found = 0;
  for (const ParameterSpec& parameter : DecoderParameters(spec)) {
    const std::optional<std::string> name = ToGgufName(*facts.architecture, parameter.name);
    const GgufTensor* tensor = name.has_value() ? file.FindTensor(*name) : nullptr;
    if (tensor == nullptr || tensor->shape != parameter.shape) {
      return Error(ExitCode::kData, "gguf ", file.path(), ": has ",
                   tensor == nullptr ? "nothing" : ShapeText(tensor->shape), " for ", parameter.name, " ",
                   ShapeText(parameter.shape), ", which the model needs");
    }
    ++found;
  }
  for (const GgufTensor& tensor : file.tensors())
    found += ToCanonicalName(*facts.architecture, tensor.name).has_value() ? 0 : 1;
  if (found == file.tensors().size()) return absl::OkStatus();
  return Error(ExitCode::kData, "gguf ", file.path(), ": has ", file.tensors().size(), " tensors, the model takes ",
               found);
}

std::string ResolveModelConfig(ModelConfig* model, std::vector<std::string>* problems) {
  if (!model->has_from() && !model->has_config()) return "";
  if (model->has_from() && model->has_config()) {
    problems->push_back("model.config: is set beside model.from, which gives the architecture too; remove one");
    return "";
  }
  std::string path = model->config();
  if (model->has_from() && NamesGguf(model->from())) {
    const absl::StatusOr<GgufModelFacts> facts = FactsOf(model->from());
    if (facts.ok()) {
      MergeHfConfig(ConfigOfGguf(*facts), model->from(), model, problems);
    } else {
      problems->push_back(absl::StrCat("model.from: ", facts.status().message()));
    }
    return "";
  }
  if (model->has_from()) {
    const absl::StatusOr<std::string> folder = FindHfDirectory(model->from());
    if (!folder.ok()) {
      problems->push_back(absl::StrCat("model.from: ", folder.status().message()));
      return "";
    }
    path = (std::filesystem::path(*folder) / kHfConfigName).string();
  }
  const absl::StatusOr<HfConfig> config = ReadHfConfig(path);
  if (!config.ok()) {
    problems->push_back(absl::StrCat(model->has_from() ? "model.from: " : "model.config: ", config.status().message()));
    return "";
  }
  MergeHfConfig(config->model, path, model, problems);
  return config->ignored.empty() ? ""
                                 : absl::StrCat(path, ": ignored, since they do not change what is computed: ",
                                                absl::StrJoin(config->ignored, ", "));
}

absl::Status FillWeights(const Recipe& recipe, Mesh& mesh, Model& model, bool resumed) {
  const bool has_from = recipe.config.model().has_from();
  const auto added = [](const ParameterBuffer& buffer) { return buffer.specs()[0].added; };
  const auto wanted = [&](const ParameterBuffer& buffer) { return !resumed || !buffer.trainable(); };
  const auto from_file = [&](const ParameterBuffer& buffer) { return has_from && !added(buffer) && wanted(buffer); };
  const std::vector<ParameterBuffer*>& buffers = model.buffers();
  const bool reads = std::any_of(buffers.begin(), buffers.end(), [&](ParameterBuffer* b) { return from_file(*b); });
  // Pipeline ranks hold different buffers: all take part in the agreement when any could read.
  const bool may_read = has_from && (!resumed || recipe.model.adapter != nullptr);
  if (may_read) {
    const absl::Status read = reads ? Import(recipe, mesh, model, from_file) : absl::OkStatus();
    RETURN_IF_ERROR(Agree(mesh.control(), read));
  }
  for (ParameterBuffer* buffer : buffers) {
    if (wanted(*buffer) && !from_file(*buffer)) buffer->Initialize(recipe.config.seed());
  }
  const bool continued = !resumed && recipe.config.adapter().has_from();
  if (continued) {
    const auto load = [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const auto adapter, OpenAdapter(recipe.config.adapter().from()));
      DecoderSpec plain = recipe.model;
      plain.adapter = nullptr;
      RETURN_IF_ERROR(Adapted(*adapter, plain).status());
      return LoadAdapter(*adapter, model);
    };
    RETURN_IF_ERROR(Agree(mesh.control(), load()));
  }
  for (ParameterBuffer* buffer : buffers) {
    if (wanted(*buffer)) buffer->Publish(/*converted=*/false);
  }
  if (!resumed && !continued) model.InitializeDerived();
  return absl::OkStatus();
}

}  // namespace trireme
