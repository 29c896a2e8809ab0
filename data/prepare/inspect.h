// data/prepare/inspect.h
// What a corpus holds, for people.
#ifndef TRIREME_DATA_PREPARE_INSPECT_H_
#define TRIREME_DATA_PREPARE_INSPECT_H_

#include <cstdint>
#include <ostream>
#include <string>

#include "launch/base/status.h"

namespace trireme {

struct InspectCorpusOptions {
  std::string path;               // see OpenCorpus
  int64_t samples = 0;            // how many training windows to show, in training order
  int64_t sequence_length = 128;  // of these windows, in tokens
  uint64_t seed = 1234;
  bool verify_checksums = false;
};

// Whether OpenCorpus would take `path` for a corpus, damaged or not.
bool LooksLikeCorpus(const std::string& path);

// Opens the corpus with all its checks and prints manifest, splits, shards, lengths of documents (of the first 2^30
// tokens of a split) and samples: decoded where the tokenizer is there, else as token ids.
absl::Status InspectCorpus(const InspectCorpusOptions& options, std::ostream& out);

}  // namespace trireme

#endif  // TRIREME_DATA_PREPARE_INSPECT_H_
