// data/pretokenizer.h
// Cuts text into the pieces that byte-pair merges never cross.
#ifndef TRIREME_DATA_PRETOKENIZER_H_
#define TRIREME_DATA_PRETOKENIZER_H_

#include <absl/strings/string_view.h>

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "launch/status.h"

namespace trireme {

// Receives pieces in order. A piece is valid during the call only, and never empty.
class PieceSink {
 public:
  virtual ~PieceSink() = default;
  virtual void OnPiece(absl::string_view piece) = 0;
};

// One step of splitting. Thread-safe.
class Splitter {
 public:
  virtual ~Splitter() = default;
  // Cuts `text`, valid UTF-8 and not empty, into pieces for `sink`.
  virtual void Split(absl::string_view text, PieceSink* sink) const = 0;
};

// All steps of a tokenizer, each splitting the pieces of the one before.
class PreTokenizer {
 public:
  // From "pre_tokenizer" of a tokenizer.json: ByteLevel, Split, Digits, and Sequences of them that end in ByteLevel.
  // Errors (ExitCode::kData) name the construct that is not reproduced exactly.
  static absl::StatusOr<PreTokenizer> FromJson(const nlohmann::json& json);

  // `text` must be valid UTF-8.
  void Split(absl::string_view text, PieceSink* sink) const;

 private:
  std::vector<std::unique_ptr<Splitter>> steps_;
};

}  // namespace trireme

#endif  // TRIREME_DATA_PRETOKENIZER_H_
