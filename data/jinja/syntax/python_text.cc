#include "data/jinja/syntax/python_text.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "data/unicode/unicode.h"
#include "data/unicode/unicode_ranges.h"

namespace trireme::jinja {
namespace {

bool InRanges(const CodePointRange* ranges, size_t count, uint32_t code_point) {
  const CodePointRange* found =
      std::upper_bound(ranges, ranges + count, code_point,
                       [](uint32_t value, const CodePointRange& range) { return value < range.first; });
  return found != ranges && code_point <= found[-1].last;
}

uint32_t At(absl::string_view text, size_t at, size_t* next) {
  const char* end;
  const uint32_t code_point = DecodeUtf8(text.data() + at, &end);
  *next = end - text.data();
  return code_point;
}

// Where the code point that ends at `end` begins.
size_t Before(absl::string_view text, size_t end) {
  do --end;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80);
  return end;
}

bool Strips(uint32_t code_point, const std::optional<std::string>& characters) {
  if (!characters.has_value()) return IsSpace(code_point);
  for (size_t at = 0; at < characters->size();) {
    if (At(*characters, at, &at) == code_point) return true;
  }
  return false;
}

bool IsLineEnd(uint32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

char Lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }
char Upper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; }
bool IsAsciiLetter(char c) { return Lower(c) >= 'a' && Lower(c) <= 'z'; }

void AppendHex(uint32_t value, int digits, std::string* out) {
  for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) out->push_back("0123456789abcdef"[value >> shift & 15]);
}

}  // namespace

bool IsAscii(absl::string_view text) {
  return std::none_of(text.begin(), text.end(), [](char c) { return (c & 0x80) != 0; });
}

bool IsSpace(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

size_t CodePoints(absl::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

size_t ByteOffset(absl::string_view text, size_t index) {
  size_t at = 0;
  for (; index > 0 && at < text.size(); --index) At(text, at, &at);
  return at;
}

absl::string_view StripLeft(absl::string_view text, const std::optional<std::string>& characters) {
  size_t at = 0;
  while (at < text.size()) {
    size_t next;
    if (!Strips(At(text, at, &next), characters)) break;
    at = next;
  }
  return text.substr(at);
}

absl::string_view StripRight(absl::string_view text, const std::optional<std::string>& characters) {
  size_t end = text.size();
  while (end > 0) {
    const size_t begin = Before(text, end);
    size_t next;
    if (!Strips(At(text, begin, &next), characters)) break;
    end = begin;
  }
  return text.substr(0, end);
}

std::vector<absl::string_view> SplitWhitespace(absl::string_view text, int64_t max_splits) {
  std::vector<absl::string_view> parts;
  for (text = StripLeft(text); !text.empty(); text = StripLeft(text)) {
    if (max_splits >= 0 && static_cast<int64_t>(parts.size()) == max_splits) {
      parts.push_back(text);
      break;
    }
    size_t end = 0, next = 0;
    while (end < text.size() && !IsSpace(At(text, end, &next))) end = next;
    parts.push_back(text.substr(0, end));
    text.remove_prefix(end);
  }
  return parts;
}

std::vector<absl::string_view> SplitWhitespaceFromRight(absl::string_view text, int64_t max_splits) {
  std::vector<absl::string_view> parts;
  for (text = StripRight(text); !text.empty(); text = StripRight(text)) {
    if (max_splits >= 0 && static_cast<int64_t>(parts.size()) == max_splits) {
      parts.push_back(text);
      break;
    }
    size_t begin = text.size(), next = 0;
    while (begin > 0 && !IsSpace(At(text, Before(text, begin), &next))) begin = Before(text, begin);
    parts.push_back(text.substr(begin));
    text.remove_suffix(text.size() - begin);
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<absl::string_view> Split(absl::string_view text, absl::string_view separator, int64_t max_splits) {
  std::vector<absl::string_view> parts;
  while (max_splits < 0 || static_cast<int64_t>(parts.size()) < max_splits) {
    const size_t at = text.find(separator);
    if (at == absl::string_view::npos) break;
    parts.push_back(text.substr(0, at));
    text.remove_prefix(at + separator.size());
  }
  parts.push_back(text);
  return parts;
}

std::vector<absl::string_view> SplitFromRight(absl::string_view text, absl::string_view separator, int64_t max_splits) {
  std::vector<absl::string_view> parts;
  while (max_splits < 0 || static_cast<int64_t>(parts.size()) < max_splits) {
    const size_t at = text.rfind(separator);
    if (at == absl::string_view::npos) break;
    parts.push_back(text.substr(at + separator.size()));
    text = text.substr(0, at);
  }
  parts.push_back(text);
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<absl::string_view> SplitLines(absl::string_view text, bool keep_ends) {
  std::vector<absl::string_view> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    size_t next;
    const uint32_t c = At(text, at, &next);
    if (IsLineEnd(c)) {
      if (c == '\r' && next < text.size() && text[next] == '\n') ++next;
      lines.push_back(text.substr(begin, (keep_ends ? next : at) - begin));
      begin = next;
    }
    at = next;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

std::string Replace(absl::string_view text, absl::string_view from, absl::string_view to, int64_t count) {
  std::string out;
  if (from.empty()) {  // between all characters and at both ends
    size_t at = 0;
    for (int64_t done = 0; count < 0 || done < count; ++done) {
      out.append(to.data(), to.size());
      if (at == text.size()) break;
      size_t next;
      At(text, at, &next);
      out.append(text.data() + at, next - at);
      at = next;
    }
    return out.append(text.data() + at, text.size() - at);
  }
  for (int64_t done = 0; count < 0 || done < count; ++done) {
    const size_t at = text.find(from);
    if (at == absl::string_view::npos) break;
    out.append(text.data(), at).append(to.data(), to.size());
    text.remove_prefix(at + from.size());
  }
  return out.append(text.data(), text.size());
}

bool HasCasedBeyondAscii(absl::string_view text) {
  if (IsAscii(text)) return false;
  for (size_t at = 0; at < text.size();) {
    if (InRanges(kCased, kNumCased, At(text, at, &at))) return true;
  }
  return false;
}

std::string AsciiLower(absl::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), Lower);
  return out;
}

std::string AsciiUpper(absl::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), Upper);
  return out;
}

std::string AsciiCapitalize(absl::string_view text) {
  std::string out = AsciiLower(text);
  if (!out.empty()) out[0] = Upper(out[0]);
  return out;
}

std::string AsciiTitle(absl::string_view text) {
  std::string out(text);
  bool within = false;
  for (char& c : out) {
    c = within ? Lower(c) : Upper(c);
    within = IsAsciiLetter(c);
  }
  return out;
}

std::string EscapeHtml(absl::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out.push_back(c);
    }
  }
  return out;
}

