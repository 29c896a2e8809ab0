// data/corpus/adopt.h
// A manifest for Megatron files that others wrote.
#ifndef TRIREME_DATA_CORPUS_ADOPT_H_
#define TRIREME_DATA_CORPUS_ADOPT_H_

#include <string>

#include "launch/base/status.h"

namespace trireme {

struct AdoptOptions {
  std::string path;       // a Megatron prefix, or a folder of Megatron files (see OpenCorpus)
  std::string tokenizer;  // the tokenizer.json the tokens were made with; copied beside them
  bool overwrite = false;
};

// Reads all tokens, refuses those beyond the tokenizer's vocabulary, and writes manifest.textproto, last, and
// tokenizer.json into the folder. The token files stay as they are.
absl::Status Adopt(const AdoptOptions& options);

}  // namespace trireme

#endif  // TRIREME_DATA_CORPUS_ADOPT_H_
