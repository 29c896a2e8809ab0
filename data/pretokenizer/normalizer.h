// data/pretokenizer/normalizer.h
// Rewriting text before it is split: "normalizer" of a tokenizer.json.
#ifndef TRIREME_DATA_PRETOKENIZER_NORMALIZER_H_
#define TRIREME_DATA_PRETOKENIZER_NORMALIZER_H_

#include <absl/strings/string_view.h>

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "launch/base/status.h"

namespace trireme {

// Thread-safe.
class Normalizer {
 public:
  // From null, NFC, Prepend, Replace of a literal text, and Sequences of them. Errors (ExitCode::kData) name what is
  // not reproduced exactly.
  static absl::StatusOr<Normalizer> FromJson(const nlohmann::json& json);

  // The normalizer of SentencePiece's model files that have no character map. It spells spaces as U+2581; before that,
  // `prefix` puts a space before the text, and `collapse` leaves one of several in a row and none at the ends.
  static Normalizer SentencePiece(bool prefix, bool collapse);

  // `text`, valid UTF-8, or a view of `*storage`, which must outlive the result.
  absl::string_view Apply(absl::string_view text, std::string* storage) const;

  bool applies_nfc() const;

 private:
  enum class Kind { kNfc, kPrepend, kReplace, kCollapse };
  struct Step {
    Kind kind;
    std::string pattern;  // of kReplace
    std::string content;
  };

  absl::Status Add(const nlohmann::json& json);

  std::vector<Step> steps_;
};

}  // namespace trireme

#endif  // TRIREME_DATA_PRETOKENIZER_NORMALIZER_H_
