#include "trainer/corpora.h"

#include <algorithm>

namespace trireme {

absl::StatusOr<Corpora> OpenCorpora(const RunConfig& config) {
  const DataConfig& data = config.data();
  if (data.source_size() == 0)
    return Error(
        ExitCode::kConfig,
        "data.source: none given; write data { source { path: \"DIR\" } } with a folder from `trireme prepare`");
  if (data.sequence_length() < 1)
    return Error(ExitCode::kConfig, "data.sequence_length: not set; give tokens per sequence");
  Corpora corpora;
  std::vector<std::shared_ptr<const TokenStream>> train, validation;
  std::vector<double> train_weights, validation_weights;
  std::string tokenizer_digest, first_path;
  for (const DataSource& source : data.source()) {
    CorpusOptions options;
    options.verify_checksums = data.verify_checksums();
    options.vocab_size = config.model().vocab_size();
    ASSIGN_OR_RETURN(Corpus corpus, OpenCorpus(source.path(), options));
    if (corpus.manifest.has_value()) {
      const CorpusManifest& manifest = *corpus.manifest;
      if (first_path.empty()) {
        first_path = source.path();
        tokenizer_digest = manifest.tokenizer_digest();
      } else if (manifest.tokenizer_digest() != tokenizer_digest) {
        return Error(ExitCode::kData, "data.source: ", first_path, " and ", source.path(),
                     " were made with different tokenizers; prepare them with the same one");
      }
      corpora.facts.vocab_size = std::max<int64_t>(corpora.facts.vocab_size, manifest.vocab_size());
      if (data.source_size() == 1) corpora.unigram_entropy = manifest.unigram_entropy();
    }
    corpora.digests.push_back(corpus.digest);
    train.push_back(corpus.train);
    train_weights.push_back(source.weight());
    // A validation split shorter than one window has nothing to evaluate.
    if (corpus.validation != nullptr && corpus.validation->num_tokens() > data.sequence_length()) {
      validation.push_back(corpus.validation);
      validation_weights.push_back(source.weight());
    }
  }
  ASSIGN_OR_RETURN(corpora.train,
                   Sampler::Create(train, train_weights, data.sequence_length(), config.seed(), /*shuffle=*/true));
  if (!validation.empty()) {
    ASSIGN_OR_RETURN(corpora.validation, Sampler::Create(validation, validation_weights, data.sequence_length(),
                                                         config.seed(), /*shuffle=*/false));
  }
  corpora.facts.num_windows = corpora.train->num_windows();
  return corpora;
}

}  // namespace trireme
