// trainer/evaluate/generate.h
// Text from a model, token by token.
#ifndef TRIREME_TRAINER_EVALUATE_GENERATE_H_
#define TRIREME_TRAINER_EVALUATE_GENERATE_H_

#include <optional>
#include <string>
#include <vector>

#include "serving/generation.h"
#include "trainer/evaluate/session.h"

namespace trireme {

struct GenerateOptions {
  SessionOptions session;
  std::optional<std::string> prompt;
  std::vector<int64_t> prompt_ids;  // instead of a prompt: the ids as they are
  bool chat = false;                // the prompt is a user's message
  std::optional<std::string> system;
  int64_t max_tokens = 128;
  bool ignore_eos = false;
  bool print_ids = false;  // ids in place of text
  bool json = false;       // one line at the end in place of text
  SamplingOptions sampling;
};

// Prints the continuation on rank 0's standard output as it comes, and the rates at the end on standard error. Stops at
// the model's end-of-sequence ids, which are not printed.
absl::Status Generate(const GenerateOptions& options, const Extensions& extensions);

}  // namespace trireme

#endif  // TRIREME_TRAINER_EVALUATE_GENERATE_H_
