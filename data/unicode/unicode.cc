#include "data/unicode/unicode.h"

#include <cstring>
#include <vector>

#include "data/unicode/unicode_classes.h"

namespace trireme {
namespace {

// Length of the valid sequence at `p`, or minus the length of the maximal invalid part there (at least one byte).
int SequenceLength(const unsigned char* p, const unsigned char* end) {
  const unsigned char lead = p[0];
  if (lead < 0x80) return 1;
  int length;
  unsigned char low = 0x80;
  unsigned char high = 0xBF;  // bounds of the second byte
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return -1;
  }
  for (int i = 1; i < length; ++i) {
    if (p + i == end || p[i] < low || p[i] > high) return -i;
    low = 0x80;
    high = 0xBF;
  }
  return length;
}

// Skips 8 ASCII bytes at a time.
const unsigned char* SkipAscii(const unsigned char* p, const unsigned char* end) {
  while (end - p >= 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    if ((word & 0x8080808080808080u) != 0) break;
    p += 8;
  }
  return p;
}

}  // namespace

bool IsValidUtf8(absl::string_view text) {
  const auto* p = reinterpret_cast<const unsigned char*>(text.data());
  const auto* end = p + text.size();
  while ((p = SkipAscii(p, end)) < end) {
    const int length = SequenceLength(p, end);
    if (length < 0) return false;
    p += length;
  }
  return true;
}

std::string RepairUtf8(absl::string_view text) {
  std::string out;
  out.reserve(text.size() + 16);
  const auto* p = reinterpret_cast<const unsigned char*>(text.data());
  const auto* end = p + text.size();
  while (p < end) {
    const int length = SequenceLength(p, end);
    if (length > 0) {
      out.append(reinterpret_cast<const char*>(p), length);
      p += length;
    } else {
      out.append("\xEF\xBF\xBD");
      p -= length;
    }
  }
  return out;
}

void AppendUtf8(uint32_t c, std::string* out) {
  if (c < 0x80) {
    out->push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    out->push_back(static_cast<char>(0xC0 | c >> 6));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else if (c < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | c >> 12));
    out->push_back(static_cast<char>(0x80 | (c >> 6 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else {
    out->push_back(static_cast<char>(0xF0 | c >> 18));
    out->push_back(static_cast<char>(0x80 | (c >> 12 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c >> 6 & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  }
}

const CharClasses& CharClasses::Get() {
  static const CharClasses* classes = new CharClasses();
  return *classes;
}

CharClasses::CharClasses() {
  // One page per 256 code points first, then equal pages are shared, so that the table stays in cache.
  std::vector<CharClass> flat(0x110000, CharClass::kOther);
  auto set = [&flat](const CodePointRange& range, CharClass value) {
    for (uint32_t c = range.first; c <= range.last; ++c) flat[c] = value;
  };
  for (int i = 0; i < kNumLetterRanges; ++i) set(kLetterRanges[i], CharClass::kLetter);
  for (int i = 0; i < kNumNumberRanges; ++i) set(kNumberRanges[i], CharClass::kNumber);
  for (const CodePointRange& range : kSpaceRanges) set(range, CharClass::kSpace);
  for (int page = 0; page < kNumPages; ++page) {
    const CharClass* source = flat.data() + page * 256;
    size_t found = 0;
    while (found < pages_.size() && std::memcmp(pages_[found].data(), source, 256) != 0) ++found;
    if (found == pages_.size()) {
      pages_.emplace_back();
      std::memcpy(pages_.back().data(), source, 256);
    }
    page_of_[page] = static_cast<uint16_t>(found);
  }
}

}  // namespace trireme
