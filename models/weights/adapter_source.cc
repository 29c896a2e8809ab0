// Long because directories of PEFT and checkpoints of our own become one thing, which is loaded, continued and written
// as a directory again: the rules for names, copies of base weights and PiSSA's factors hold in both directions.
#include "models/weights/adapter_source.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/mm.h>
#include <absl/strings/match.h>
#include <absl/strings/str_join.h>
#include <absl/strings/str_replace.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>

#include "launch/base/file.h"
#include "launch/base/log.h"
#include "models/formats/hf/peft.h"
#include "models/spec/parameters.h"
#include "models/spec/weight_table.h"
#include "models/weights/checkpoint_manifest.h"
#include "models/weights/sharded_tensors.h"
#include "models/weights/tensor_mismatch.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

constexpr char kHeadWeight[] = "lm_head.weight";

// Parts the source's tensors into those that were trained and copies of the base's.
void FindCopies(AdapterSource* source) {
  const auto& saved = source->config.modules_to_save();
  std::vector<SourceTensor> trained;
  for (SourceTensor& tensor : source->tensors) {
    const std::string module = ModuleOf(tensor.name);
    const bool whole =
        std::any_of(saved.begin(), saved.end(), [&](const std::string& name) { return NamesModule(name, module); });
    (whole || absl::StrContains(tensor.name, "lora_") ? trained : source->copies).push_back(std::move(tensor));
  }
  source->tensors = std::move(trained);
}

absl::StatusOr<std::shared_ptr<const AdapterSource>> OpenPeft(const std::string& folder) {
  ASSIGN_OR_RETURN(const PeftConfig config, ReadPeftConfig(folder));
  auto source = std::make_shared<AdapterSource>();
  source->description = absl::StrCat("adapter ", folder);
  source->config = config.adapter;
  source->base = config.base;
  source->weights_tied = config.weights_tied;
  ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> opened,
                   SafetensorsFile::Open(absl::StrCat(folder, "/", kPeftWeightsName)));
  const std::shared_ptr<const SafetensorsFile> file = std::move(opened);
  for (const SafetensorsEntry& entry : file->entries()) {
    const std::string name = FromPeftName(entry.name);
    if (name.empty() || entry.shape.empty() || entry.shape.size() > 2)
      return Error(ExitCode::kData, file->path(), ": \"", entry.name, "\" is no tensor of a LoRA adapter");
    const std::optional<at::ScalarType> dtype = FloatTypeOf(entry.dtype);
    if (!dtype.has_value())
      return Error(ExitCode::kData, file->path(), ": \"", entry.name, "\" is stored as ", entry.dtype,
                   "; F32, BF16 and F16 can be read");
    source->tensors.push_back({name, entry.shape, *dtype});
  }
  if (const std::string own = absl::StrCat(folder, "/chat_template.jinja"); Exists(own)) {
    ASSIGN_OR_RETURN(source->text.chat_template, ReadGivenTemplate(own));
    source->text.ends_by_template = true;
  }
  FindCopies(source.get());
  source->read = [file](const SourceTensor& tensor, const Rectangle& rectangle, const at::Tensor& out) {
    const auto found = std::find_if(file->entries().begin(), file->entries().end(), [&](const SafetensorsEntry& entry) {
      return FromPeftName(entry.name) == tensor.name;
    });
    // A copy, since elements may lie unaligned in the file.
    const at::Tensor rows = at::empty({rectangle.size[0], tensor.row_numel()}, at::TensorOptions().dtype(tensor.dtype));
    const int64_t row_bytes = tensor.row_numel() * rows.element_size();
    std::memcpy(rows.mutable_data_ptr(), file->data(*found) + rectangle.offset[0] * row_bytes, rows.nbytes());
    out.copy_(tensor.shape.size() == 2 ? rows.narrow(1, rectangle.offset[1], rectangle.size[1]) : rows);
    return absl::OkStatus();
  };
  return std::shared_ptr<const AdapterSource>(std::move(source));
}

