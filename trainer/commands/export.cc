#include "trainer/export.h"

#include <memory>

#include "trainer/commands.h"

namespace trireme {
namespace {

struct Flags {
  ExportOptions options;
  std::string format, dtype, shard_size;
};

absl::Status Run(Flags& flags, const Extensions& extensions) {
  if (flags.dtype == "f32") flags.options.dtype = ExportConfig::FP32;
  if (flags.dtype == "bf16") flags.options.dtype = ExportConfig::BF16;
  if (flags.dtype == "f16") flags.options.dtype = ExportConfig::FP16;
  ASSIGN_OR_RETURN(flags.options.shard_bytes, ParseSize(flags.shard_size));
  return ExportHf(flags.options, extensions.families);
}

}  // namespace

void AddExportCommand(CLI::App& app, const Extensions& extensions, absl::Status* result) {
  auto flags = std::make_shared<Flags>();
  flags->format = "hf";
  flags->shard_size = "5GB";
  CLI::App* command = app.add_subcommand("export", "Write a model as other software reads it; needs no mpirun");
  command
      ->add_option("SOURCE", flags->options.source,
                   "A run_dir, a checkpoint's step folder, or a Hugging Face directory")
      ->required();
  command->add_option("--format", flags->format, "hf: a Hugging Face model directory")
      ->check(CLI::IsMember({"hf"}))
      ->capture_default_str();
  command->add_option("--output", flags->options.output, "The folder to write; must not exist yet")->required();
  command->add_option("--dtype", flags->dtype, "Number format of the weights; default: as stored")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}));
  command->add_option("--shard-size", flags->shard_size, "Most bytes in one weights file")->capture_default_str();
  command->callback([flags, &extensions, result] { *result = Run(*flags, extensions); });
}

}  // namespace trireme