std::string ReprText(absl::string_view text) {
  const char quote =
      text.find('\'') != absl::string_view::npos && text.find('"') == absl::string_view::npos ? '"' : '\'';
  std::string out(1, quote);
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const uint32_t c = At(text, at, &at);
    if (c == static_cast<uint32_t>(quote) || c == '\\') {
      out.push_back('\\');
      out.push_back(static_cast<char>(c));
    } else if (c == '\n' || c == '\r' || c == '\t') {
      out += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else if (c < 0x20 || c == 0x7F || (c >= 0x80 && InRanges(kUnprintable, kNumUnprintable, c))) {
      const int digits = c <= 0xFF ? 2 : c <= 0xFFFF ? 4 : 8;
      out += digits == 2 ? "\\x" : digits == 4 ? "\\u" : "\\U";
      AppendHex(c, digits, &out);
    } else {
      out.append(text.data() + begin, at - begin);
    }
  }
  out.push_back(quote);
  return out;
}

std::string ReprFloat(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  // The shortest digits that give the value back: D.DDDe+XX.
  char buffer[40];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific).ptr;
  const absl::string_view scientific(buffer, end - buffer);
  const size_t e = scientific.find('e');
  std::string digits(scientific.substr(0, e));
  int exponent = 0;
  const char* first = buffer + e + 1;
  std::from_chars(*first == '+' ? first + 1 : first, end, exponent);
  std::string sign;
  if (digits[0] == '-') {
    sign = "-";
    digits.erase(0, 1);
  }
  if (digits.size() > 1) digits.erase(1, 1);  // the point
  if (exponent < -4 || exponent >= 16) {
    std::string out = sign + digits.substr(0, 1);
    if (digits.size() > 1) out += "." + digits.substr(1);
    const int size = std::abs(exponent);
    return absl::StrCat(out, "e", exponent < 0 ? "-" : "+", size < 10 ? "0" : "", size);
  }
  if (exponent < 0) return absl::StrCat(sign, "0.", std::string(-exponent - 1, '0'), digits);
  const size_t whole = exponent + 1;
  if (digits.size() <= whole) return absl::StrCat(sign, digits, std::string(whole - digits.size(), '0'), ".0");
  return absl::StrCat(sign, digits.substr(0, whole), ".", digits.substr(whole));
}

std::string JsonText(absl::string_view text, bool ensure_ascii) {
  std::string out = "\"";
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const uint32_t c = At(text, at, &at);
    switch (c) {
      case '"':
        out += "\\\"";
        continue;
      case '\\':
        out += "\\\\";
        continue;
      case '\n':
        out += "\\n";
        continue;
      case '\r':
        out += "\\r";
        continue;
      case '\t':
        out += "\\t";
        continue;
      case '\f':
        out += "\\f";
        continue;
      case '\b':
        out += "\\b";
        continue;
      default:
        break;
    }
    if (c < 0x20 || (ensure_ascii && c > 0x7E && c <= 0xFFFF)) {
      out += "\\u";
      AppendHex(c, 4, &out);
    } else if (ensure_ascii && c > 0xFFFF) {
      out += "\\u";
      AppendHex(0xD800 + ((c - 0x10000) >> 10), 4, &out);
      out += "\\u";
      AppendHex(0xDC00 + ((c - 0x10000) & 0x3FF), 4, &out);
    } else {
      out.append(text.data() + begin, at - begin);
    }
  }
  return out + "\"";
}

}  // namespace trireme::jinja
