#include "data/pretokenizer/pretokenizer_patterns.h"

#include "data/unicode/unicode.h"

namespace trireme {
namespace {

// Walks over text by character class. All methods take and return positions within [begin, end].
class Scanner {
 public:
  explicit Scanner(absl::string_view text) : end_(text.data() + text.size()), classes_(CharClasses::Get()) {}

  const char* end() const { return end_; }

  // Class of the character at p < end.
  CharClass ClassAt(const char* p, const char** next) const {
    const uint32_t c = DecodeUtf8(p, next);
    return classes_[c];
  }

  // End of the run of `wanted` characters that starts at p.
  const char* RunEnd(const char* p, CharClass wanted) const {
    const char* next;
    while (p < end_ && ClassAt(p, &next) == wanted) p = next;
    return p;
  }

  // Same; also tells where the last character of the run starts and where the last line break in it ends (null: none).
  const char* SpaceRunEnd(const char* p, const char** last, const char** after_line_break) const {
    const char* next;
    *last = p;
    *after_line_break = nullptr;
    while (p < end_ && ClassAt(p, &next) == CharClass::kSpace) {
      if (*p == '\r' || *p == '\n') *after_line_break = next;
      *last = p;
      p = next;
    }
    return p;
  }

  // Length of 's 't 're 've 'm 'll 'd at p, which holds an apostrophe; 0 when there is none of them. Ignoring case
  // includes the long s (U+017F), whose capital is S.
  int ContractionLength(const char* p, bool ignore_case) const {
    const char first = Letter(p + 1, ignore_case);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
    if (ignore_case && end_ - p >= 3 && p[1] == '\xC5' && p[2] == '\xBF') return 3;
    const char second = Letter(p + 2, ignore_case);
    if ((first == 'r' && second == 'e') || (first == 'v' && second == 'e') || (first == 'l' && second == 'l')) return 3;
    return 0;
  }

 private:
  char Letter(const char* p, bool ignore_case) const {
    if (p >= end_) return '\0';
    return ignore_case && *p >= 'A' && *p <= 'Z' ? static_cast<char>(*p - 'A' + 'a') : *p;
  }

  const char* end_;
  const CharClasses& classes_;
};

absl::string_view Between(const char* begin, const char* end) { return absl::string_view(begin, end - begin); }

// End of the piece that \s+(?!\S)|\s+ matches at a run [p, end) of spaces whose last character starts at `last`: a run
// leaves its last character to the word that follows, unless it is the only one or the text ends.
const char* SpacePieceEnd(const Scanner& scan, const char* p, const char* last, const char* end) {
  return end == scan.end() || last == p ? end : last;
}

}  // namespace

absl::Status Gpt2Splitter::Split(absl::string_view text, PieceSink* sink) const {
  const Scanner scan(text);
  const char* p = text.data();
  while (p < scan.end()) {
    const char* piece_end = nullptr;
    if (*p == '\'') {
      const int length = scan.ContractionLength(p, /*ignore_case=*/false);
      if (length > 0) piece_end = p + length;
    }
    if (piece_end == nullptr) {
      const char* body = *p == ' ' && p + 1 < scan.end() ? p + 1 : p;
      const char* next;
      CharClass kind = scan.ClassAt(body, &next);
      if (kind != CharClass::kSpace) {
        piece_end = scan.RunEnd(next, kind);
      } else {
        const char *last, *after_line_break;
        const char* run_end = scan.SpaceRunEnd(p, &last, &after_line_break);
        piece_end = SpacePieceEnd(scan, p, last, run_end);
      }
    }
    sink->OnPiece(Between(p, piece_end));
    p = piece_end;
  }
  return absl::OkStatus();
}

absl::Status Llama3Splitter::Split(absl::string_view text, PieceSink* sink) const {
  const Scanner scan(text);
  const char* p = text.data();
  // The end of ` ?[^\s\p{L}\p{N}]+[\r\n]*` whose first [^\s\p{L}\p{N}] is at `body`.
  auto symbols_end = [&scan](const char* body) {
    const char* end = scan.RunEnd(body, CharClass::kOther);
    while (end < scan.end() && (*end == '\r' || *end == '\n')) ++end;
    return end;
  };
  while (p < scan.end()) {
    const char* next;
    const char* piece_end;
    const CharClass kind = scan.ClassAt(p, &next);
    const char* after_next;
    const CharClass next_kind = next < scan.end() ? scan.ClassAt(next, &after_next) : CharClass::kSpace;
    const int contraction = *p == '\'' ? scan.ContractionLength(p, /*ignore_case=*/true) : 0;
    if (contraction > 0) {
      piece_end = p + contraction;
    } else if (kind == CharClass::kLetter) {
      piece_end = scan.RunEnd(next, CharClass::kLetter);
    } else if (kind == CharClass::kNumber) {
      piece_end = next;
      for (int digits = 1; digits < max_digits_ && piece_end < scan.end(); ++digits) {
        if (scan.ClassAt(piece_end, &next) != CharClass::kNumber) break;
        piece_end = next;
      }
    } else if (next_kind == CharClass::kLetter && *p != '\r' && *p != '\n') {
      piece_end = scan.RunEnd(next, CharClass::kLetter);
    } else if (kind == CharClass::kOther) {
      piece_end = symbols_end(p);
    } else if (*p == ' ' && next_kind == CharClass::kOther) {
      piece_end = symbols_end(next);
    } else {
      const char *last, *after_line_break;
      const char* run_end = scan.SpaceRunEnd(p, &last, &after_line_break);
      piece_end = after_line_break != nullptr ? after_line_break : SpacePieceEnd(scan, p, last, run_end);
    }
    sink->OnPiece(Between(p, piece_end));
    p = piece_end;
  }
  return absl::OkStatus();
}

absl::Status DigitsSplitter::Split(absl::string_view text, PieceSink* sink) const {
  const Scanner scan(text);
  const char* begin = text.data();
  const char* p = begin;
  const char* next;
  while (p < scan.end()) {
    if (scan.ClassAt(p, &next) != CharClass::kNumber) {
      p = next;
      continue;
    }
    if (begin < p) sink->OnPiece(Between(begin, p));
    const char* number_end = individual_ ? next : scan.RunEnd(next, CharClass::kNumber);
    sink->OnPiece(Between(p, number_end));
    begin = p = number_end;
  }
  if (begin < p) sink->OnPiece(Between(begin, p));
  return absl::OkStatus();
}

}  // namespace trireme
