#include "trainer/export/export.h"

#include <absl/strings/ascii.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_format.h>
#include <absl/strings/strip.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>

#include "launch/base/file.h"
#include "launch/base/log.h"
#include "models/formats/hf/peft.h"
#include "models/source/model_source.h"
#include "models/weights/adapter_source.h"
#include "models/weights/checkpoint_list.h"
#include "models/weights/checkpoint_manifest.h"
#include "models/weights/requantized.h"
#include "parallel/comm/agreement.h"
#include "trainer/export/export_gguf.h"
#include "trainer/export/export_gguf_lora.h"
#include "trainer/export/export_hf.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

bool IsTaken(const std::string& path) {
  std::error_code error;
  return fs::exists(fs::symlink_status(path, error));
}

bool IsAdapterFormat(ExportConfig::Format format) {
  return format == ExportConfig::PEFT || format == ExportConfig::GGUF_LORA;
}

absl::Status CheckDtype(ExportConfig::Format format, ExportConfig::Dtype dtype) {
  if (IsAdapterFormat(format)) {
    if (dtype == ExportConfig::AS_STORED) return absl::OkStatus();
    return Error(ExitCode::kConfig, "export: adapters are written as they are stored; leave the dtype out");
  }
  if (format == ExportConfig::GGUF || (dtype != ExportConfig::Q8_0 && dtype != ExportConfig::Q4_0))
    return absl::OkStatus();
  return Error(ExitCode::kConfig, "export: the dtype ", ExportConfig::Dtype_Name(dtype),
               " is one of GGUF; choose the format GGUF, or FP32, BF16 or FP16");
}

// Merges the source's adapter, if that is what is wanted of it.
absl::Status UseAdapter(const ExportOptions& options, const std::vector<ModelFamily>& families, ModelSource* source) {
  if (source->adapter == nullptr) {
    if (!options.merge && !IsAdapterFormat(options.format)) return absl::OkStatus();
    return Error(ExitCode::kConfig, "export: ", source->description,
                 " has no adapter; give one with --adapter, or leave out ",
                 options.merge ? "--merge" : "the adapter's format");
  }
  const bool quantized_while_loading = source->model.has_quantization() && source->weights.quantized.empty();
  if (IsAdapterFormat(options.format)) {
    if (quantized_while_loading) source->model.clear_quantization();
    if (!options.merge) return absl::OkStatus();
    return Error(ExitCode::kConfig, "export: --merge is for the formats hf and gguf; an adapter's file is not merged");
  }
  if (!options.merge) {
    return Error(ExitCode::kConfig, "export: ", source->adapter->description,
                 " is an adapter; add --merge to write the base model with it, or choose --format peft or gguf-lora to "
                 "write it alone");
  }
  ASSIGN_OR_RETURN(DecoderSpec spec, SpecifyModel(source->model, families));
  const bool dequantized =
      source->model.has_quantization() && !(quantized_while_loading && options.merge_onto_original);
  const std::string record =
      absl::StrCat(source->adapter->description,
                   dequantized ? " onto the dequantized base that training saw, " : " onto the original base, ",
                   source->description);
  if (quantized_while_loading) {
    if (!options.merge_onto_original) source->weights = Requantized(source->weights, spec);
    source->model.clear_quantization();
    ASSIGN_OR_RETURN(spec, SpecifyModel(source->model, families));
  }
  ASSIGN_OR_RETURN(*source,
                   Merged(*source, source->adapter, spec, options.dtype == ExportConfig::AS_STORED, options.alive));
  source->merged = record;
  if (!options.without_weights) Info("merging ", record);
  return absl::OkStatus();
}

absl::Status Write(const ModelSource& source, const ExportOptions& options, const std::vector<ModelFamily>& families,
                   const std::string& folder) {
  ASSIGN_OR_RETURN(const DecoderSpec spec, SpecifyModel(source.model, families));
  switch (options.format) {
    case ExportConfig::HF:
      return WriteHfDirectory(source, options, folder);
    case ExportConfig::GGUF:
      return WriteGgufModel(source, options, families, folder);
    case ExportConfig::GGUF_LORA:
      return WriteGgufLora(source, families, fs::path(options.output).stem().string(), folder, options.alive);
    case ExportConfig::PEFT:
      return WritePeftDirectory(*source.adapter, spec, folder, options.alive);
  }
  TRIREME_CHECK(false, "a format without a writer");
}

// The format's output is one file, which its writer calls kGgufModelName in the folder it is given; else a folder.
bool IsOneFile(ExportConfig::Format format) {
  return format == ExportConfig::GGUF || format == ExportConfig::GGUF_LORA;
}

