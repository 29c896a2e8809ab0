#include "data/jinja/syntax/lexer.h"

#include <absl/strings/match.h>

#include <optional>

#include "data/jinja/syntax/python_text.h"
#include "data/unicode/unicode.h"

namespace trireme::jinja {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsHexDigit(char c) { return IsDigit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }
bool IsNameCharacter(char c) { return IsDigit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

// Line ends become \n, and the last one is dropped.
std::string Normalize(absl::string_view source) {
  std::string out;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n') continue;
    out.push_back(source[i] == '\r' ? '\n' : source[i]);
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  Lexer(absl::string_view source, const std::string& name) : source_(Normalize(source)), name_(name) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (at_ < source_.size()) RETURN_IF_ERROR(Next());
    Add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  template <typename... Args>
  absl::Status Fail(const Args&... args) const {
    return Error(ExitCode::kData, name_, ":", line_, ": ", args...);
  }

  bool Looking(absl::string_view text) const { return absl::StartsWith(Rest(), text); }
  absl::string_view Rest() const { return absl::string_view(source_).substr(at_); }
  void Add(TokenKind kind, std::string text) { tokens_.push_back({kind, line_, std::move(text)}); }

  // Moves on, counting lines.
  void Skip(size_t bytes) {
    for (size_t end = at_ + bytes; at_ < end; ++at_) line_ += source_[at_] == '\n';
  }
  void SkipSpace() { Skip(Rest().size() - StripLeft(Rest()).size()); }

  // Text up to the next tag, and the tag.
  absl::Status Next() {
    size_t tag = at_;
    while ((tag = source_.find('{', tag)) != std::string::npos) {
      const char next = tag + 1 < source_.size() ? source_[tag + 1] : '\0';
      if (next == '{' || next == '%' || next == '#') break;
      ++tag;
    }
    if (tag == std::string::npos) {
      const std::string rest(Rest());
      if (!rest.empty()) Add(TokenKind::kData, rest);
      Skip(rest.size());
      return absl::OkStatus();
    }
    const char type = source_[tag + 1];
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    const bool signed_tag = sign == '-' || sign == '+';
    AddText(absl::string_view(source_).substr(at_, tag - at_), signed_tag ? sign : '\0', type != '{');
    Skip(tag - at_);
    const size_t raw_begin = type == '%' ? RawTagEnd() : 0;
    Skip(signed_tag ? 3 : 2);
    if (raw_begin != 0) return Raw(raw_begin);
    if (type == '#') return Comment();
    Add(type == '%' ? TokenKind::kBlockBegin : TokenKind::kVariableBegin, "");
    return Expression(type == '%');
  }

  // Applies the white space control of the tag that follows to the text before it.
  void AddText(absl::string_view text, char sign, bool is_block) {
    if (sign == '-') {
      text = StripRight(text);
    } else if (sign != '+' && is_block) {
      const size_t line_end = text.rfind('\n');
      const size_t begin = line_end == absl::string_view::npos ? 0 : line_end + 1;
      if ((begin > 0 || line_starting_) && StripLeft(text.substr(begin)).empty()) text = text.substr(0, begin);
    }
    if (!text.empty()) Add(TokenKind::kData, std::string(text));
  }

  // Where the text of a {% raw %} that begins here does, or 0.
  size_t RawTagEnd() const {
    absl::string_view rest = Rest().substr(2);
    if (absl::StartsWith(rest, "-") || absl::StartsWith(rest, "+")) rest.remove_prefix(1);
    rest = StripLeft(rest);
    if (!absl::StartsWith(rest, "raw")) return 0;
    rest = StripLeft(rest.substr(3));
    if (absl::StartsWith(rest, "-%}")) return StripLeft(rest.substr(3)).data() - source_.data();
    return absl::StartsWith(rest, "%}") ? rest.data() + 2 - source_.data() : 0;
  }

  absl::Status Raw(size_t begin) {
    Skip(begin - at_);
    line_starting_ = source_[begin - 1] == '\n';
    for (size_t tag = at_; (tag = source_.find("{%", tag)) != std::string::npos; ++tag) {
      absl::string_view rest = absl::string_view(source_).substr(tag + 2);
      char sign = '\0';
      if (absl::StartsWith(rest, "-") || absl::StartsWith(rest, "+")) {
        sign = rest[0];
        rest.remove_prefix(1);
      }
      rest = StripLeft(rest);
      if (!absl::StartsWith(rest, "endraw")) continue;
      rest = StripLeft(rest.substr(6));
      if (!absl::StartsWith(rest, "%}") && !absl::StartsWith(rest, "+%}") && !absl::StartsWith(rest, "-%}")) continue;
      AddText(absl::string_view(source_).substr(at_, tag - at_), sign, /*is_block=*/true);
      Skip(rest.data() - source_.data() - at_);
      EndTag("%}", /*trims=*/true);
      return absl::OkStatus();
    }
    return Fail("Missing end of raw directive");
  }

  absl::Status Comment() {
    const size_t end = source_.find("#}", at_);
    if (end == std::string::npos) return Fail("Missing end of comment tag");
    const bool has_sign = end > at_ && (source_[end - 1] == '-' || source_[end - 1] == '+');
    Skip(end - at_ - (has_sign ? 1 : 0));
    EndTag("#}", /*trims=*/true);
    return absl::OkStatus();
  }

  // Reads an end of a tag that stands here, its sign included; false when there is none.
  bool EndTag(absl::string_view end, bool trims) {
    const bool strips = Looking(absl::StrCat("-", end)), keeps = trims && Looking(absl::StrCat("+", end));
    if (!strips && !keeps && !Looking(end)) return false;
    Skip(end.size() + (strips || keeps ? 1 : 0));
    if (strips) {
      SkipSpace();
    } else if (trims && !keeps && Looking("\n")) {
      Skip(1);
    }
    line_starting_ = source_[at_ - 1] == '\n';
    return true;
  }

  // What stands in a tag, to its end.
  absl::Status Expression(bool block) {
    std::vector<char> open;
    while (true) {
      SkipSpace();
      const int line = line_;
      if (open.empty() && EndTag(block ? "%}" : "}}", block)) {
        tokens_.push_back({block ? TokenKind::kBlockEnd : TokenKind::kVariableEnd, line, ""});
        return absl::OkStatus();
      }
      if (at_ >= source_.size()) return absl::OkStatus();  // the parser misses the end
      const char c = source_[at_];
      if (IsDigit(c)) {
        Number();
      } else if (IsNameCharacter(c)) {
        size_t end = at_;
        while (end < source_.size() && IsNameCharacter(source_[end])) ++end;
        if (end < source_.size() && (source_[end] & 0x80)) return Fail("names outside ASCII are not supported");
        Add(TokenKind::kName, source_.substr(at_, end - at_));
        Skip(end - at_);
      } else if (c == '"' || c == '\'') {
        RETURN_IF_ERROR(String(c));
      } else {
        RETURN_IF_ERROR(Operator(&open));
      }
    }
  }

  absl::Status Operator(std::vector<char>* open) {
    static constexpr absl::string_view kLong[] = {"//", "**", "==", "!=", ">=", "<="};
    for (const absl::string_view text : kLong) {
      if (!Looking(text)) continue;
      Add(TokenKind::kOperator, std::string(text));
      Skip(2);
      return absl::OkStatus();
    }
    const char c = source_[at_];
    if (absl::string_view("+-/*%~[](){}<>=.:|,;").find(c) == absl::string_view::npos) {
      if (c & 0x80) return Fail("characters outside ASCII in a tag are not supported");
      return Fail("unexpected char '", std::string(1, c), "'");
    }
    if (c == '(' || c == '[' || c == '{') open->push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
    if (c == ')' || c == ']' || c == '}') {
      if (open->empty() || open->back() != c) return Fail("unexpected '", std::string(1, c), "'");
      open->pop_back();
    }
    Add(TokenKind::kOperator, std::string(1, c));
    Skip(1);
    return absl::OkStatus();
  }

  // Length of \d+(_\d+)* (each underscore between digits) at `at`; 0: no digit there.
  template <typename Is>
  size_t Digits(size_t at, Is is) const {
    size_t end = at;
    while (end < source_.size() &&
           (is(source_[end]) || (source_[end] == '_' && end > at && end + 1 < source_.size() && is(source_[end + 1]))))
      ++end;
    return end - at;
  }

  void Number() {
    const bool after_point = at_ > 0 && source_[at_ - 1] == '.';
    size_t end = at_ + Digits(at_, IsDigit);
    bool is_float = false;
    if (!after_point) {
      size_t tail = end;
      if (tail < source_.size() && source_[tail] == '.' && Digits(tail + 1, IsDigit) > 0) {
        tail += 1 + Digits(tail + 1, IsDigit);
        is_float = true;
      }
      if (tail < source_.size() && (source_[tail] == 'e' || source_[tail] == 'E')) {
        const size_t sign = tail + 1 < source_.size() && (source_[tail + 1] == '+' || source_[tail + 1] == '-') ? 1 : 0;
        const size_t digits = Digits(tail + 1 + sign, IsDigit);
        if (digits > 0) {
          tail += 1 + sign + digits;
          is_float = true;
        }
      }
      if (is_float) end = tail;
    }
    if (!is_float && source_[at_] == '0') {
      // 0x1F, 0o17, 0b1, else zeros only.
      const char base = at_ + 1 < source_.size() ? static_cast<char>(source_[at_ + 1] | 0x20) : '\0';
      const auto is = [base](char c) {
        return base == 'x' ? IsHexDigit(c) : base == 'o' ? c >= '0' && c <= '7' : c == '0' || c == '1';
      };
      size_t digits = 0;
      if (base == 'x' || base == 'o' || base == 'b') {
        const size_t begin = at_ + 2 + (at_ + 2 < source_.size() && source_[at_ + 2] == '_' ? 1 : 0);
        digits = Digits(begin, is);
        if (digits > 0) digits += begin - at_;
      }
      end = digits > 0 ? at_ + digits : at_ + Digits(at_, [](char c) { return c == '0'; });
    }
    std::string text;
    for (size_t i = at_; i < end; ++i) {
      if (source_[i] != '_') text.push_back(source_[i]);
    }
    Add(is_float ? TokenKind::kFloat : TokenKind::kInteger, std::move(text));
    Skip(end - at_);
  }

  absl::Status String(char quote) {
    std::string text;
    size_t at = at_ + 1;
    for (;; ++at) {
      if (at >= source_.size())
        return Fail("unexpected char ", quote == '"' ? "'\"'" : "\"'\"", ": a string does not end");
      if (source_[at] == quote) break;
      if (source_[at] != '\\') {
        text.push_back(source_[at]);
        continue;
      }
      if (++at >= source_.size()) continue;
      RETURN_IF_ERROR(Escape(&at, &text));
    }
    Add(TokenKind::kString, std::move(text));
    Skip(at + 1 - at_);
    return absl::OkStatus();
  }

  // The escape whose letter stands at *at; leaves *at on its last character.
  absl::Status Escape(size_t* at, std::string* text) {
    static constexpr absl::string_view kLetters = "abfnrtv\\'\"", kMeanings = "\a\b\f\n\r\t\v\\'\"";
    const char c = source_[*at];
    if (c == '\n') return absl::OkStatus();
    if (c & 0x80) return Fail("a backslash before a character outside ASCII is not supported");
    if (const size_t found = kLetters.find(c); found != absl::string_view::npos) {
      text->push_back(kMeanings[found]);
      return absl::OkStatus();
    }
    if (c >= '0' && c <= '7') {
      uint32_t value = 0;
      size_t digits = 0;
      for (; digits < 3 && *at + digits < source_.size(); ++digits) {
        const char d = source_[*at + digits];
        if (d < '0' || d > '7') break;
        value = value * 8 + (d - '0');
      }
      *at += digits - 1;
      AppendUtf8(value, text);
      return absl::OkStatus();
    }
    if (c == 'N') return Fail("the escape \\N in a string is not supported");
    const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits == 0) {  // no escape: both characters stand for themselves
      text->push_back('\\');
      text->push_back(c);
      return absl::OkStatus();
    }
    uint32_t value = 0;
    for (size_t i = 1; i <= digits; ++i) {
      const char d = *at + i < source_.size() ? source_[*at + i] : '\0';
      if (!IsHexDigit(d)) return Fail("truncated \\", std::string(1, c), " escape");
      value = value << 4 | static_cast<uint32_t>(IsDigit(d) ? d - '0' : (d | 0x20) - 'a' + 10);
    }
    if (value > 0x10FFFF) return Fail("illegal Unicode character");
    if (value >= 0xD800 && value <= 0xDFFF) return Fail("surrogates written as escapes are not supported");
    *at += digits;
    AppendUtf8(value, text);
    return absl::OkStatus();
  }

  std::string source_;
  const std::string& name_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  // nothing but white space has to stand before a tag on this line
  std::vector<Token> tokens_;
};

}  // namespace

absl::StatusOr<std::vector<Token>> Tokenize(absl::string_view source, const std::string& name) {
  if (!IsValidUtf8(source)) return Error(ExitCode::kData, name, ": a template that is not UTF-8 is not supported");
  return Lexer(source, name).Run();
}

}  // namespace trireme::jinja
