// models/formats/gguf/gguf_config.h
// What a GGUF file says about its model, and our ModelConfig.
#ifndef TRIREME_MODELS_FORMATS_GGUF_GGUF_CONFIG_H_
#define TRIREME_MODELS_FORMATS_GGUF_GGUF_CONFIG_H_

#include <functional>
#include <string>
#include <vector>

#include "configs/run_config.pb.h"
#include "models/formats/gguf/gguf_architecture.h"
#include "models/formats/gguf/gguf_rope.h"
#include "models/formats/hf/hf_config.h"

namespace trireme {

struct GgufModel {
  const GgufArchitecture* architecture = nullptr;  // never null once read
  std::string name;
  ModelConfig config;  // every field that the file determines, with family; for MergeHfConfig
};

// Gives the contents of a vector of the file (position factors).
using GgufVectorReader = std::function<absl::StatusOr<std::vector<float>>(const GgufTensor&)>;

// What a file says about its model. Refuses (kData) unknown architectures and what this program would compute
// differently: partial rotation where the architecture has none, other kinds of position scaling, layers of differing
// sizes, several files. Whether its tensors are the model's is for OpenGgufWeights. known: what Llama 3's scaling must
// be, instead of inferred from the position factors (some cannot be).
absl::StatusOr<GgufModel> ReadGgufModel(const GgufFile& file, const RopeScaling* known = nullptr);
absl::StatusOr<GgufModel> ReadGgufModel(const GgufHeader& header, const GgufVectorReader& vectors,
                                        const RopeScaling* known = nullptr);

// The other way, of a model whose fields are all filled in: general.* and ARCHITECTURE.* of a file whose matrices are
// stored as `type`, without tokenizer. kConfig for a model that has no architecture.
absl::StatusOr<GgufMetadata> GgufModelMetadata(const ModelConfig& model, const std::string& name, GgufType type);

// Whether a file with these metadata and tensors means `model`; else kConfig, naming the field that llama.cpp would
// take otherwise.
absl::Status CheckGgufMeans(const GgufHeader& header, const ModelConfig& model);

// The ids of bos, eos and pad. A number that is no id of the vocabulary (which some files hold for "none") is left out.
absl::StatusOr<HfTokenIds> ReadGgufTokenIds(const GgufFile& file, int64_t vocab_size);

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_GGUF_GGUF_CONFIG_H_
