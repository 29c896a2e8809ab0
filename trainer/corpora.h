// trainer/corpora.h
// A run's data sources, opened and checked against each other.
#ifndef TRIREME_TRAINER_CORPORA_H_
#define TRIREME_TRAINER_CORPORA_H_

#include <memory>
#include <string>
#include <vector>

#include "data/corpus.h"
#include "data/sampler.h"
#include "trainer/recipe.h"

namespace trireme {

struct Corpora {
  std::shared_ptr<const Sampler> train;
  std::shared_ptr<const Sampler> validation;  // null when no source has a validation split
  std::vector<std::string> digests;           // of each source
  CorpusFacts facts;
  double unigram_entropy = 0;  // of the only source, 0 otherwise. Unit: nat per token
};

// Opens every source of config.data. Sources must share one tokenizer. Errors are kData or kConfig.
absl::StatusOr<Corpora> OpenCorpora(const RunConfig& config);

}  // namespace trireme

#endif  // TRIREME_TRAINER_CORPORA_H_
