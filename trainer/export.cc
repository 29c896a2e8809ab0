#include "trainer/export.h"

#include <absl/strings/ascii.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_format.h>
#include <absl/strings/strip.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>

#include "launch/file.h"
#include "launch/log.h"
#include "trainer/agreement.h"
#include "trainer/checkpointer.h"
#include "trainer/export_gguf.h"
#include "trainer/export_hf.h"
#include "trainer/export_source.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

bool Exists(const std::string& path) {
  std::error_code error;
  return fs::exists(fs::symlink_status(path, error));
}

absl::Status CheckDtype(ExportConfig::Format format, ExportConfig::Dtype dtype) {
  if (format == ExportConfig::GGUF || (dtype != ExportConfig::Q8_0 && dtype != ExportConfig::Q4_0))
    return absl::OkStatus();
  return Error(ExitCode::kConfig, "export: the dtype ", ExportConfig::Dtype_Name(dtype),
               " is one of GGUF; choose the format GGUF, or FP32, BF16 or FP16");
}

}  // namespace

absl::Status Export(const ExportOptions& options, const std::vector<ModelFamily>& families) {
  std::string output = options.output;
  while (output.size() > 1 && output.back() == '/') output.pop_back();
  if (output.empty()) return Error(ExitCode::kConfig, "export: no output; give one with --output");
  if (Exists(output))
    return Error(ExitCode::kConfig, "export: ", output, " exists already; remove it or choose another output");
  RETURN_IF_ERROR(CheckDtype(options.format, options.dtype));
  ASSIGN_OR_RETURN(const ExportSource source, OpenExportSource(options.source, families, options.alive));
  const bool gguf = options.format == ExportConfig::GGUF;
  const int64_t now = std::chrono::system_clock::now().time_since_epoch().count();
  const std::string temporary = absl::StrFormat("%s.tmp-%x-%x", output, now, ::getpid());
  absl::Status status = MakeDirectories(temporary);
  if (status.ok())
    status = gguf ? WriteGgufModel(source, options, temporary) : WriteHfDirectory(source, options, temporary);
  if (status.ok() && Exists(output)) status = Error(ExitCode::kStorage, "export: ", output, " has appeared meanwhile");
  if (status.ok()) status = RenameDurably(gguf ? absl::StrCat(temporary, "/", kGgufModelName) : temporary, output);
  if (gguf || !status.ok()) RemoveAll(temporary).IgnoreError();
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

absl::Status CheckExport(const RunConfig& config) {
  if (!config.has_export_()) return absl::OkStatus();
  const std::string& output = config.export_().output();
  if (output.empty()) return Error(ExitCode::kConfig, "export.output: not set; give the folder or file to write");
  if (Exists(output))
    return Error(ExitCode::kConfig, "export.output: ", output, " exists already; remove it or choose another");
  RETURN_IF_ERROR(CheckDtype(config.export_().format(), config.export_().dtype()));
  return config.export_().format() == ExportConfig::GGUF ? CheckGgufModel(config.model(), config.export_().dtype())
                                                         : absl::OkStatus();
}

absl::Status ExportAtEnd(const Recipe& recipe, int64_t step, const std::vector<ModelFamily>& families, Mesh& mesh) {
  if (!recipe.config.has_export_()) return absl::OkStatus();
  absl::Status status = absl::OkStatus();
  if (mesh.control().rank() == 0 && !Exists(recipe.config.export_().output())) {
    ExportOptions options;
    options.source = Checkpointer::FolderFor(recipe.config.run_dir(), step);
    options.output = recipe.config.export_().output();
    options.format = recipe.config.export_().format();
    options.dtype = recipe.config.export_().dtype();
    options.alive = [&mesh] { mesh.log().Beat("exporting"); };
    options.alive();
    status = Export(options, families);
  }
  return Agree(mesh.control(), status);
}

}  // namespace trireme