// PiSSA's s B A - s B0 A0 as a plain adapter of twice the rank and the same scale: [B, -B0] [A; A0].
void Unite(AdapterSource* source) {
  AdapterConfig& config = source->config;
  config.clear_init_lora_weights();
  const double alphas = config.use_rslora() ? std::sqrt(2.0) : 2;
  config.set_r(2 * config.r());
  config.set_lora_alpha(alphas * config.lora_alpha());
  for (auto& [key, rank] : *config.mutable_rank_pattern()) rank *= 2;
  for (auto& [key, alpha] : *config.mutable_alpha_pattern()) alpha *= alphas;
  std::map<std::string, std::pair<SourceTensor, SourceTensor>> factors;  // now, and as training began
  std::vector<SourceTensor> tensors;
  for (SourceTensor& tensor : source->tensors) {
    const SourceTensor* initial = source->Find(InitialFactor(tensor.name));
    if (initial != nullptr) {
      factors[tensor.name] = {tensor, *initial};
      tensor.shape[absl::StrContains(tensor.name, ".lora_A.") ? 0 : 1] *= 2;
    }
    if (!absl::StrContains(tensor.name, ".initial_lora_")) tensors.push_back(tensor);
  }
  source->tensors = std::move(tensors);
  source->read = [read = source->read, factors](const SourceTensor& tensor, const Rectangle& r,
                                                const at::Tensor& out) -> absl::Status {
    const auto found = factors.find(tensor.name);
    if (found == factors.end()) return read(tensor, r, out);
    ASSIGN_OR_RETURN(const at::Tensor now, ReadWhole(read, found->second.first));
    ASSIGN_OR_RETURN(const at::Tensor initial, ReadWhole(read, found->second.second));
    const bool is_b = now.size(0) == tensor.shape[0];
    const at::Tensor both = is_b ? at::cat({now, -initial}, 1) : at::cat({now, initial}, 0);
    out.copy_(both.narrow(0, r.offset[0], r.size[0]).narrow(1, r.offset[1], r.size[1]));
    return absl::OkStatus();
  };
}

// What a run with this config trains, its checkpoints holding `tensors`.
std::shared_ptr<const AdapterSource> AdapterOfRun(const std::string& description, const RunConfig& config,
                                                  std::vector<SourceTensor> tensors, TensorReader read,
                                                  RunText text = {}) {
  auto source = std::make_shared<AdapterSource>();
  source->text = std::move(text);
  source->description = description;
  source->config = config.adapter();
  source->config.clear_from();
  source->base = config.model().from();
  source->tensors = std::move(tensors);
  source->read = std::move(read);
  if (source->config.init_lora_weights() == AdapterConfig::PISSA) Unite(source.get());
  FindCopies(source.get());
  return source;
}

absl::StatusOr<std::shared_ptr<const AdapterSource>> OpenAdapterCheckpoint(const std::string& folder,
                                                                           const std::string& part) {
  ASSIGN_OR_RETURN(const CheckpointManifest manifest, ReadCheckpointManifest(folder, /*verify=*/false, 0, 1));
  if (!manifest.config().has_adapter())
    return Error(ExitCode::kConfig, "checkpoint ", folder, ": is of a run that trained no adapter");
  ASSIGN_OR_RETURN(RunText text, RunTextOf(manifest));
  ASSIGN_OR_RETURN(ShardedTensorReader opened, ShardedTensorReader::Open(folder, manifest, part));
  const auto reader = std::make_shared<const ShardedTensorReader>(std::move(opened));
  std::vector<SourceTensor> tensors;
  const at::ScalarType usual = part == kAveragesPart ? at::kFloat : StoredBy(manifest.config());
  for (const auto& [name, shape] : reader->shapes()) tensors.push_back({name, shape, usual});
  return AdapterOfRun(absl::StrCat("checkpoint ", folder), manifest.config(), std::move(tensors), ReaderOf(reader),
                      std::move(text));
}

// What an adapter brings: its own parameters, and the model's that it trains whole.
std::vector<ParameterSpec> AddedAndTrained(const DecoderSpec& spec) {
  std::vector<ParameterSpec> parameters = AdapterParameters(spec);
  for (const ParameterSpec& parameter : DecoderParameters(spec)) {
    if (parameter.trainable) parameters.push_back(parameter);
  }
  return parameters;
}

