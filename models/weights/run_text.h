// models/weights/run_text.h
// What a run's data settings say about the finished model's text: its tokenizer, its chat template, and where it stops.
#ifndef TRIREME_MODELS_WEIGHTS_RUN_TEXT_H_
#define TRIREME_MODELS_WEIGHTS_RUN_TEXT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "launch/base/file.h"
#include "launch/base/status.h"
#include "models/weights/checkpoint.pb.h"

namespace trireme {

// A run on corpora, whose tokenizer lies with the corpus, sets only `ends`: what stands after documents.
struct RunText {
  std::string tokenizer;          // a folder, ORG/NAME or GGUF file; "": the base model's
  Digest tokenizer_digest;        // of the one that was used; "": not known
  std::string chat_template;      // Jinja, in place of the tokenizer's own; "": that one
  std::vector<int64_t> ends;      // tokens that end trained turns and texts
  bool ends_by_template = false;  // turns were trained but `ends` is not known: the template tells
  bool split_by_content = true;   // how validation_fraction chose samples (data/chat/conversations.h)
};

// The record that checkpoints hold.
RunTextRecord RecordOf(const RunText& text);

// What a checkpoint says. An older one has no record: its config is followed, whose files must still be there (kData
// otherwise).
absl::StatusOr<RunText> RunTextOf(const CheckpointManifest& manifest);

// The text of a chat template that a setting gives: a file, or Jinja itself, which is told by its braces. Errors
// (kData): no such file, or it holds no Jinja.
absl::StatusOr<std::string> ReadGivenTemplate(const std::string& given);

}  // namespace trireme

#endif  // TRIREME_MODELS_WEIGHTS_RUN_TEXT_H_
