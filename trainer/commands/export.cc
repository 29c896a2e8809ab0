#include "trainer/export/export.h"

#include <memory>

#include "trainer/commands/commands.h"
#include "trainer/evaluate/merge_divergence.h"

namespace trireme {
namespace {

struct ExportFlags {
  ExportOptions options;
  std::string format, dtype, shard_size, quantize, onto = "trained";
};

absl::Status RunExport(ExportFlags& flags, const Extensions& extensions) {
  if (flags.dtype == "f32") flags.options.dtype = ExportConfig::FP32;
  if (flags.dtype == "bf16") flags.options.dtype = ExportConfig::BF16;
  if (flags.dtype == "f16") flags.options.dtype = ExportConfig::FP16;
  if (flags.dtype == "q8_0") flags.options.dtype = ExportConfig::Q8_0;
  if (flags.dtype == "q4_0") flags.options.dtype = ExportConfig::Q4_0;
  ASSIGN_OR_RETURN(flags.options.shard_bytes, ParseSize(flags.shard_size));
  if (flags.format == "gguf") flags.options.format = ExportConfig::GGUF;
  if (flags.format == "peft") flags.options.format = ExportConfig::PEFT;
  if (flags.format == "gguf-lora") flags.options.format = ExportConfig::GGUF_LORA;
  flags.options.quantize_nf4 = flags.quantize == "nf4";
  if (flags.options.quantize_nf4 && flags.options.format != ExportConfig::HF)
    return Error(ExitCode::kConfig,
                 "export: --quantize nf4 is bitsandbytes' format, for --format hf; GGUF has --dtype q4_0");
  flags.options.merge_onto_original = flags.onto == "original";
  RETURN_IF_ERROR(Export(flags.options, extensions.families));
  return flags.options.merge ? ReportMergeDivergence(flags.options, extensions) : absl::OkStatus();
}

}  // namespace

void AddExportCommand(CLI::App& app, const Extensions& extensions, absl::Status* result) {
  auto flags = std::make_shared<ExportFlags>();
  flags->format = "hf";
  flags->shard_size = "5GB";
  CLI::App* command = app.add_subcommand("export", "Write a model as other software reads it; needs no mpirun");
  command
      ->add_option("SOURCE", flags->options.source,
                   "A run_dir, a checkpoint's step folder, a Hugging Face directory or a GGUF file")
      ->required();
  command
      ->add_option("--format", flags->format,
                   "hf: a Hugging Face model directory; gguf: a file for llama.cpp; of an adapter "
                   "alone: peft, a PEFT directory; gguf-lora, a file for llama.cpp's --lora")
      ->transform(CLI::IsMember({"hf", "gguf", "peft", "gguf-lora"}, CLI::ignore_case))
      ->capture_default_str();
  command->add_option("--adapter", flags->options.adapter,
                      "An adapter to use with SOURCE: a PEFT directory, or a run_dir or checkpoint that trained one");
  command->add_flag("--merge", flags->options.merge,
                    "Add the adapter to the weights (hf, gguf); says how far the result is from base and adapter (KL)");
  command
      ->add_option(
          "--onto", flags->onto,
          "Of a base that the run quantized while loading: trained, the dequantized weights that training saw; "
          "original, the weights as they are stored")
      ->transform(CLI::IsMember({"trained", "original"}, CLI::ignore_case))
      ->capture_default_str();
  command->add_flag("--ema", flags->options.averaged,
                    "Of a run with ema: its averaged weights instead of its last ones");
  command->add_option("--output", flags->options.output, "The folder (hf) or file (gguf) to write; must not exist yet")
      ->required();
  command
      ->add_option("--dtype", flags->dtype, "Number format of the weights (q8_0, q4_0: gguf only); default: as stored")
      ->transform(CLI::IsMember({"f32", "bf16", "f16", "q8_0", "q4_0"}, CLI::ignore_case));
  command
      ->add_option("--quantize", flags->quantize,
                   "nf4: linear layers in 4 bits, as bitsandbytes stores them (hf); --dtype is that of the rest")
      ->transform(CLI::IsMember({"nf4"}, CLI::ignore_case));
  command->add_option("--shard-size", flags->shard_size, "Most bytes in one weights file (hf)")->capture_default_str();
  command->callback([flags, &extensions, result] { *result = RunExport(*flags, extensions); });
}

}  // namespace trireme