// A tensor of a PEFT directory that is several of our parameters: B or magnitudes of a module that files store as one.
struct Joined {
  std::string name;  // "model.layers.0.self_attn.qkv_proj.lora_B.weight"
  std::vector<int64_t> shape;
  struct Piece {
    ParameterSpec parameter;
    std::vector<RowRun> runs;  // which rows of the tensor are which of the parameter
  };
  std::vector<Piece> pieces;
};
std::vector<Joined> JoinedTensors(const DecoderSpec& spec) {
  std::vector<Joined> all;
  std::map<std::string, ParameterSpec> added;
  for (const ParameterSpec& parameter : AdapterParameters(spec)) added[parameter.name] = parameter;
  const WeightTable table = MakeWeightTable(spec);
  for (const WeightTable::Stored& stored : table.stored) {
    std::vector<size_t> members;
    for (const RowRun& run : stored.runs) {
      if (std::find(members.begin(), members.end(), run.parameter) == members.end()) members.push_back(run.parameter);
    }
    const WeightTable::Parameter& first = table.parameters[members.front()];
    if (members.size() == 1 || first.shape.size() != 2 || spec.adapter->Find(first.name) == nullptr) continue;
    for (const char* kind : {".lora_B.weight", ".lora_magnitude_vector"}) {
      Joined joined;
      joined.name = spec.adapter->ModuleOfParameter(first.name) + kind;
      for (const size_t member : members) {
        const WeightTable::Parameter& parameter = table.parameters[member];
        const auto found = added.find(ModuleOf(parameter.name) + kind);
        if (found == added.end()) break;
        joined.shape = found->second.shape;
        joined.pieces.push_back({found->second, parameter.runs});
      }
      if (joined.pieces.empty()) continue;
      joined.shape[0] = 0;
      for (const Joined::Piece& piece : joined.pieces) joined.shape[0] += piece.parameter.shape[0];
      all.push_back(std::move(joined));
    }
  }
  return all;
}

// A or B of a layer's experts as PEFT has them (peft/tuners/lora/layer.py, ParamWrapper): wrapped around the module
// that holds the matrices, the one of the first matrix innermost. A's rows lie by expert, B's columns by rank.
struct ExpertFactor {
  std::string name;  // "model.layers.0.mlp.experts.base_layer.lora_B.weight"
  std::vector<int64_t> shape;
  ParameterSpec parameter;
  bool is_b = false;
};
std::vector<ExpertFactor> ExpertFactors(const DecoderSpec& spec) {
  std::vector<ExpertFactor> all;
  for (const ParameterSpec& parameter : AdapterParameters(spec)) {
    if (!parameter.expert) continue;
    const size_t factor = parameter.name.rfind(".lora_"), matrix = parameter.name.rfind('.', factor - 1);
    const std::string container = parameter.name.substr(0, matrix), own = parameter.name.substr(0, factor);
    // A wrapper that stands around this one: of a matrix behind this one, gate and up coming before down.
    const bool inner =
        absl::EndsWith(own, ".gate_up_proj") && spec.adapter->experts.count(container + ".down_proj") > 0;
    ExpertFactor found;
    found.name = absl::StrCat(container, inner ? ".base_layer" : "", parameter.name.substr(factor));
    found.is_b = absl::StrContains(parameter.name, ".lora_B.");
    found.shape = parameter.shape;
    if (found.is_b) found.shape = {parameter.shape[0] / parameter.heads, parameter.shape[1] * parameter.heads};
    found.parameter = parameter;
    all.push_back(std::move(found));
  }
  return all;
}
// [rows, rank x experts] -> [experts x rows, rank], and back.
at::Tensor ByExpert(const at::Tensor& b, int64_t experts) {
  return b.view({b.size(0), -1, experts}).permute({2, 0, 1}).reshape({experts * b.size(0), -1});
}
at::Tensor ByRank(const at::Tensor& b, int64_t experts) {
  return b.view({experts, -1, b.size(1)}).permute({1, 2, 0}).reshape({b.size(0) / experts, -1});
}

// What the embedding and the head are called in directories, and by us.
std::map<std::string, std::string> WholeTensors(const DecoderSpec& spec) {
  const WeightTable table = MakeWeightTable(spec);
  return {{table.embedding, absl::StrCat(kEmbeddingName, ".weight")}, {table.head, kHeadWeight}};
}

