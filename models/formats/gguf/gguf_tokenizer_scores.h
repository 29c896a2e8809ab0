// models/formats/gguf/gguf_tokenizer_scores.h
// Tokenizers in SentencePiece's manner as GGUF holds them: every token with a score, no merges.
#ifndef TRIREME_MODELS_FORMATS_GGUF_GGUF_TOKENIZER_SCORES_H_
#define TRIREME_MODELS_FORMATS_GGUF_GGUF_TOKENIZER_SCORES_H_

#include <absl/strings/string_view.h>

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "data/tokenizer/bpe_file.h"

namespace trireme {

// By id; ids without token have an empty one.
struct ScoredTokens {
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<int32_t> types;    // LLAMA_TOKEN_TYPE_*
  bool add_space_prefix = true;  // of the text
};

// From the contents of a tokenizer.model.
absl::StatusOr<ScoredTokens> ScoresOfSentencePiece(absl::string_view contents);
// From a tokenizer.json with byte_fallback, parsed before: the better a token's merges rank, the higher its score.
absl::StatusOr<ScoredTokens> ScoresOfJson(const nlohmann::json& root, const BpeFile& file);

// The other way: every cut of a token into two tokens, those of the highest scores first. `tokens` are UTF-8; an empty
// one is none. Pairs of ids.
absl::StatusOr<std::vector<std::pair<int32_t, int32_t>>> MergesOfScores(const std::vector<std::string>& tokens,
                                                                        const std::vector<float>& scores);

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_GGUF_GGUF_TOKENIZER_SCORES_H_
