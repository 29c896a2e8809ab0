// trainer/corpora.h
// A run's data, opened and checked: corpora that were prepared, or samples to fine-tune on.
#ifndef TRIREME_TRAINER_CORPORA_H_
#define TRIREME_TRAINER_CORPORA_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "data/conversations.h"
#include "data/corpus.h"
#include "data/sampler.h"
#include "trainer/recipe.h"

namespace trireme {

struct Corpora {
  std::shared_ptr<const Sampler> train;
  std::shared_ptr<const Sampler> validation;  // null when no source has a validation split
  std::vector<std::string> digests;           // of each source
  // Of all that was read, names for people with digests: what ranks must have the same of.
  std::vector<std::pair<std::string, std::string>> contents;
  CorpusFacts facts;
  double unigram_entropy = 0;  // of the only source, 0 otherwise. Unit: nat per token
};

// Opens every source of config.data, which must share one tokenizer, or config.data.conversations. Errors are kData or
// kConfig.
absl::StatusOr<Corpora> OpenCorpora(const RunConfig& config);

// That an evaluation which the config asks for has something to evaluate on: a warning, with checkpoint.keep_best an
// error (kConfig).
absl::Status CheckEvaluation(const RunConfig& config, const Corpora& corpora);

// What config.data.conversations stands for, with the tokenizer it is read by (of its own field, else of model.from).
struct OpenedConversations {
  std::shared_ptr<const Tokenizer> tokenizer;
  ConversationSet set;
  std::vector<std::pair<std::string, std::string>> contents;  // of tokenizer and template, as Corpora has them
};
absl::StatusOr<OpenedConversations> OpenConversationData(const RunConfig& config);

}  // namespace trireme

#endif  // TRIREME_TRAINER_CORPORA_H_
