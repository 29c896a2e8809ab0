#include "trainer/export/export_gguf_lora.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>

#include "models/formats/gguf/gguf_config.h"
#include "models/formats/gguf/gguf_writer.h"
#include "trainer/export/export_gguf.h"

namespace trireme {
namespace {

// One of the two matrices of a module.
struct Factor {
  std::string parameter;  // "....lora_A.weight"
  bool is_b = false;
  double scale = 1;          // of this module, over the file's alpha / rank
  int64_t paired_heads = 0;  // as in GgufLayout
};

absl::StatusOr<at::Tensor> Values(const AdapterSource& adapter, const Factor& factor) {
  const SourceTensor& tensor = *adapter.Find(factor.parameter);
  ASSIGN_OR_RETURN(const at::Tensor stored, ReadWhole(adapter.read, tensor));
  at::Tensor values = stored.to(at::kFloat);
  if (!factor.is_b) return values;
  if (factor.scale != 1) values = values * factor.scale;
  if (factor.paired_heads == 0) return values;
  at::Tensor order = at::empty({tensor.rows()}, at::TensorOptions().dtype(at::kLong));
  for (int64_t row = 0; row < tensor.rows(); ++row)
    order.mutable_data_ptr<int64_t>()[row] = OwnRow(row, factor.paired_heads);
  return at::index_select(values, 0, order);
}

}  // namespace

absl::Status CheckGgufLora(const ModelConfig& model, const std::vector<ModelFamily>& families,
                           const AdapterConfig& adapter) {
  if (adapter.target_parameters_size() > 0)
    return Error(ExitCode::kConfig, "adapters of experts are not written for llama.cpp; merge them (format GGUF)");
  if (adapter.use_dora() || adapter.modules_to_save_size() > 0) {
    return Error(ExitCode::kConfig, adapter.use_dora() ? "DoRA's magnitudes" : "modules that are trained whole",
                 " have no place in llama.cpp's adapters; merge them (format GGUF)");
  }
  return CheckGgufModel(model, families, ExportConfig::FP32);
}

absl::Status WriteGgufLora(const ModelSource& source, const std::vector<ModelFamily>& families, const std::string& name,
                           const std::string& folder, const std::function<void()>& alive) {
  const AdapterSource& adapter = *source.adapter;
  ASSIGN_OR_RETURN(const DecoderSpec plain, SpecifyModel(source.model, families));
  ASSIGN_OR_RETURN(const DecoderSpec spec, Adapted(adapter, plain));
  RETURN_IF_ERROR(
      Annotate(CheckGgufLora(source.model, families, adapter.config), absl::StrCat("export: ", adapter.description)));
  ASSIGN_OR_RETURN(const GgufPlan plan, PlanGguf(source.model, families, name, GgufType::kF32));
  // One alpha stands for the file, each module's rank for itself: what differs goes into B.
  const double alpha = adapter.config.lora_alpha();
  std::vector<GgufTensor> tensors;
  std::vector<Factor> factors;
  for (const auto& [module, settings] : spec.adapter->modules) {
    const std::optional<size_t> base = GgufTensorOf(plan.layout, module + ".weight");
    if (!base.has_value())
      return Error(ExitCode::kConfig, "export: ", module,
                   " is no tensor of its own in GGUF files; use --format gguf --merge");
    const std::string& stored = plan.layout.table.stored[*base].name;
    for (const char* name_of : plan.layout.architecture->without_adapters) {
      if (absl::EndsWith(absl::StrCat(".", stored), absl::StrCat(".", name_of, ".weight")))
        return Error(ExitCode::kConfig, "export: ", module, ": llama.cpp applies no adapter to ", stored,
                     " of architecture ", plan.layout.architecture->name, "; use --format gguf --merge");
    }
    for (const bool is_b : {false, true}) {
      Factor factor;
      factor.is_b = is_b;
      factor.paired_heads = plan.layout.extras[*base].paired_heads;
      factor.parameter = module + (is_b ? ".lora_B.weight" : ".lora_A.weight");
      factor.scale = settings.scale / (alpha / static_cast<double>(settings.rank));
      GgufTensor tensor;
      tensor.name = stored + (is_b ? ".lora_b" : ".lora_a");
      tensor.shape = adapter.Find(factor.parameter)->shape;
      tensors.push_back(std::move(tensor));
      factors.push_back(std::move(factor));
    }
  }
  const GgufMetadata metadata = {{"general.architecture", std::string(plan.layout.architecture->name)},
                                 {"general.type", std::string("adapter")},
                                 {"adapter.type", std::string("lora")},
                                 {"general.name", name},
                                 {"general.file_type", static_cast<uint32_t>(0)},
                                 {"general.quantization_version", static_cast<uint32_t>(2)},
                                 {"adapter.lora.alpha", static_cast<float>(alpha)}};
  const std::string path = absl::StrCat(folder, "/", kGgufModelName);
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufWriter> writer, GgufWriter::Create(path, metadata, tensors));
  for (const Factor& factor : factors) {
    ASSIGN_OR_RETURN(const at::Tensor values, Values(adapter, factor));
    const at::Tensor contiguous = values.contiguous();
    RETURN_IF_ERROR(writer->Append(contiguous.const_data_ptr<float>(), contiguous.numel()));
    if (alive) alive();
  }
  RETURN_IF_ERROR(writer->Close().status());
  // What is on disk reads back as it was meant.
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(path));
  return file->metadata() == metadata && file->tensors().size() == tensors.size()
             ? absl::OkStatus()
             : Error(ExitCode::kStorage, "export: ", path, " does not read back as it was written");
}

}  // namespace trireme
