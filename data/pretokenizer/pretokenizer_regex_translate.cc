#include <absl/strings/str_format.h>

#include "data/pretokenizer/pretokenizer_regex.h"
#include "data/unicode/unicode.h"
#include "data/unicode/unicode_classes.h"

namespace trireme {
namespace {

// Members of a class, as PCRE2 writes them between brackets.
std::string ClassBody(const CodePointRange* ranges, int count) {
  std::string body;
  for (int i = 0; i < count; ++i) absl::StrAppendFormat(&body, "\\x{%x}-\\x{%x}", ranges[i].first, ranges[i].last);
  return body;
}

// General categories; not C and Cn, whose members change with every version of Unicode.
bool IsCategory(absl::string_view name) {
  for (const absl::string_view category :
       {"M",  "P",  "S",  "Z",  "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc",
        "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf"}) {
    if (name == category) return true;
  }
  return false;
}

// What PCRE2 knows of a category, and what is newer than the oldest PCRE2 in use.
std::string CategoryBody(absl::string_view category) {
  std::string body = absl::StrCat("\\p{", category, "}");
  for (int i = 0; i < kNumNewerRanges; ++i) {
    if (absl::string_view(kNewerRanges[i].category).substr(0, category.size()) == category)
      body += ClassBody(&kNewerRanges[i].range, 1);
  }
  return body;
}

class Translator {
 public:
  explicit Translator(absl::string_view pattern) : pattern_(pattern) {}

  absl::StatusOr<std::string> Run() {
    if (pattern_.size() > 20000)
      return Error(ExitCode::kData, "a pattern of ", pattern_.size(), " bytes is longer than 20000");
    if (!IsValidUtf8(pattern_)) return Refuse("invalid UTF-8");
    while (position_ < pattern_.size()) {
      RETURN_IF_ERROR(class_depth_ > 0 ? ClassItem() : Item());
    }
    if (class_depth_ > 0) return Refuse("a class without ]");
    return std::move(out_);
  }

 private:
  absl::Status Refuse(absl::string_view what) const {
    return Error(ExitCode::kData, "the pattern ", pattern_, " uses ", what, " at byte ", position_,
                 ", which is not reproduced exactly");
  }
  bool Next(absl::string_view text) const { return pattern_.substr(position_, text.size()) == text; }
  void Copy(size_t count) {
    out_.append(pattern_.data() + position_, count);
    position_ += count;
  }
  // Writes `text` for the one character that is next.
  absl::Status Write(absl::string_view text) {
    out_.append(text.data(), text.size());
    ++position_;
    return absl::OkStatus();
  }

  absl::Status Item() {
    const char c = pattern_[position_];
    switch (c) {
      case '\\':
        return Escape();
      case '[':
        class_depth_ = 1;
        Copy(Next("[^") ? 2 : 1);
        if (position_ < pattern_.size() && pattern_[position_] == ']')
          return Refuse("] as the first member of a class");
        return absl::OkStatus();
      case '(':
        return Group();
      case '^':  // anchors are per line in Ruby syntax
        return Write(R"((?:\A|(?<=\n)(?!\z)))");
      case '$':
        return Write(R"((?=\n|\z))");
      case '{':
        return Interval();
      default:
        Copy(1);
        return absl::OkStatus();
    }
  }

  absl::Status Group() {
    if (!Next("(?")) {
      Copy(1);
      return absl::OkStatus();
    }
    for (const absl::string_view opening : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"}) {
      if (Next(opening)) {
        Copy(opening.size());
        return absl::OkStatus();
      }
    }
    return Refuse("a special group");
  }

  // {n}, {n,} and {n,m}. Ruby reads {n,m}+ and {n}? otherwise than Perl.
  absl::Status Interval() {
    const size_t close = pattern_.find('}', position_);
    if (close == absl::string_view::npos || close == position_ + 1) return Refuse("an unusual {");
    const absl::string_view inside = pattern_.substr(position_ + 1, close - position_ - 1);
    if (inside[0] < '0' || inside[0] > '9' || inside.find_first_not_of("0123456789,") != absl::string_view::npos) {
      return Refuse("an unusual {");
    }
    Copy(close + 1 - position_);
    if (Next("+") || Next("?")) return Refuse("a quantifier after {}");
    return absl::OkStatus();
  }

