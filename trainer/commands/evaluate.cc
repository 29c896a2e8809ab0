#include "trainer/evaluate/evaluate.h"

#include <memory>

#include "data/chat/conversation.h"
#include "trainer/commands/commands.h"

namespace trireme {

void AddEvaluateCommand(CLI::App& app, const Extensions& extensions, absl::Status* result) {
  struct Flags {
    EvaluateOptions options;
    std::string corpus, split = "validation";
    int32_t sequence_length = 0;
    bool document_mask = false, no_document_mask = false;
  };
  auto flags = std::make_shared<Flags>();
  EvaluateOptions& options = flags->options;
  options.session.micro_batch_size = 4;
  CLI::App* command =
      app.add_subcommand("evaluate", "A model's loss on a corpus, or its accuracy on questions with choices");
  AddSessionOptions(*command, &options.session);
  CLI::Option_group* what = command->add_option_group("What to measure");
  CLI::Option* corpus =
      what->add_option("--data", flags->corpus,
                       "A corpus, as data.source.path of a recipe, or samples to fine-tune on (.jsonl), all of them");
  what->add_option("--choices", options.choices,
                   R"(Questions, one a line: {"prompt": "...", "choices": ["...", "..."], "answer": 0})");
  what->require_option(1);
  command->add_option("--split", flags->split, "Of the corpus")
      ->check(CLI::IsMember({"validation", "train"}))
      ->capture_default_str()
      ->needs(corpus);
  command->add_option("--max-sequences", options.max_sequences, "Windows of the split to use; 0: all")
      ->check(NumberFrom(0, INT32_MAX, "a number from 0 on"))
      ->capture_default_str()
      ->needs(corpus);
  command
      ->add_option("--sequence-length", flags->sequence_length,
                   "Tokens per window; default: what the model is meant for, at most 1024")
      ->check(NumberFrom(1, INT32_MAX, "a number from 1 on"))
      ->needs(corpus);
  CLI::Option* masked =
      command
          ->add_flag("--document-mask", flags->document_mask,
                     "Attention stops at document boundaries; default: as in the run that trained the model")
          ->needs(corpus);
  command->add_flag("--no-document-mask", flags->no_document_mask, "Attention sees all of a window")
      ->needs(corpus)
      ->excludes(masked);
  command->add_flag("--json", options.json, "Print one JSON line");
  command->callback([flags, &extensions, result] {
    DataConfig& data = flags->options.session.data;
    const bool samples = LooksLikeSamples(flags->corpus);
    if (samples) {
      data.mutable_conversations()->add_path(flags->corpus);
    } else if (!flags->corpus.empty()) {
      data.add_source()->set_path(flags->corpus);
    }
    if (flags->sequence_length > 0) data.set_sequence_length(flags->sequence_length);
    if (flags->document_mask || flags->no_document_mask) data.set_document_mask(flags->document_mask);
    flags->options.train_split = samples || flags->split == "train";
    *result = Evaluate(flags->options, extensions);
  });
}

}  // namespace trireme
