#include "trainer/import.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <absl/strings/match.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <optional>
#include <set>

#include "launch/log.h"
#include "models/decoder.h"
#include "models/formats/bitsandbytes.h"
#include "models/formats/gguf_config.h"
#include "models/formats/hf_config.h"
#include "models/formats/hf_directory.h"
#include "trainer/adapter_source.h"
#include "trainer/agreement.h"
#include "trainer/tensor_mismatch.h"

namespace trireme {
namespace {

constexpr char kEmbedding[] = "model.embed_tokens.weight", kHead[] = "lm_head.weight";

absl::StatusOr<at::ScalarType> DtypeOf(const SafetensorsEntry& entry) {
  const std::optional<at::ScalarType> dtype = FloatTypeOf(entry.dtype);
  if (dtype.has_value()) return *dtype;
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

// Weights that are open for reading.
struct OpenWeights {
  std::string description;
  int64_t tensors = 0;
  PartReader read;
  std::map<std::string, QuantizedMatrix> quantized;
};

absl::StatusOr<OpenWeights> OpenGguf(const Recipe& recipe) {
  ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> opened, GgufFile::Open(recipe.config.model().from()));
  const std::shared_ptr<const GgufFile> file = std::move(opened);
  ASSIGN_OR_RETURN(const GgufModelFacts facts, ReadGgufFacts(*file));
  RETURN_IF_ERROR(CheckGgufTensors(*file, facts, recipe.model));
  OpenWeights weights;
  weights.description = file->path();
  weights.tensors = static_cast<int64_t>(file->tensors().size());
  weights.read = [file, facts](const TensorPart& part) { return ReadPart(*file, facts, part); };
  return weights;
}

absl::StatusOr<OpenWeights> OpenWeightsOf(const Recipe& recipe, Mesh& mesh) {
  if (NamesGguf(recipe.config.model().from())) return OpenGguf(recipe);
  ASSIGN_OR_RETURN(const std::string folder, FindHfDirectory(recipe.config.model().from()));
  ASSIGN_OR_RETURN(HfDirectory opened, HfDirectory::Open(folder));
  const auto directory = std::make_shared<const HfDirectory>(std::move(opened));
  OpenWeights weights;
  ASSIGN_OR_RETURN(weights.quantized, CheckHfTensors(*directory, recipe.model));
  // One rank reads the two matrices whole.
  if (recipe.model.tied_embeddings && mesh.control().rank() == 0) RETURN_IF_ERROR(CheckTiedHead(*directory));
  weights.description = folder;
  weights.tensors = static_cast<int64_t>(directory->tensors().size());
  weights.read = [directory](const TensorPart& part) {
    const absl::Status read = ReadPart(directory->tensors().at(part.name), part);
    return read.ok() ? read : Annotate(read, absl::StrCat("model ", directory->folder()));
  };
  return weights;
}

}  // namespace

absl::StatusOr<std::map<std::string, QuantizedMatrix>> CheckHfTensors(const HfDirectory& directory,
                                                                      const DecoderSpec& spec) {
  TensorMismatch mismatch;
  std::set<std::string> expected;
  ASSIGN_OR_RETURN(BnbTensors bnb, ReadBnbTensors(directory));
  for (const ParameterSpec& parameter : DecoderParameters(spec)) {
    expected.insert(parameter.name);
    if (const auto found = bnb.matrices.find(parameter.name); found != bnb.matrices.end()) {
      if (!parameter.quantized || !(found->second.format == *spec.quantization))
        return Error(ExitCode::kData, "model ", directory.folder(), ": ", parameter.name, " is stored as ",
                     NameOf(found->second.format), ", which its config.json does not say");
      mismatch.CheckShape(parameter.name, found->second.shape, parameter.shape);
      continue;
    }
    const auto found = directory.tensors().find(parameter.name);
    if (found == directory.tensors().end()) {
      mismatch.missing.push_back(parameter.name);
    } else {
      mismatch.CheckShape(parameter.name, found->second.entry->shape, parameter.shape);
    }
  }
  for (const auto& [name, tensor] : directory.tensors()) {
    // Old files carry the rotary frequencies, which follow from the config.
    if (absl::EndsWith(name, ".rotary_emb.inv_freq") || (spec.tied_embeddings && name == kHead)) continue;
    if (expected.count(name) == 0 && bnb.parts.count(name) == 0) mismatch.unexpected.push_back(name);
  }
  if (mismatch.empty()) return std::move(bnb.matrices);
  return Error(ExitCode::kData, "model ", directory.folder(),
               ": its tensors are not those that its config.json needs:", mismatch.ToString());
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

absl::Status FillWeights(Mesh& mesh, Model& model, const PartReader& read,
                         const std::map<std::string, QuantizedMatrix>& quantized, const Wanted& wanted) {
  absl::Status status;
  // A rank that failed goes on taking part in what is collective.
  const auto attempt = [&](const TensorPart& part) {
    if (status.ok()) status = read(part);
    return status;
  };
  for (ParameterBuffer* buffer : model.buffers()) {
    if (!wanted(*buffer)) continue;
    for (const TensorPart& part : PartsOf(*buffer, buffer->own_weights(), "", /*unique=*/false)) {
      if (!attempt(part).ok()) break;
    }
    if (buffer->quantized() && quantized.empty()) {
      const absl::Status done = buffer->QuantizeFrom([&](int parameter, int64_t begin, int64_t end, float* out) {
        const at::Tensor values = at::from_blob(out, {end - begin}, at::TensorOptions().dtype(at::kFloat));
        for (const TensorPart& part : PartsOfElements(*buffer, parameter, begin, end, values))
          RETURN_IF_ERROR(attempt(part));
        return absl::OkStatus();
      });
      if (status.ok()) status = done;
    }
    for (size_t i = 0; i < buffer->specs().size() && buffer->quantized() && !quantized.empty(); ++i) {
      const auto found = quantized.find(buffer->specs()[i].name);
      TRIREME_CHECK(found != quantized.end(), buffer->specs()[i].name, " is not among the quantized matrices");
      buffer->TakeQuantized(static_cast<int>(i), found->second);
    }
    mesh.log().Beat("importing weights");
  }
  return status;
}

absl::Status InitializeWeights(const Recipe& recipe, Mesh& mesh, Model& model, bool resumed) {
  const bool has_from = recipe.config.model().has_from();
  const auto added = [](const ParameterBuffer& buffer) { return buffer.specs()[0].added; };
  const auto wanted = [&](const ParameterBuffer& buffer) { return !resumed || !buffer.trainable(); };
  const auto from_file = [&](const ParameterBuffer& buffer) { return has_from && !added(buffer) && wanted(buffer); };
  const std::vector<ParameterBuffer*>& buffers = model.buffers();
  // Asked of the whole model: pipeline ranks hold different buffers, but all of them read or none.
  const std::vector<ParameterSpec> all = DecoderParameters(recipe.model);
  const bool frozen = std::any_of(all.begin(), all.end(), [](const ParameterSpec& spec) { return !spec.trainable; });
  if (has_from && (!resumed || frozen)) {
    const double start = MonotonicSeconds();
    const absl::StatusOr<OpenWeights> weights = OpenWeightsOf(recipe, mesh);
    RETURN_IF_ERROR(Agree(mesh.control(), weights.status()));
    RETURN_IF_ERROR(Agree(mesh.control(), FillWeights(mesh, model, weights->read, weights->quantized, from_file)));
    Info("weights of ", weights->description, ": ", weights->tensors, " tensors, took ",
         HumanSeconds(MonotonicSeconds() - start));
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