  absl::Status ClassItem() {
    const char c = pattern_[position_];
    if (c == ']' && class_depth_ == 1) {
      class_depth_ = 0;
      Copy(1);
      return absl::OkStatus();
    }
    if (c == '[' || c == ']') return NestedClass(c == '[' ? 1 : -1);
    if (Next("&&")) return Refuse("a class intersection");
    if (c == '\\') return Escape();
    Copy(1);
    return absl::OkStatus();
  }

  // A class within a class adds its members to it, so its brackets are left out; they are what tells a hyphen beside
  // them from one that makes a range.
  absl::Status NestedClass(int step) {
    for (const absl::string_view opening : {"[^", "[:", "[]"}) {
      if (Next(opening)) return Refuse("a nested class of a special form");
    }
    const bool hyphen_before = pattern_[position_ - 1] == '-';
    const bool hyphen_after = position_ + 1 < pattern_.size() && pattern_[position_ + 1] == '-';
    if (hyphen_before || hyphen_after) return Refuse("a hyphen beside a nested class");
    class_depth_ += step;
    ++position_;
    return absl::OkStatus();
  }

  // A backslash and what belongs to it, inside or outside a class.
  absl::Status Escape() {
    if (position_ + 1 == pattern_.size()) return Refuse("a lone backslash");
    const char c = pattern_[position_ + 1];
    if (c == 's' || c == 'S') {
      RETURN_IF_ERROR(Ranges(kSpaceRanges, std::size(kSpaceRanges), c == 'S'));
      position_ += 2;
      return absl::OkStatus();
    }
    if (c == 'd' || c == 'D') {
      RETURN_IF_ERROR(Members(CategoryBody("Nd"), c == 'D'));
      position_ += 2;
      return absl::OkStatus();
    }
    if (c == 'p' || c == 'P') return Property(c == 'P');
    const bool letter_or_digit = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (c == 'r' || c == 'n' || c == 't' || c == 'f' || (!letter_or_digit && (c & 0x80) == 0)) {
      Copy(2);
      return absl::OkStatus();
    }
    return Refuse(absl::StrCat("\\", absl::string_view(&c, 1)));
  }

  absl::Status Property(bool negated) {
    const size_t close = pattern_.find('}', position_);
    if (position_ + 2 >= pattern_.size() || pattern_[position_ + 2] != '{' || close == absl::string_view::npos) {
      return Refuse("an unusual \\p");
    }
    const absl::string_view name = pattern_.substr(position_ + 3, close - position_ - 3);
    if (name == "L") {
      RETURN_IF_ERROR(Ranges(kLetterRanges, kNumLetterRanges, negated));
    } else if (name == "N") {
      RETURN_IF_ERROR(Ranges(kNumberRanges, kNumNumberRanges, negated));
    } else if (IsCategory(name)) {
      RETURN_IF_ERROR(Members(CategoryBody(name), negated));
    } else {
      return Refuse(absl::StrCat("\\p{", name, "}"));
    }
    position_ = close + 1;
    return absl::OkStatus();
  }

  absl::Status Ranges(const CodePointRange* ranges, int count, bool negated) {
    return Members(ClassBody(ranges, count), negated);
  }

  // Writes class members, in brackets unless a class is open.
  absl::Status Members(const std::string& body, bool negated) {
    if (class_depth_ > 0) {
      if (negated) return Refuse("a negated property inside a class");
      out_ += body;
    } else {
      absl::StrAppend(&out_, negated ? "[^" : "[", body, "]");
    }
    return absl::OkStatus();
  }

  absl::string_view pattern_;
  size_t position_ = 0;
  int class_depth_ = 0;  // how many classes are open, each within the one before
  std::string out_;
};

}  // namespace

absl::StatusOr<std::string> TranslateRegex(absl::string_view pattern) { return Translator(pattern).Run(); }

std::string PunctuationRegex() { return absl::StrCat("[", ClassBody(kPunctuationRanges, kNumPunctuationRanges), "]"); }

}  // namespace trireme
