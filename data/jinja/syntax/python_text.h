// data/jinja/syntax/python_text.h
// Python's str on UTF-8: indices count code points, white space and printable characters are Unicode's.
#ifndef TRIREME_DATA_JINJA_SYNTAX_PYTHON_TEXT_H_
#define TRIREME_DATA_JINJA_SYNTAX_PYTHON_TEXT_H_

#include <absl/strings/string_view.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace trireme::jinja {

bool IsAscii(absl::string_view text);
bool IsSpace(uint32_t code_point);  // str.isspace

size_t CodePoints(absl::string_view text);
// Byte offset of code point `index`, which may be one past the last.
size_t ByteOffset(absl::string_view text, size_t index);

// Without white space at the ends, or without any of `characters`.
absl::string_view StripLeft(absl::string_view text, const std::optional<std::string>& characters = std::nullopt);
absl::string_view StripRight(absl::string_view text, const std::optional<std::string>& characters = std::nullopt);

std::vector<absl::string_view> SplitWhitespace(absl::string_view text, int64_t max_splits);
std::vector<absl::string_view> SplitWhitespaceFromRight(absl::string_view text, int64_t max_splits);
std::vector<absl::string_view> Split(absl::string_view text, absl::string_view separator, int64_t max_splits);
std::vector<absl::string_view> SplitFromRight(absl::string_view text, absl::string_view separator, int64_t max_splits);
std::vector<absl::string_view> SplitLines(absl::string_view text, bool keep_ends);

// str.replace; negative `count`: all.
std::string Replace(absl::string_view text, absl::string_view from, absl::string_view to, int64_t count);

// Whether the case of a character outside ASCII matters: then lower(), upper() and their like are not done here.
bool HasCasedBeyondAscii(absl::string_view text);
std::string AsciiLower(absl::string_view text);
std::string AsciiUpper(absl::string_view text);
std::string AsciiCapitalize(absl::string_view text);
std::string AsciiTitle(absl::string_view text);  // str.title

std::string EscapeHtml(absl::string_view text);  // markupsafe.escape

std::string ReprText(absl::string_view text);  // repr(str)
std::string ReprFloat(double value);           // repr(float), which is str(float) too
std::string JsonText(absl::string_view text, bool ensure_ascii);

}  // namespace trireme::jinja

#endif  // TRIREME_DATA_JINJA_SYNTAX_PYTHON_TEXT_H_
