// data/unicode/unicode_classes.h
// Generated ranges of code points; see tests/oracle/tokenizer_oracle.py (tables).
#ifndef TRIREME_DATA_UNICODE_UNICODE_CLASSES_H_
#define TRIREME_DATA_UNICODE_UNICODE_CLASSES_H_

#include "data/unicode/unicode.h"

namespace trireme {

extern const CodePointRange kLetterRanges[];  // general category L
extern const int kNumLetterRanges;
extern const CodePointRange kNumberRanges[];  // general category N
extern const int kNumNumberRanges;
// What the reference's pre-tokenizer "Punctuation" finds: ASCII's punctuation and symbols, and category P of an older
// Unicode than that of its regular expressions.
extern const CodePointRange kPunctuationRanges[];
extern const int kNumPunctuationRanges;

// Code points that Unicode 14 lacks and 16 has, by general category ("Lu"), ascending.
struct CategoryRange {
  CodePointRange range;
  char category[3];
};
extern const CategoryRange kNewerRanges[];
extern const int kNumNewerRanges;

inline constexpr CodePointRange kSpaceRanges[] = {  // White_Space: what \s means to the reference, 25 code points
    {0x9, 0xD},       {0x20, 0x20},     {0x85, 0x85},     {0xA0, 0xA0},     {0x1680, 0x1680},
    {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}};

}  // namespace trireme

#endif  // TRIREME_DATA_UNICODE_UNICODE_CLASSES_H_
