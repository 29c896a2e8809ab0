#include "launch/base/terminal_text.h"

#include <unistd.h>

namespace trireme {
namespace {

// How many bytes the UTF-8 character at the front of `text` has; 0 when there is none.
size_t CharacterBytes(absl::string_view text) {
  const auto byte = [text](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const auto follows = [&byte](size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first <= 0xDF) return follows(1) ? 2 : 0;
  if (first >= 0xE0 && first <= 0xEF) {
    const bool overlong = first == 0xE0 && byte(1) < 0xA0, surrogate = first == 0xED && byte(1) >= 0xA0;
    return follows(1) && follows(2) && !overlong && !surrogate ? 3 : 0;
  }
  if (first >= 0xF0 && first <= 0xF4) {
    const bool overlong = first == 0xF0 && byte(1) < 0x90, beyond = first == 0xF4 && byte(1) >= 0x90;
    return follows(1) && follows(2) && follows(3) && !overlong && !beyond ? 4 : 0;
  }
  return 0;
}

void AppendEscaped(unsigned value, std::string* out) {
  constexpr char kDigits[] = "0123456789ABCDEF";
  for (const char c : {'\\', 'x', kDigits[value >> 4 & 15], kDigits[value & 15]}) out->push_back(c);
}

}  // namespace

std::string TerminalSafe(absl::string_view text) {
  std::string safe;
  safe.reserve(text.size());
  while (!text.empty()) {
    const auto first = static_cast<unsigned char>(text[0]);
    const size_t size = CharacterBytes(text);
    // U+0080 to U+009F, which terminals may read as the two-byte escape sequences.
    const bool control_of_two = size == 2 && first == 0xC2 && static_cast<unsigned char>(text[1]) < 0xA0;
    const bool control = size == 1 && (first < 0x20 || first == 0x7F) && first != '\n' && first != '\t';
    if (size == 0 || control) {
      AppendEscaped(first, &safe);
    } else if (control_of_two) {
      AppendEscaped(static_cast<unsigned char>(text[1]), &safe);
    } else {
      safe.append(text.data(), size);
    }
    text.remove_prefix(size == 0 ? 1 : size);
  }
  return safe;
}

std::string ForOutput(absl::string_view text) {
  static const bool is_terminal = isatty(STDOUT_FILENO) == 1;
  return is_terminal ? TerminalSafe(text) : std::string(text);
}

}  // namespace trireme
