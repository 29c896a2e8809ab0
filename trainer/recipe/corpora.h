// trainer/recipe/corpora.h
// A run's data, opened and checked: corpora that were prepared, or samples to fine-tune on.
#ifndef TRIREME_TRAINER_RECIPE_CORPORA_H_
#define TRIREME_TRAINER_RECIPE_CORPORA_H_

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "data/chat/conversations.h"
#include "data/corpus/corpus.h"
#include "data/sampling/sampler.h"
#include "models/weights/run_text.h"
#include "trainer/recipe/recipe.h"

namespace trireme {

struct Corpora {
  std::shared_ptr<const Sampler> train;
  std::shared_ptr<const Sampler> validation;  // null when no source has a validation split
  std::vector<std::string> digests;           // of each source
  // Digests of all that was read, with names for people. All ranks must have the same.
  std::vector<std::pair<std::string, std::string>> contents;
  CorpusFacts facts;
  double unigram_entropy = 0;   // of the only source, 0 otherwise. Unit: nat per token
  std::optional<RunText> text;  // what the data say about the finished model
};

// Opens every source of config.data, which must share one tokenizer, or config.data.conversations. Errors are kData or
// kConfig. split_by: how config.data.conversations.validation_fraction chooses samples.
absl::StatusOr<Corpora> OpenCorpora(const RunConfig& config, SplitBy split_by = SplitBy::kContent);

// How the run in config.run_dir chose its validation samples when it began: so it goes on, or it would be trained on
// other samples than before. kContent where no run began, or none that the choice matters to.
SplitBy SplitOfRun(const RunConfig& config);

// Looks whether an evaluation that the config asks for has something to evaluate on. Where it has not, that is a
// warning, and with checkpoint.keep_best an error (kConfig).
absl::Status CheckEvaluation(const RunConfig& config, const Corpora& corpora);

// Copies the tokenizer of config.data.source, which lies with the corpora, to run_dir (kKeptTokenizer). Called by rank
// 0.
absl::Status KeepTokenizer(const RunConfig& config);

// What config.data.conversations stands for, with the tokenizer it is read by (of its own field, else of model.from).
struct OpenedConversations {
  std::shared_ptr<const Tokenizer> tokenizer;
  ConversationSet set;
  std::vector<std::pair<std::string, std::string>> contents;  // of tokenizer and template, as Corpora has them
  RunText text;
};
absl::StatusOr<OpenedConversations> OpenConversationData(const RunConfig& config, SplitBy split_by = SplitBy::kContent);

}  // namespace trireme

#endif  // TRIREME_TRAINER_RECIPE_CORPORA_H_
