// models/formats/gguf/gguf_splits.h
// The splitting rules that llama.cpp knows, each by a name (tokenizer.ggml.pre).
#ifndef TRIREME_MODELS_FORMATS_GGUF_GGUF_SPLITS_H_
#define TRIREME_MODELS_FORMATS_GGUF_GGUF_SPLITS_H_

#include <absl/strings/string_view.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launch/base/status.h"

namespace trireme {

struct GgufSplit {
  // Which numbers no merge may join, because llama.cpp leaves them together where the published rules cut.
  enum class Numbers { kAny, kNoTwoDigits, kNotWithOthers };

  std::vector<const char*> names;  // the first is written; all are read, they mean the same there
  std::vector<std::string> steps;  // as SplitSteps() has them: the rules of published tokenizers
  bool ignore_merges = false;      // whole words come before merging
  bool nfc = false;                // published tokenizers compose characters first, which llama.cpp does not
  Numbers numbers = Numbers::kAny;
  std::string differs = {};  // text that llama.cpp cuts otherwise; "": none
};

const std::vector<GgufSplit>& GgufSplits();

// Null where there is no such name.
const GgufSplit* FindGgufSplit(absl::string_view name);

// A byte-level "pre_tokenizer" of a tokenizer.json, which data/tokenizer accepts, as patterns of which each isolates
// what it matches in the pieces of the one before. An empty one stands where ByteLevel does when steps follow it. What
// has no such form is "?", which no rule has. An error where every text is to begin with a space.
absl::StatusOr<std::vector<std::string>> SplitSteps(const nlohmann::json& pre_tokenizer);

// And back, with the constructs that published files have.
nlohmann::ordered_json PreTokenizerOfSteps(const std::vector<std::string>& steps);

// A token that shows that llama.cpp splits this vocabulary otherwise: one that a merge makes and that joins what
// `numbers` keeps apart; "": none. `merges`: "a b", each.
std::string JoinedNumbers(const std::vector<std::string>& merges, GgufSplit::Numbers numbers);

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_GGUF_GGUF_SPLITS_H_
