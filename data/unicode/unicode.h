// data/unicode/unicode.h
// UTF-8, and the character classes that pre-tokenizers split on.
#ifndef TRIREME_DATA_UNICODE_UNICODE_H_
#define TRIREME_DATA_UNICODE_UNICODE_H_

#include <absl/strings/string_view.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace trireme {

// An inclusive range of code points.
struct CodePointRange {
  uint32_t first;
  uint32_t last;
};

bool IsValidUtf8(absl::string_view text);

// Replaces every maximal invalid part by U+FFFD, as Python's bytes.decode(errors="replace") does.
std::string RepairUtf8(absl::string_view text);

void AppendUtf8(uint32_t code_point, std::string* out);

// The code point at `p`, and where the next begins. The text must be valid UTF-8.
inline uint32_t DecodeUtf8(const char* p, const char** next) {
  const auto* u = reinterpret_cast<const unsigned char*>(p);
  if (u[0] < 0x80) {
    *next = p + 1;
    return u[0];
  }
  if (u[0] < 0xE0) {
    *next = p + 2;
    return (u[0] & 0x1Fu) << 6 | (u[1] & 0x3Fu);
  }
  if (u[0] < 0xF0) {
    *next = p + 3;
    return (u[0] & 0x0Fu) << 12 | (u[1] & 0x3Fu) << 6 | (u[2] & 0x3Fu);
  }
  *next = p + 4;
  return (u[0] & 0x07u) << 18 | (u[1] & 0x3Fu) << 12 | (u[2] & 0x3Fu) << 6 | (u[3] & 0x3Fu);
}

// The four classes of the GPT-2 and Llama-3 patterns: \p{L}, \p{N}, \s, and the rest. They partition all code points.
enum class CharClass : uint8_t { kOther, kLetter, kNumber, kSpace };

// Classes by Unicode 16, the version of the Hugging Face reference (unicode_classes.cc). Immutable after construction.
class CharClasses {
 public:
  static const CharClasses& Get();

  CharClass operator[](uint32_t code_point) const { return pages_[page_of_[code_point >> 8]][code_point & 0xFF]; }

 private:
  CharClasses();

  static constexpr int kNumPages = 0x110000 >> 8;
  uint16_t page_of_[kNumPages];
  std::vector<std::array<CharClass, 256>> pages_;  // distinct ones
};

}  // namespace trireme

#endif  // TRIREME_DATA_UNICODE_UNICODE_H_
