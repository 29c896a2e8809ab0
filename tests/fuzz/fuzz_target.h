// tests/fuzz/fuzz_target.h
// A reader under test. Every NAME_fuzz.cc defines the two functions; libfuzzer_main.cc or replay_main.cc calls them.
#ifndef TRIREME_TESTS_FUZZ_FUZZ_TARGET_H_
#define TRIREME_TESTS_FUZZ_FUZZ_TARGET_H_

#include <string>
#include <vector>

namespace trireme {

// Reads `input`, uses what was read, and tells whether there was something. An error is a fine answer; a crash, a
// failed TRIREME_CHECK, a sanitizer's report, and time or memory out of proportion are not.
bool FuzzOne(const std::string& input);

// Inputs to begin with; the first one is well formed.
std::vector<std::string> FuzzSeeds();

}  // namespace trireme

#endif  // TRIREME_TESTS_FUZZ_FUZZ_TARGET_H_