// The source by our parameters' names, which is how checkpoints have it.
AdapterSource ByParameters(const AdapterSource& source, const DecoderSpec& spec) {
  AdapterSource ours = source;
  struct Origin {
    SourceTensor tensor;
    std::vector<RowRun> runs;  // empty: it is the whole tensor
    int64_t experts = 0;       // of a B by rank; 0: it is none
  };
  std::map<std::string, Origin> origins;
  const std::map<std::string, std::string> whole = WholeTensors(spec);
  for (std::vector<SourceTensor>* tensors : {&ours.tensors, &ours.copies}) {
    for (SourceTensor& tensor : *tensors) {
      const auto found = whole.find(absl::StrReplaceAll(tensor.name, {{".base_layer.", "."}}));
      if (found == whole.end() || found->second == tensor.name) continue;
      const SourceTensor before = tensor;
      tensor.name = found->second;
      origins[tensor.name] = {before, {}};
    }
  }
  for (const ExpertFactor& factor : ExpertFactors(spec)) {
    const auto found = std::find_if(ours.tensors.begin(), ours.tensors.end(), [&](const SourceTensor& tensor) {
      return tensor.name == factor.name && tensor.shape == factor.shape;
    });
    if (found == ours.tensors.end()) continue;
    origins[factor.parameter.name] = {*found, {}, factor.is_b ? factor.parameter.heads : 0};
    *found = {factor.parameter.name, factor.parameter.shape, found->dtype};
  }
  for (const Joined& joined : JoinedTensors(spec)) {
    const auto found = std::find_if(ours.tensors.begin(), ours.tensors.end(),
                                    [&](const SourceTensor& tensor) { return tensor.name == joined.name; });
    // Of another shape it is unexpected, and its parts are missing.
    if (found == ours.tensors.end() || found->shape != joined.shape) continue;
    const SourceTensor before = *found;
    ours.tensors.erase(found);
    for (const Joined::Piece& piece : joined.pieces) {
      ours.tensors.push_back({piece.parameter.name, piece.parameter.shape, before.dtype});
      origins[piece.parameter.name] = {before, piece.runs};
    }
  }
  if (origins.empty()) return ours;
  ours.read = [read = source.read, origins](const SourceTensor& tensor, const Rectangle& r,
                                            const at::Tensor& out) -> absl::Status {
    const auto found = origins.find(tensor.name);
    if (found == origins.end()) return read(tensor, r, out);
    const Origin& origin = found->second;
    if (origin.experts > 0) {
      ASSIGN_OR_RETURN(const at::Tensor stored, ReadWhole(read, origin.tensor));
      out.copy_(ByExpert(stored, origin.experts).narrow(0, r.offset[0], r.size[0]).narrow(1, r.offset[1], r.size[1]));
      return absl::OkStatus();
    }
    if (origin.runs.empty()) return read(origin.tensor, r, out);
    const int64_t begin = r.offset[0], end = begin + r.size[0];
    for (const RowRun& run : origin.runs) {
      const int64_t first = std::max(begin, run.row), last = std::min(end, run.row + run.rows);
      if (first >= last) continue;
      Rectangle part = r;
      part.offset[0] = run.stored_row + first - run.row;
      part.size[0] = last - first;
      RETURN_IF_ERROR(read(origin.tensor, part, out.narrow(0, first - begin, last - first)));
    }
    return absl::OkStatus();
  };
  return ours;
}

// The base's name of a copy.
std::string BaseName(const SourceTensor& copy, const DecoderSpec& spec) {
  const std::string name = absl::StrReplaceAll(copy.name, {{".base_layer.", "."}});
  return spec.tied_embeddings && name == kHeadWeight ? absl::StrCat(kEmbeddingName, ".weight") : name;
}

// PEFT saves a tied matrix that was trained whole once for each use. True for the second.
bool IsSecondUse(const AdapterSource& source, const DecoderSpec& spec, const SourceTensor& tensor) {
  return spec.tied_embeddings && source.weights_tied && tensor.name == kHeadWeight &&
         source.Find(absl::StrCat(kEmbeddingName, ".weight")) != nullptr;
}

// An error unless the second use holds the same values as the first.
absl::Status CheckSecondUse(const AdapterSource& source, const SourceTensor& head) {
  const SourceTensor& embedding = *source.Find(absl::StrCat(kEmbeddingName, ".weight"));
  bool same = embedding.shape == head.shape && embedding.dtype == head.dtype;
  if (same) {
    ASSIGN_OR_RETURN(const at::Tensor first, ReadWhole(source.read, embedding));
    ASSIGN_OR_RETURN(const at::Tensor second, ReadWhole(source.read, head));
    same = at::equal(first, second);
  }
  if (same) return absl::OkStatus();
  return Error(ExitCode::kData, source.description, ": ensure_weight_tying is true, but ", head.name, " differs from ",
               embedding.name);
}

bool HasCopy(const AdapterSource& source, const DecoderSpec& spec, const std::string& name) {
  return std::any_of(source.copies.begin(), source.copies.end(), [&](const SourceTensor& copy) {
    return BaseName(copy, spec) == name && !IsSecondUse(source, spec, copy);
  });
}

