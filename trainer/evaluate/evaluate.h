// trainer/evaluate/evaluate.h
// How good a model is: on a corpus, and on questions with choices.
#ifndef TRIREME_TRAINER_EVALUATE_EVALUATE_H_
#define TRIREME_TRAINER_EVALUATE_EVALUATE_H_

#include <string>
#include <vector>

#include "trainer/evaluate/session.h"

namespace trireme {

struct EvaluateOptions {
  SessionOptions session;
  bool train_split = false;   // of the corpus; else validation
  int64_t max_sequences = 0;  // windows of the split; 0: all
  std::string choices;        // a file for ReadQuestions(); "": the corpus of session.data is what counts
  bool json = false;          // one JSON line in place of a sentence
};

// Prints on rank 0's standard output. Of a corpus: the mean loss per token (nat), perplexity and, where a tokenizer is
// at hand, bits per byte of text (the token between documents is no text). Of questions: how many the model answers
// right, see ScoreQuestions().
absl::Status Evaluate(const EvaluateOptions& options, const Extensions& extensions);

struct Question {
  std::string prompt;
  std::vector<std::string> choices;
  int64_t answer = 0;  // index of the right one
};

// One JSON object a line: {"prompt": "...", "choices": ["...", ...], "answer": 0}; "question" does for "prompt". Errors
// are kData and name the line.
absl::StatusOr<std::vector<Question>> ReadQuestions(const std::string& path);

// The prompt without the white space at its end, and that white space with the choice; a space where both have none.
std::pair<std::string, std::string> JoinChoice(const std::string& prompt, const std::string& choice);

// The log-likelihood of each choice behind its prompt in nat, summed over its tokens. The result is the same on all
// ranks. Collective.
absl::StatusOr<std::vector<std::vector<double>>> ScoreQuestions(Session& session,
                                                                const std::vector<Question>& questions);

}  // namespace trireme

#endif  // TRIREME_TRAINER_EVALUATE_EVALUATE_H_
