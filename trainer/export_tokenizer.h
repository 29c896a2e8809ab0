// trainer/export_tokenizer.h
// What an exported model needs beyond weights to be used with text.
#ifndef TRIREME_TRAINER_EXPORT_TOKENIZER_H_
#define TRIREME_TRAINER_EXPORT_TOKENIZER_H_

#include <string>
#include <vector>

#include "models/formats/hf_config.h"

namespace trireme {

// Copies the tokenizer's files from the first of `folders` that holds a tokenizer.json, what is missing there from
// later ones with the same tokenizer.json, and writes a minimal tokenizer_config.json and generation_config.json where
// no folder has them. Returns the ids of bos, eos and pad: `known` where it says, else what the tokenizer's files say.
// Without any tokenizer.json nothing is written, and a warning says so.
absl::StatusOr<HfTokenIds> ExportTokenizer(const std::vector<std::string>& folders, const ModelConfig& model,
                                           const HfTokenIds& known, const std::string& output);

}  // namespace trireme

#endif  // TRIREME_TRAINER_EXPORT_TOKENIZER_H_