// Whether the copies of a part of the base's weights are equal to it.
absl::Status CheckCopies(const AdapterSource& source, const DecoderSpec& spec, const TensorPart& part) {
  for (const SourceTensor& copy : source.copies) {
    if (BaseName(copy, spec) != part.name || IsSecondUse(source, spec, copy)) continue;
    const at::Tensor ours = part.values.view({part.rectangle.size[0], -1});
    const at::Tensor theirs = at::empty(ours.sizes(), at::TensorOptions().dtype(copy.dtype));
    RETURN_IF_ERROR(source.read(copy, part.rectangle, theirs));
    // Either may have been rounded to fewer bits.
    const at::Tensor here = ours.cpu();
    if (at::equal(here.to(copy.dtype), theirs) || at::equal(here, theirs.to(here.scalar_type()))) continue;
    return Error(ExitCode::kData, source.description, ": ", copy.name,
                 " differs from the base model's, though modules_to_save does not name it (PEFT writes it where the "
                 "vocabulary was resized); give the base that it was trained on, or merge it with PEFT");
  }
  return absl::OkStatus();
}

// What a module's update needs.
struct Update {
  at::Tensor a, b;        // float32
  at::Tensor lengths_to;  // DoRA's magnitudes; undefined: none
  double scale = 1;
  int64_t experts = 1;  // that a and b are of
};

absl::StatusOr<at::Tensor> Whole(const AdapterSource& source, const std::string& name) {
  const SourceTensor* tensor = source.Find(name);
  if (tensor == nullptr) return Error(ExitCode::kData, source.description, ": has no ", name);
  ASSIGN_OR_RETURN(const at::Tensor values, ReadWhole(source.read, *tensor));
  return values.to(at::kFloat);
}

// source: by our parameters' names.
absl::StatusOr<Update> ReadUpdate(const AdapterSource& source, const AdapterSpec& spec, const std::string& parameter) {
  Update update;
  const std::string module = spec.ModuleOfParameter(parameter);
  // B is called by the parameter where the module has several.
  const bool alone = source.Find(module + ".lora_B.weight") != nullptr;
  const std::string own = alone ? module : ModuleOf(parameter);
  ASSIGN_OR_RETURN(update.a, Whole(source, module + ".lora_A.weight"));
  ASSIGN_OR_RETURN(update.b, Whole(source, own + ".lora_B.weight"));
  if (spec.dora) {
    ASSIGN_OR_RETURN(update.lengths_to, Whole(source, own + ".lora_magnitude_vector"));
  }
  update.scale = spec.Find(parameter)->scale;
  if (spec.experts.count(module) > 0) update.experts = update.a.size(0) / spec.Find(parameter)->rank;
  return update;
}

// Rows of W + s B A, scaled.
at::Tensor Apply(const Update& update, const at::Tensor& rows, int64_t begin) {
  const int64_t count = rows.size(0), of_expert = update.b.size(0) / update.experts;
  const int64_t rank = update.a.size(0) / update.experts;
  at::Tensor sum = rows.clone();
  for (int64_t row = begin; row < begin + count;) {
    const int64_t expert = row / of_expert, end = std::min(begin + count, (expert + 1) * of_expert);
    const at::Tensor a = update.a.narrow(0, expert * rank, rank);
    sum.narrow(0, row - begin, end - row) += at::mm(update.b.narrow(0, row, end - row), a) * update.scale;
    row = end;
  }
  if (!update.lengths_to.defined()) return sum;
  const at::Tensor length = at::linalg_vector_norm(sum, 2, at::IntArrayRef{1}, /*keepdim=*/true);
  return sum * (update.lengths_to.narrow(0, begin, count).unsqueeze(1) / length);
}

// What target_modules (experts: target_parameters) should say so that PEFT finds the same modules, of which there are
// `others` too. Never an expression: PEFT would try it on what is no linear layer, too.
std::vector<std::string> TargetNames(const AdapterSpec& adapter, const std::vector<std::string>& others, bool experts) {
  // PEFT wants the module that holds the experts' matrices named too.
  const auto short_name = [experts](const std::string& module) {
    if (!experts) return LastPart(module);
    const std::string holder = module.substr(0, module.rfind('.'));
    return absl::StrCat(LastPart(holder), ".", LastPart(module));
  };
  std::set<std::string> short_names, whole;
  for (const auto& [module, unused] : adapter.modules) {
    if ((adapter.experts.count(module) > 0) != experts) continue;
    whole.insert(module);
    short_names.insert(short_name(module));
  }
  const bool all = std::all_of(others.begin(), others.end(), [&](const std::string& module) {
    return whole.count(module) > 0 || short_names.count(short_name(module)) == 0;
  });
  const std::set<std::string>& names = all ? short_names : whole;
  return {names.begin(), names.end()};
}

}  // namespace

const SourceTensor* AdapterSource::Find(const std::string& name) const {
  const auto found =
      std::find_if(tensors.begin(), tensors.end(), [&](const SourceTensor& tensor) { return tensor.name == name; });
  return found == tensors.end() ? nullptr : &*found;
}

