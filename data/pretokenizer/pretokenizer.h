// data/pretokenizer/pretokenizer.h
// Cuts text into the pieces that byte-pair merges never cross.
#ifndef TRIREME_DATA_PRETOKENIZER_PRETOKENIZER_H_
#define TRIREME_DATA_PRETOKENIZER_PRETOKENIZER_H_

#include <absl/strings/string_view.h>

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "launch/base/status.h"

namespace trireme {

// Receives pieces in order. A piece is valid during the call only, and never empty.
class PieceSink {
 public:
  virtual ~PieceSink() = default;
  virtual void OnPiece(absl::string_view piece) = 0;
};

struct Metaspace;

// One step of splitting. Thread-safe.
class Splitter {
 public:
  virtual ~Splitter() = default;
  // Cuts `text`, valid UTF-8 and not empty, into pieces for `sink`. After an error the sink has had a part of them.
  virtual absl::Status Split(absl::string_view text, PieceSink* sink) const = 0;
};

// All steps of a tokenizer, each splitting the pieces of the one before.
class PreTokenizer {
 public:
  PreTokenizer();
  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;
  ~PreTokenizer();

  // From "pre_tokenizer" of a tokenizer.json: null, ByteLevel, Split, Digits, Punctuation, Sequences of them, and
  // Metaspace. Steps after ByteLevel see bytes as it spells them. Errors (ExitCode::kData) name the construct that is
  // not reproduced exactly.
  static absl::StatusOr<PreTokenizer> FromJson(const nlohmann::json& json);

  // Whether ByteLevel is among the steps, which makes tokens spell bytes. Only then may pieces end inside a character.
  bool byte_level() const { return byte_level_; }

  // Adds a cut before every U+2581 that follows another character: many pieces instead of one, for models whose merges
  // never join across that place.
  void CutBeforeMetaspaces();

  // `text` must be valid UTF-8. `at_start`: it begins the whole text. Errors are kData: a pattern from the file that
  // this text is too hard for; the sink has had a part of the pieces then.
  absl::Status Split(absl::string_view text, bool at_start, PieceSink* sink) const;

 private:
  std::unique_ptr<Metaspace> metaspace_;  // may be null; comes first
  bool byte_level_ = false;
  std::vector<std::unique_ptr<Splitter>> steps_;
};

}  // namespace trireme

#endif  // TRIREME_DATA_PRETOKENIZER_PRETOKENIZER_H_
