// data/unicode/unicode_nfc.h
// Unicode's composed normal form, by the tables of the Hugging Face reference (Unicode 9).
#ifndef TRIREME_DATA_UNICODE_UNICODE_NFC_H_
#define TRIREME_DATA_UNICODE_UNICODE_NFC_H_

#include <absl/strings/string_view.h>

#include <cstdint>
#include <string>

namespace trireme {

// The canonical decomposition of one code point into one or two; second is 0 when there is one.
struct Decomposition {
  uint32_t code_point;
  uint32_t first;
  uint32_t second;
  bool composes;  // first and second become code_point again
};

struct CombiningClassRange {
  uint32_t first;
  uint32_t last;
  uint8_t combining_class;
};

extern const Decomposition kDecompositions[];  // ascending; Hangul syllables are computed instead
extern const int kNumDecompositions;
extern const CombiningClassRange kCombiningClasses[];  // ascending; others are class 0
extern const int kNumCombiningClasses;

// `text` must be valid UTF-8. When it is normal already, `*out` is untouched and the result is `text`; else the result
// is in `*out`.
absl::string_view NormalizeNfc(absl::string_view text, std::string* out);

}  // namespace trireme

#endif  // TRIREME_DATA_UNICODE_UNICODE_NFC_H_