absl::StatusOr<std::shared_ptr<const AdapterSource>> OpenAdapter(const std::string& path, const std::string& part) {
  std::error_code error;
  if (fs::exists(fs::path(path) / kPeftConfigName, error)) return OpenPeft(path);
  ASSIGN_OR_RETURN(const std::string checkpoint, CheckpointOf(path));
  if (!checkpoint.empty()) return OpenAdapterCheckpoint(checkpoint, part);
  return Error(ExitCode::kConfig, "adapter ", path, ": is neither a PEFT directory (it has no ", kPeftConfigName,
               ") nor a run_dir or checkpoint");
}

std::shared_ptr<const AdapterSource> FutureAdapter(const RunConfig& config, const DecoderSpec& spec) {
  std::vector<SourceTensor> tensors;
  std::set<std::string> names;
  std::vector<ParameterSpec> parameters = AddedAndTrained(spec);
  for (const ParameterSpec& parameter : AdapterParameters(spec)) parameters.push_back(parameter);
  for (const ParameterSpec& parameter : parameters) {
    if (names.insert(parameter.name).second) tensors.push_back({parameter.name, parameter.shape, StoredBy(config)});
  }
  const auto made_up = [](const SourceTensor& tensor, const Rectangle&, const at::Tensor& out) {
    out.fill_(1 + static_cast<double>(std::hash<std::string>()(tensor.name) % 100) / 128);
    return absl::OkStatus();
  };
  return AdapterOfRun("the adapter to be trained", config, std::move(tensors), made_up);
}

absl::StatusOr<DecoderSpec> Adapted(const AdapterSource& given, DecoderSpec spec) {
  std::vector<std::string> problems;
  AdapterConfig config = given.config;
  config.set_from(given.description);  // it exists already
  PutAdapter(config, /*seed=*/0, &spec, &problems);
  if (!problems.empty())
    return Error(ExitCode::kData, given.description, " does not fit the model:\n  ", absl::StrJoin(problems, "\n  "));
  const AdapterSource source = ByParameters(given, spec);
  if (spec.tied_embeddings && !spec.adapter->saved_modules.empty() && !source.weights_tied)
    return Error(
        ExitCode::kData, source.description, ": was trained with an embedding of its own beside the model's ",
        "tied head (modules_to_save without ensure_weight_tying); here the two are one matrix, so merge it with "
        "PEFT first");
  TensorMismatch mismatch;
  std::set<std::string> known;
  for (const ParameterSpec& parameter : AddedAndTrained(spec)) {
    known.insert(parameter.name);
    const SourceTensor* tensor = source.Find(parameter.name);
    if (tensor == nullptr) {
      mismatch.missing.push_back(parameter.name);
    } else {
      mismatch.CheckShape(parameter.name, tensor->shape, parameter.shape);
    }
  }
  for (const SourceTensor& tensor : source.tensors) {
    if (IsSecondUse(source, spec, tensor)) {
      RETURN_IF_ERROR(CheckSecondUse(source, tensor));
      continue;
    }
    if (known.count(tensor.name) == 0) mismatch.unexpected.push_back(tensor.name);
  }
  const std::vector<ParameterSpec> base = DecoderParameters(spec);
  for (const SourceTensor& copy : source.copies) {
    if (IsSecondUse(source, spec, copy)) {
      RETURN_IF_ERROR(CheckSecondUse(source, copy));
      continue;
    }
    const std::string name = BaseName(copy, spec);
    const auto found =
        std::find_if(base.begin(), base.end(), [&](const ParameterSpec& parameter) { return parameter.name == name; });
    if (found == base.end()) {
      mismatch.unexpected.push_back(copy.name);
    } else {
      mismatch.CheckShape(copy.name, copy.shape, found->shape);
    }
  }
  if (mismatch.empty()) return spec;
  return Error(ExitCode::kData, source.description,
               ": its tensors are not those that its settings need:", mismatch.ToString());
}

