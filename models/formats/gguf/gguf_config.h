// What a GGUF file says about its model, and our ModelConfig.
#ifndef TRIREME_MODELS_FORMATS_GGUF_GGUF_CONFIG_H_
#define TRIREME_MODELS_FORMATS_GGUF_GGUF_CONFIG_H_

#include <string>

#include "configs/run_config.pb.h"
#include "models/formats/gguf/gguf_model.h"
#include "models/formats/hf/hf_config.h"

namespace trireme {

// Whether a user who gives `path` for a model means a GGUF file: it is called so, or it is one.
bool NamesGguf(const std::string& path);

// Every field that the file determines, with family; for MergeHfConfig.
ModelConfig ConfigOfGguf(const GgufModelFacts& facts);

// The other way, of a model whose fields are all filled in. kConfig for what GGUF cannot express: a family without
// architecture there, a sliding window.
absl::StatusOr<GgufModelFacts> GgufFactsOf(const ModelConfig& model, const std::string& name);

// The ids of bos, eos and pad. A number that is no id of the vocabulary (which some files hold for "none") is left out.
absl::StatusOr<HfTokenIds> ReadGgufTokenIds(const GgufFile& file, int64_t vocab_size);

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_GGUF_GGUF_CONFIG_H_
