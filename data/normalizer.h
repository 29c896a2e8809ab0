// data/normalizer.h
// Rewriting text before it is split: "normalizer" of a tokenizer.json.
#ifndef TRIREME_DATA_NORMALIZER_H_
#define TRIREME_DATA_NORMALIZER_H_

#include <absl/strings/string_view.h>

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "launch/status.h"

namespace trireme {

// Thread-safe.
class Normalizer {
 public:
  // From null, NFC, Prepend, Replace of a literal text, and Sequences of them. Errors (ExitCode::kData) name what is
  // not reproduced exactly.
  static absl::StatusOr<Normalizer> FromJson(const nlohmann::json& json);

  // `text`, valid UTF-8, or a view of `*storage`, which must outlive the result.
  absl::string_view Apply(absl::string_view text, std::string* storage) const;

  bool applies_nfc() const;

 private:
  enum class Kind { kNfc, kPrepend, kReplace };
  struct Step {
    Kind kind;
    std::string pattern;  // of kReplace
    std::string content;
  };

  absl::Status Add(const nlohmann::json& json);

  std::vector<Step> steps_;
};

}  // namespace trireme

#endif  // TRIREME_DATA_NORMALIZER_H_