absl::Status LoadAdapter(const AdapterSource& given, const DecoderSpec& spec,
                         const std::vector<ParameterBuffer*>& buffers, const std::function<void()>& alive) {
  const AdapterSource source = ByParameters(given, spec);
  for (ParameterBuffer* buffer : buffers) {
    if (!source.copies.empty() && !buffer->quantized()) {
      for (const TensorPart& part : PartsOf(*buffer, buffer->own_weights(), "", /*unique=*/false)) {
        RETURN_IF_ERROR(CheckCopies(source, spec, part));
        if (alive) alive();
      }
    }
    if (!buffer->trainable()) continue;
    for (const TensorPart& part : PartsOf(*buffer, buffer->own_weights(), "", /*unique=*/false)) {
      const SourceTensor* tensor = source.Find(part.name);
      if (tensor == nullptr) continue;  // a frozen parameter beside a trained one; Adapted() checked the rest
      RETURN_IF_ERROR(source.read(*tensor, part.rectangle, part.values.view({part.rectangle.size[0], -1})));
      if (alive) alive();
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<WeightSource> MergedWeights(const WeightSource& base, std::shared_ptr<const AdapterSource> given,
                                           const DecoderSpec& plain, bool keep_dtype,
                                           const std::function<void()>& alive) {
  ASSIGN_OR_RETURN(const DecoderSpec spec, Adapted(*given, plain));
  const auto adapter = std::make_shared<const AdapterSource>(ByParameters(*given, spec));
  for (const SourceTensor& tensor : base.tensors) {
    if (!HasCopy(*adapter, spec, tensor.name)) continue;
    int64_t row = 0;
    const auto compare = [&](const at::Tensor& piece) {
      TensorPart part{tensor.name, tensor.shape, {}, piece};
      const int64_t rows = piece.numel() / tensor.row_numel();
      part.rectangle = {{row}, {rows}};
      if (tensor.shape.size() == 2) part.rectangle = {{row, 0}, {rows, tensor.row_numel()}};
      row += rows;
      if (alive) alive();
      return CheckCopies(*adapter, spec, part);
    };
    RETURN_IF_ERROR(ReadPieces(base, tensor, /*multiple=*/1, compare));
  }
  WeightSource merged = base;
  merged.quantized.clear();
  for (SourceTensor& tensor : merged.tensors) {
    const bool changed = spec.adapter->Find(tensor.name) != nullptr || adapter->Find(tensor.name) != nullptr;
    if (changed && !keep_dtype) tensor.dtype = at::kFloat;
  }
  merged.read = [base, adapter, specification = spec.adapter](const SourceTensor& tensor, const Rectangle& r,
                                                              const at::Tensor& out) -> absl::Status {
    // A module that was trained whole.
    if (const SourceTensor* whole = adapter->Find(tensor.name); whole != nullptr) return adapter->read(*whole, r, out);
    const SourceTensor& stored = *std::find_if(base.tensors.begin(), base.tensors.end(),
                                               [&](const SourceTensor& other) { return other.name == tensor.name; });
    if (tensor.shape.size() != 2 || specification->Find(tensor.name) == nullptr) return base.read(stored, r, out);
    ASSIGN_OR_RETURN(const Update update, ReadUpdate(*adapter, *specification, tensor.name));
    // Whole rows: DoRA scales them to a length.
    const at::Tensor rows = at::empty({r.size[0], tensor.row_numel()}, at::TensorOptions().dtype(at::kFloat));
    RETURN_IF_ERROR(base.read(stored, {{r.offset[0], 0}, {r.size[0], tensor.row_numel()}}, rows));
    out.copy_(Apply(update, rows, r.offset[0]).narrow(1, r.offset[1], r.size[1]));
    return absl::OkStatus();
  };
  return merged;
}

absl::Status WritePeftDirectory(const AdapterSource& given, const DecoderSpec& plain, const std::string& folder,
                                const std::function<void()>& alive) {
  ASSIGN_OR_RETURN(const DecoderSpec spec, Adapted(given, plain));
  const AdapterSource source = ByParameters(given, spec);
  // The parameters that each tensor of the directory holds: one of ours, or the parts of one.
  std::map<std::string, Joined> wanted;
  for (const ParameterSpec& parameter : AddedAndTrained(spec))
    wanted[parameter.name] = {parameter.name, parameter.shape, {{parameter, {}}}};
  std::map<std::string, ExpertFactor> of_experts;  // by PEFT's names
  for (ExpertFactor& factor : ExpertFactors(spec)) {
    wanted.erase(factor.parameter.name);
    wanted[factor.name] = {factor.name, factor.shape, {{factor.parameter, {}}}};
    of_experts[factor.name] = std::move(factor);
  }
  for (Joined& joined : JoinedTensors(spec)) {
    for (const Joined::Piece& piece : joined.pieces) wanted.erase(piece.parameter.name);
    wanted[joined.name] = std::move(joined);
  }
  // PEFT wants a tied matrix once for each use.
  const auto embedding = wanted.find(absl::StrCat(kEmbeddingName, ".weight"));
  if (spec.tied_embeddings && embedding != wanted.end()) wanted[kHeadWeight] = embedding->second;
  for (const auto& [theirs, ours] : WholeTensors(spec)) {
    if (wanted.count(ours) == 0 || theirs == ours) continue;
    wanted[theirs] = wanted[ours];
    wanted.erase(ours);
  }
  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, joined] : wanted) {
    SafetensorsEntry entry;
    entry.name = ToPeftName(name);
    entry.dtype = SafetensorsName(source.Find(joined.pieces.front().parameter.name)->dtype);
    entry.shape = joined.shape;
    entries.push_back(std::move(entry));
  }
  const auto produce = [&](const SafetensorsEntry& entry, FileWriter& writer) -> absl::Status {
    const Joined& joined = wanted.at(FromPeftName(entry.name));
    const auto of_expert = of_experts.find(joined.name);
    at::Tensor values;
    for (const Joined::Piece& piece : joined.pieces) {
      ASSIGN_OR_RETURN(const at::Tensor part, ReadWhole(source.read, *source.Find(piece.parameter.name)));
      if (piece.runs.empty()) values = part;
      if (!values.defined()) values = at::empty(joined.shape, part.options());
      for (const RowRun& run : piece.runs)
        values.narrow(0, run.stored_row, run.rows).copy_(part.narrow(0, run.row, run.rows));
    }
    if (of_expert != of_experts.end() && of_expert->second.is_b)
      values = ByRank(values, of_expert->second.parameter.heads);
    for (size_t begin = 0; begin < values.nbytes(); begin += kPieceBytes) {
      RETURN_IF_ERROR(writer.Append(static_cast<const uint8_t*>(values.const_data_ptr()) + begin,
                                    std::min<size_t>(kPieceBytes, values.nbytes() - begin)));
      if (alive) alive();
    }
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(
      WriteSafetensors(absl::StrCat(folder, "/", kPeftWeightsName), entries, {{"format", "pt"}}, produce).status());
  PeftConfig config;
  config.adapter = source.config;
  config.base = source.base;
  config.weights_tied = source.weights_tied && spec.tied_embeddings;
  const std::vector<WeightTable::Stored> stored = MakeWeightTable(spec).stored;
  config.transposed = std::any_of(stored.begin(), stored.end(),
                                  [](const auto& tensor) { return tensor.transposed && tensor.pieces == 1; });
  RETURN_IF_ERROR(WriteFileAtomically(absl::StrCat(folder, "/", kPeftConfigName),
                                      WritePeftConfig(config, TargetNames(*spec.adapter, LinearModules(spec), false),
                                                      TargetNames(*spec.adapter, ExpertModules(spec), true))));
  if (!source.text.chat_template.empty())
    RETURN_IF_ERROR(WriteFileAtomically(absl::StrCat(folder, "/chat_template.jinja"), source.text.chat_template));
  RETURN_IF_ERROR(SyncDirectory(folder));
  // What is on disk reads back as the same adapter.
  ASSIGN_OR_RETURN(const auto again, OpenPeft(folder));
  return Adapted(*again, plain).status();
}

std::vector<std::string> VllmRefusals(const AdapterSpec& spec) {
  std::vector<std::string> refusals;
  if (spec.dora) refusals.push_back("use_dora: vLLM has no DoRA; merge the adapter");
  if (!spec.saved_modules.empty()) refusals.push_back("modules_to_save: vLLM refuses adapters that have it; merge it");
  const auto differs = [&spec](const auto& entry) {
    const ModuleAdapter& first = spec.modules.begin()->second;
    return entry.second.rank != first.rank || entry.second.alpha != first.alpha;
  };
  if (std::any_of(spec.modules.begin(), spec.modules.end(), differs))
    refusals.push_back("rank_pattern and alpha_pattern: vLLM does not read them; use one rank and alpha, or merge");
  constexpr int64_t kRanks[] = {8, 16, 32, 64, 128, 256, 320, 512};
  int64_t rank = 0;
  for (const auto& [module, adapter] : spec.modules) rank = std::max(rank, adapter.rank);
  const auto limit = std::find_if(std::begin(kRanks), std::end(kRanks), [&](int64_t r) { return r >= rank; });
  if (limit == std::end(kRanks)) refusals.push_back(absl::StrCat("r: ", rank, " exceeds vLLM's largest rank of 512"));
  if (limit != std::end(kRanks) && *limit > 16)
    refusals.push_back(absl::StrCat("r: ", rank, " needs vLLM's flag --max-lora-rank ", *limit));
  return refusals;
}

}  // namespace trireme
