// data/pretokenizer/pretokenizer_patterns.h
// The two splitting patterns most models use, written by hand over own character classes: several times faster than a
// regular expression engine, and exact for letters newer than the engine's Unicode. The regex text is their
// specification; tests compare.
#ifndef TRIREME_DATA_PRETOKENIZER_PRETOKENIZER_PATTERNS_H_
#define TRIREME_DATA_PRETOKENIZER_PRETOKENIZER_PATTERNS_H_

#include "data/pretokenizer/pretokenizer.h"

namespace trireme {

inline constexpr char kGpt2Pattern[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
inline constexpr char kLlama3Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr char kQwen2Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// kGpt2Pattern, isolated.
class Gpt2Splitter : public Splitter {
 public:
  absl::Status Split(absl::string_view text, PieceSink* sink) const override;
};

// kLlama3Pattern (max_digits 3) or kQwen2Pattern (max_digits 1), isolated.
class Llama3Splitter : public Splitter {
 public:
  explicit Llama3Splitter(int max_digits) : max_digits_(max_digits) {}
  absl::Status Split(absl::string_view text, PieceSink* sink) const override;

 private:
  int max_digits_;
};

// Runs of numbers (category N), or each of them alone, become pieces of their own.
class DigitsSplitter : public Splitter {
 public:
  explicit DigitsSplitter(bool individual) : individual_(individual) {}
  absl::Status Split(absl::string_view text, PieceSink* sink) const override;

 private:
  bool individual_;
};

}  // namespace trireme

#endif  // TRIREME_DATA_PRETOKENIZER_PRETOKENIZER_PATTERNS_H_
