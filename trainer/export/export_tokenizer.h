// trainer/export/export_tokenizer.h
// What an exported model needs beyond weights to be used with text.
#ifndef TRIREME_TRAINER_EXPORT_EXPORT_TOKENIZER_H_
#define TRIREME_TRAINER_EXPORT_EXPORT_TOKENIZER_H_

#include <string>

#include "models/source/model_source.h"

namespace trireme {

// Copies the tokenizer's files from the first of the source's folders that holds a tokenizer.json (what is missing
// there from later ones with the same tokenizer.json), or makes them from its GGUF file, and writes a minimal
// tokenizer_config.json and generation_config.json where there are none. The chat template of a run takes the place of
// those files' own. Returns the ids of bos and pad (source.ids where it says, else what the tokenizer's files say) and
// EndIds(), which generation_config.json gets too. Without any tokenizer there is none to write, and a warning says so.
absl::StatusOr<HfTokenIds> ExportTokenizer(const ModelSource& source, const std::string& output);

// What a GGUF file holds of a tokenizer that ExportTokenizer wrote to `folder`; empty when it wrote none. ids: what it
// returned.
absl::StatusOr<GgufMetadata> ExportedGgufTokenizer(const std::string& folder, const HfTokenIds& ids,
                                                   int64_t vocab_size);

}  // namespace trireme

#endif  // TRIREME_TRAINER_EXPORT_EXPORT_TOKENIZER_H_
