// data/pretokenizer/pretokenizer_regex.h
// Splitting by the regular expression a tokenizer.json brings, with PCRE2.
#ifndef TRIREME_DATA_PRETOKENIZER_PRETOKENIZER_REGEX_H_
#define TRIREME_DATA_PRETOKENIZER_PRETOKENIZER_REGEX_H_

#include <memory>
#include <string>

#include "data/pretokenizer/pretokenizer.h"

namespace trireme {

// Rewrites a pattern from the dialect of the reference (Oniguruma, Ruby syntax, Unicode 16) to PCRE2's. \s, \d, \p{L}
// and the other general categories become the code points that the reference means; PCRE2 must know Unicode 14 at
// least. Refuses constructs that the two engines read differently, such as \w, \b or intersections of classes.
absl::StatusOr<std::string> TranslateRegex(absl::string_view pattern);

// PCRE2's pattern of one character that the reference's "Punctuation" finds.
std::string PunctuationRegex();

// What happens to matches and to the text between them; the names of tokenizer.json.
enum class SplitBehavior { kIsolated, kRemoved, kContiguous, kMergedWithPrevious, kMergedWithNext };

class RegexSplitter : public Splitter {
 public:
  // `pattern` in the reference's dialect. `invert` swaps matches and the text between them.
  static absl::StatusOr<std::unique_ptr<Splitter>> Create(absl::string_view pattern, SplitBehavior behavior,
                                                          bool invert);
  static absl::StatusOr<std::unique_ptr<Splitter>> Punctuation(SplitBehavior behavior);
  ~RegexSplitter() override;

  // A pattern that exceeds PCRE2's limits on this text, which takes catastrophic backtracking, is an error (kData).
  absl::Status Split(absl::string_view text, PieceSink* sink) const override;

 private:
  struct Compiled;
  RegexSplitter(std::unique_ptr<Compiled> compiled, SplitBehavior behavior, bool invert);
  // `shown` is what messages call the pattern, `translated` is PCRE2's.
  static absl::StatusOr<std::unique_ptr<Splitter>> Compile(absl::string_view shown, const std::string& translated,
                                                           SplitBehavior behavior, bool invert);

  std::unique_ptr<Compiled> compiled_;
  SplitBehavior behavior_;
  bool invert_;
};

}  // namespace trireme

#endif  // TRIREME_DATA_PRETOKENIZER_PRETOKENIZER_REGEX_H_