// What config.export asks for.
ExportOptions AtEnd(const RunConfig& config, const std::function<void()>& alive) {
  ExportOptions options;
  options.output = config.export_().output();
  options.format = config.export_().format();
  options.dtype = config.export_().dtype();
  options.merge = config.export_().merge();
  options.alive = alive;
  return options;
}

// Makes `folder`, has it filled, and removes it.
absl::Status TryIn(const std::string& folder, const std::function<absl::Status()>& fill) {
  absl::Status status = RemoveAll(folder);
  if (status.ok()) status = MakeDirectories(folder);
  if (status.ok()) status = fill();
  const absl::Status removed = RemoveAll(folder);
  return status.ok() ? removed : status;
}

std::string TemporaryFor(const std::string& output) {
  const int64_t now = std::chrono::system_clock::now().time_since_epoch().count();
  return absl::StrFormat("%s.tmp-%x-%x", output, now, ::getpid());
}

}  // namespace

absl::Status Export(const ExportOptions& options, const std::vector<ModelFamily>& families) {
  std::string output = options.output;
  while (output.size() > 1 && output.back() == '/') output.pop_back();
  if (output.empty()) return Error(ExitCode::kConfig, "export: no output; give one with --output");
  if (IsTaken(output))
    return Error(ExitCode::kConfig, "export: ", output, " exists already; remove it or choose another output");
  RETURN_IF_ERROR(CheckDtype(options.format, options.dtype));
  ASSIGN_OR_RETURN(ModelSource source, OpenModelSource(options.source, families, options.alive, options.averaged));
  if (!options.adapter.empty()) {
    ASSIGN_OR_RETURN(source.adapter, OpenAdapter(options.adapter));
    RETURN_IF_ERROR(UseRunText(source.adapter->text, &source));
  }
  RETURN_IF_ERROR(UseAdapter(options, families, &source));
  const std::string temporary = TemporaryFor(output);
  absl::Status status = MakeDirectories(temporary);
  if (status.ok()) status = Write(source, options, families, temporary);
  if (status.ok() && IsTaken(output)) status = Error(ExitCode::kStorage, "export: ", output, " has appeared meanwhile");
  const bool file = IsOneFile(options.format);
  if (status.ok()) status = RenameDurably(file ? absl::StrCat(temporary, "/", kGgufModelName) : temporary, output);
  if (file || !status.ok()) RemoveAll(temporary).IgnoreError();
  RETURN_IF_ERROR(status);
  Info("exported ", source.description, " to ", output);
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> ParseSize(const std::string& text) {
  const std::string upper = absl::AsciiStrToUpper(text);
  absl::string_view number = upper;
  double unit = 1;
  for (const auto& [suffix, factor] : {std::pair("TB", 1e12), {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1.0}}) {
    if (absl::ConsumeSuffix(&number, suffix)) {
      unit = factor;
      break;
    }
  }
  double value = 0;
  if (!absl::SimpleAtod(number, &value) || !(value * unit >= 1 && value * unit < 1e18))
    return Error(ExitCode::kConfig, "size ", text, ": give a number of bytes, as in 5GB or 500MB");
  return static_cast<uint64_t>(value * unit);
}

absl::Status CheckExport(const RunConfig& config, const std::vector<ModelFamily>& families) {
  if (!config.has_export_()) return absl::OkStatus();
  const std::string& output = config.export_().output();
  if (output.empty()) return Error(ExitCode::kConfig, "export.output: not set; give the folder or file to write");
  RETURN_IF_ERROR(CheckDtype(config.export_().format(), config.export_().dtype()));
  const bool adapter_format = IsAdapterFormat(config.export_().format());
  if (adapter_format && !config.has_adapter())
    return Error(ExitCode::kConfig, "export.format: is one of adapters, but the run trains none; set adapter");
  if (config.has_adapter() && !adapter_format && !config.export_().merge())
    return Error(ExitCode::kConfig,
                 "export: the run trains an adapter; set export.merge: true to write the base model "
                 "with it, or export.format: PEFT or GGUF_LORA (the run_dir gets a PEFT directory "
                 "in any case)");
  if (config.export_().merge() && (adapter_format || !config.has_adapter()))
    return Error(ExitCode::kConfig, "export.merge: is for runs with an adapter and the formats HF and GGUF; remove it");
  if (config.export_().format() == ExportConfig::GGUF_LORA)
    return Annotate(CheckGgufLora(config.model(), families, config.adapter()), "export.format: GGUF_LORA");
  if (adapter_format) return absl::OkStatus();
  if (config.export_().format() != ExportConfig::GGUF) return absl::OkStatus();
  return CheckGgufModel(config.model(), families, config.export_().dtype());
}

absl::Status CheckExportOutput(const RunConfig& config) {
  if (!config.has_export_() || !IsTaken(config.export_().output())) return absl::OkStatus();
  return Error(ExitCode::kConfig, "export.output: ", config.export_().output(),
               " exists already; remove it or choose another");
}

absl::Status TryWriting(const Recipe& recipe, const std::vector<ModelFamily>& families, const std::string& scratch,
                        const std::function<void()>& alive) {
  const RunConfig& config = recipe.config;
  const auto place = [&](const std::string& own, const char* name) {
    return scratch.empty() ? own : absl::StrCat(scratch, "/", name);
  };
  RETURN_IF_ERROR(CheckExport(config, families));
  RETURN_IF_ERROR(CheckExportOutput(config));
  absl::Status status = absl::OkStatus();
  if (recipe.engine.model.adapter != nullptr) {
    DecoderSpec plain = recipe.engine.model;
    plain.adapter = nullptr;
    const std::string folder = place(config.run_dir() + "/adapter.tmp-new", "adapter");
    status = TryIn(
        folder, [&] { return WritePeftDirectory(*FutureAdapter(config, recipe.engine.model), plain, folder, alive); });
  }
  if (status.ok() && config.has_export_()) {
    ExportOptions options = AtEnd(config, alive);
    options.without_weights = true;
    const std::string folder = place(TemporaryFor(options.output), "export");
    status = TryIn(folder, [&]() -> absl::Status {
      ASSIGN_OR_RETURN(ModelSource source, OpenFutureCheckpoint(config, recipe.engine.model, families, alive));
      RETURN_IF_ERROR(UseAdapter(options, families, &source));
      return Write(source, options, families, folder);
    });
  }
  return status.ok() ? status : Annotate(status, "what the run writes at its end was tried");
}

absl::Status SaveAdapter(const Recipe& recipe, int64_t step, Mesh& mesh, bool if_older) {
  if (recipe.engine.model.adapter == nullptr) return absl::OkStatus();
  const auto write = [&]() -> absl::Status {
    const std::string target = recipe.config.run_dir() + "/adapter", temporary = target + ".tmp-new",
                      old = target + ".tmp-old";
    const std::string checkpoint = CheckpointFolder(recipe.config.run_dir(), step);
    std::error_code error;
    const auto written = fs::last_write_time(fs::path(target) / kPeftConfigName, error);
    if (if_older && !error && written >= fs::last_write_time(fs::path(checkpoint) / "manifest.pb", error))
      return absl::OkStatus();
    ASSIGN_OR_RETURN(const auto adapter, OpenAdapter(checkpoint));
    DecoderSpec plain = recipe.engine.model;
    plain.adapter = nullptr;
    RETURN_IF_ERROR(RemoveAll(temporary));
    RETURN_IF_ERROR(MakeDirectories(temporary));
    RETURN_IF_ERROR(WritePeftDirectory(*adapter, plain, temporary, [&mesh] { mesh.log().Beat("saving the adapter"); }));
    RETURN_IF_ERROR(RemoveAll(old));
    if (IsTaken(target)) RETURN_IF_ERROR(RenameDurably(target, old));
    RETURN_IF_ERROR(RenameDurably(temporary, target));
    RETURN_IF_ERROR(RemoveAll(old));
    Info("the adapter of step ", step, " is in ", target);
    for (const std::string& refusal : VllmRefusals(*recipe.engine.model.adapter)) Warning("adapter: ", refusal);
    return absl::OkStatus();
  };
  const absl::Status written = mesh.control().rank() == 0 ? write() : absl::OkStatus();
  return Agree(mesh.control(), written);
}

absl::Status ExportAtEnd(const Recipe& recipe, int64_t step, const std::vector<ModelFamily>& families, Mesh& mesh) {
  if (!recipe.config.has_export_()) return absl::OkStatus();
  absl::Status status = absl::OkStatus();
  if (mesh.control().rank() == 0 && !IsTaken(recipe.config.export_().output())) {
    ExportOptions options = AtEnd(recipe.config, [&mesh] { mesh.log().Beat("exporting"); });
    options.source = CheckpointFolder(recipe.config.run_dir(), step);
    options.alive();
    status = Export(options, families);
  }
  return Agree(mesh.control(), status);
}

}  // namespace trireme
