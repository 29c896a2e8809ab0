// data/unicode/unicode_ranges.h
// Classes of code points from 0x80 on that Python's str methods distinguish. Sorted.
#ifndef TRIREME_DATA_UNICODE_UNICODE_RANGES_H_
#define TRIREME_DATA_UNICODE_UNICODE_RANGES_H_

#include "data/unicode/unicode.h"

namespace trireme::jinja {

extern const CodePointRange kUnprintable[];
extern const size_t kNumUnprintable;
extern const CodePointRange kCased[];
extern const size_t kNumCased;

}  // namespace trireme::jinja

#endif  // TRIREME_DATA_UNICODE_UNICODE_RANGES_H_
