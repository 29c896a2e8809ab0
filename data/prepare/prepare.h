// data/prepare/prepare.h
// Text to a corpus: tokens in Megatron's format, split, sharded and described by a manifest.
#ifndef TRIREME_DATA_PREPARE_PREPARE_H_
#define TRIREME_DATA_PREPARE_PREPARE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "data/text/text_reader.h"
#include "launch/base/status.h"

namespace trireme {

struct PrepareOptions {
  std::vector<std::string> inputs;  // see TextReader
  TextReaderOptions text;
  std::string tokenizer;                    // a tokenizer.json or tokenizer.model; copied into the corpus
  std::string output;                       // the folder to make
  double validation_fraction = 0.005;       // of the documents, in [0, 1)
  int64_t shard_tokens = int64_t{1} << 31;  // largest shard, unless one document alone is larger
  int threads = 0;                          // 0: one per core
  bool overwrite = false;
};

// The output appears only when it is whole, and depends on inputs, tokenizer and options only, not on threads or on
// earlier, interrupted runs (whose remains are removed). Prints progress and a summary.
absl::Status Prepare(const PrepareOptions& options);

// Whether the document-th document (from 0) goes to the validation split. Document 1 always does when fraction > 0,
// document 0 never: so two documents are enough for both splits. The others by a hash of their number.
bool InValidation(int64_t document, double fraction);

}  // namespace trireme

#endif  // TRIREME_DATA_PREPARE_PREPARE_H_
