#include "data/prepare/inspect.h"

#include <absl/strings/match.h>
#include <unistd.h>

#include <iostream>
#include <memory>
#include <sstream>
#include <string>

#include "configs/config_loader.h"
#include "data/prepare/inspect_conversations.h"
#include "launch/base/terminal_text.h"
#include "trainer/commands/commands.h"
#include "trainer/export/inspect_model.h"
#include "trainer/recipe/corpora.h"

namespace trireme {
namespace {

struct InspectFlags {
  std::string source;
  InspectCorpusOptions corpus;
  std::vector<std::string> overrides;
};

// One kind of SOURCE: how to tell it, and how to print it. The first that recognizes the path is used.
struct SourceKind {
  const char* name;
  bool (*recognizes)(const std::string& path);
  absl::Status (*inspect)(const InspectFlags& flags, const Extensions& extensions);
};

// Prints what `inspect` writes; the names and texts in it come from anywhere.
template <typename Inspect>
absl::Status Shown(const Inspect& inspect) {
  std::ostringstream out;
  const absl::Status status = inspect(out);
  std::cout << ForOutput(out.str());
  return status;
}

absl::Status InspectCorpusSource(const InspectFlags& flags, const Extensions&) {
  InspectCorpusOptions options = flags.corpus;
  options.path = flags.source;
  return Shown([&](std::ostream& out) { return InspectCorpus(options, out); });
}

absl::Status InspectModelSource(const InspectFlags& flags, const Extensions& extensions) {
  return Shown([&](std::ostream& out) { return InspectModel(flags.source, extensions.families, out); });
}

bool LooksLikeConfig(const std::string& path) {
  return absl::EndsWith(path, ".textproto") || absl::EndsWith(path, ".txtpb") || absl::EndsWith(path, ".pbtxt");
}

absl::Status InspectConfigSource(const InspectFlags& flags, const Extensions&) {
  ASSIGN_OR_RETURN(const RunConfig config, LoadConfig({flags.source}, flags.overrides));
  if (!config.data().has_conversations()) {
    return Error(ExitCode::kConfig, "inspect ", flags.source,
                 ": it has no data.conversations; give inspect the path of a data.source, or `trireme validate` the "
                 "config");
  }
  ASSIGN_OR_RETURN(const OpenedConversations opened, OpenConversationData(config));
  InspectConversationsOptions options;
  options.samples = flags.corpus.samples;
  options.seed = config.seed();
  options.color = isatty(STDOUT_FILENO) != 0;
  InspectConversations(opened.set, *opened.tokenizer, options, std::cout);
  return absl::OkStatus();
}

constexpr SourceKind kSourceKinds[] = {
    {"a config (.textproto)", LooksLikeConfig, InspectConfigSource},
    {"a model (run_dir, checkpoint step, Hugging Face directory, GGUF file)", LooksLikeModel, InspectModelSource},
    {"a corpus (folder, Megatron prefix, llm.c .bin)", LooksLikeCorpus, InspectCorpusSource},
};

absl::Status RunInspect(const InspectFlags& flags, const Extensions& extensions) {
  std::string known;
  for (const SourceKind& kind : kSourceKinds) {
    if (kind.recognizes(flags.source)) return kind.inspect(flags, extensions);
    absl::StrAppend(&known, known.empty() ? "" : "; ", kind.name);
  }
  return Error(ExitCode::kData, "inspect ", flags.source,
               ": it does not exist or is nothing known; known are: ", known);
}

}  // namespace

void AddInspectCommand(CLI::App& app, const Extensions& extensions, absl::Status* result) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* command = app.add_subcommand("inspect", "Say what a file or folder holds");
  command
      ->add_option("SOURCE", flags->source,
                   "A model (run_dir, checkpoint step, Hugging Face directory, GGUF file), a corpus (folder, "
                   "Megatron prefix, llm.c .bin file) or a config with data.conversations (.textproto)")
      ->required();
  command
      ->add_option("--samples", flags->corpus.samples,
                   "Show this many training windows of a corpus, or samples of a config")
      ->capture_default_str();
  command->add_option("--sequence-length", flags->corpus.sequence_length, "Corpus: tokens per window")
      ->capture_default_str();
  command->add_option("--seed", flags->corpus.seed, "Corpus: seed of the order of windows")->capture_default_str();
  command->add_option("--set", flags->overrides, "Config: override a field, as for train")->allow_extra_args(false);
  command->add_flag("--verify", flags->corpus.verify_checksums, "Corpus: read everything and compare checksums");
  command->callback([flags, &extensions, result] { *result = RunInspect(*flags, extensions); });
}

}  // namespace trireme
