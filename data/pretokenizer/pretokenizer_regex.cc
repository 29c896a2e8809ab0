#include "data/pretokenizer/pretokenizer_regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <new>
#include <utility>

namespace trireme {

struct RegexSplitter::Compiled {
  pcre2_code* code = nullptr;
  std::string pattern;  // as messages show it: the reference's
  ~Compiled() { pcre2_code_free(code); }
};

namespace {

// One match after another, with the memory they need. Not thread-safe.
class Matcher {
 public:
  Matcher(const pcre2_code* code, const std::string& pattern, absl::string_view text)
      : code_(code), pattern_(pattern), text_(text), match_(pcre2_match_data_create_from_pattern(code, nullptr)) {
    if (match_ == nullptr) throw std::bad_alloc();
  }
  ~Matcher() { pcre2_match_data_free(match_); }
  Matcher(const Matcher&) = delete;
  Matcher& operator=(const Matcher&) = delete;

  // The first match at or after `start`; false when there is none. Errors are kData: it takes too much.
  absl::StatusOr<bool> Find(size_t start, size_t* begin, size_t* end) {
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text_.data());
    int result = pcre2_match(code_, subject, text_.size(), start, PCRE2_NO_UTF_CHECK, match_, nullptr);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) {  // the interpreter keeps its stack on the heap
      result = pcre2_match(code_, subject, text_.size(), start, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, match_, nullptr);
    }
    if (result == PCRE2_ERROR_NOMATCH) return false;
    if (result <= 0)
      return Error(ExitCode::kData, "tokenizer: the pattern ", pattern_,
                   " exceeds the regex engine's limits (PCRE2 error ", result, ") on a text of ", text_.size(),
                   " bytes; it backtracks too much: use a tokenizer with a simpler pattern, or shorter documents");
    const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(match_);
    *begin = offsets[0];
    *end = offsets[1];
    return true;
  }

 private:
  const pcre2_code* code_;
  const std::string& pattern_;
  absl::string_view text_;
  pcre2_match_data* match_;
};

}  // namespace

RegexSplitter::RegexSplitter(std::unique_ptr<Compiled> compiled, SplitBehavior behavior, bool invert)
    : compiled_(std::move(compiled)), behavior_(behavior), invert_(invert) {}
RegexSplitter::~RegexSplitter() = default;

absl::StatusOr<std::unique_ptr<Splitter>> RegexSplitter::Create(absl::string_view pattern, SplitBehavior behavior,
                                                                bool invert) {
  ASSIGN_OR_RETURN(const std::string translated, TranslateRegex(pattern));
  return Compile(pattern, translated, behavior, invert);
}

absl::StatusOr<std::unique_ptr<Splitter>> RegexSplitter::Punctuation(SplitBehavior behavior) {
  return Compile("of punctuation", PunctuationRegex(), behavior, /*invert=*/false);
}

absl::StatusOr<std::unique_ptr<Splitter>> RegexSplitter::Compile(absl::string_view shown, const std::string& translated,
                                                                 SplitBehavior behavior, bool invert) {
  auto compiled = std::make_unique<Compiled>();
  compiled->pattern = std::string(shown);
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context, 50);
  int error_code = 0;
  PCRE2_SIZE error_offset = 0;
  compiled->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                 PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error_code, &error_offset, context);
  pcre2_compile_context_free(context);
  if (compiled->code == nullptr) {
    unsigned char message[256] = "";
    pcre2_get_error_message(error_code, message, sizeof(message));
    return Error(ExitCode::kData, "the pattern ", shown, " does not compile: ", reinterpret_cast<const char*>(message));
  }
  uint32_t matches_empty = 0;
  pcre2_pattern_info(compiled->code, PCRE2_INFO_MATCHEMPTY, &matches_empty);
  if (matches_empty != 0)
    return Error(ExitCode::kData, "the pattern ", shown, " can match the empty string; that is not supported");
  pcre2_jit_compile(compiled->code, PCRE2_JIT_COMPLETE);  // without a JIT the interpreter does the same, slower
  return std::unique_ptr<Splitter>(new RegexSplitter(std::move(compiled), behavior, invert));
}

absl::Status RegexSplitter::Split(absl::string_view text, PieceSink* sink) const {
  Matcher matcher(compiled_->code, compiled_->pattern, text);
  size_t pending_begin = 0;  // a piece that may still grow: [pending_begin, pending_end)
  size_t pending_end = 0;
  bool previous_is_match = false;
  auto flush = [&] {
    if (pending_begin < pending_end) sink->OnPiece(text.substr(pending_begin, pending_end - pending_begin));
    pending_begin = pending_end;
  };
  // `is_match` after inversion. Spans arrive in order and cover the text.
  auto on_span = [&](size_t begin, size_t end, bool is_match) {
    if (begin == end) return;
    bool joins = false;  // the span before
    switch (behavior_) {
      case SplitBehavior::kIsolated:
      case SplitBehavior::kRemoved:
        break;
      case SplitBehavior::kContiguous:
        joins = is_match == previous_is_match;
        break;
      case SplitBehavior::kMergedWithPrevious:
        joins = is_match && !previous_is_match;
        break;
      case SplitBehavior::kMergedWithNext:
        joins = !is_match && previous_is_match;
        break;
    }
    if (!joins) flush();
    pending_end = end;
    if (is_match && behavior_ == SplitBehavior::kRemoved) pending_begin = end;
    previous_is_match = is_match;
  };
  size_t position = 0;
  size_t begin = 0, end = 0;
  while (position < text.size()) {
    ASSIGN_OR_RETURN(const bool found, matcher.Find(position, &begin, &end));
    if (!found) break;
    on_span(position, begin, invert_);
    on_span(begin, end, !invert_);
    position = end;
  }
  on_span(position, text.size(), invert_);
  flush();
  return absl::OkStatus();
}

}  // namespace trireme
