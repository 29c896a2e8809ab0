// models/formats/gguf/gguf_model.h
// Models in GGUF files: metadata, tensor names, order of rows. Follows llama.cpp's convert_hf_to_gguf.
#ifndef TRIREME_MODELS_FORMATS_GGUF_GGUF_MODEL_H_
#define TRIREME_MODELS_FORMATS_GGUF_GGUF_MODEL_H_

#include <absl/strings/string_view.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "models/formats/gguf/gguf.h"
#include "models/formats/gguf/gguf_names.h"

namespace trireme {

// Hugging Face's rope type "llama3".
struct GgufRopeScaling {
  double factor = 8;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  double original_max_position_embeddings = 8192;
};

struct GgufModelFacts {
  std::string name;
  const GgufArchitecture* architecture = FindGgufArchitecture("llama");  // never null
  int64_t block_count = 0;
  int64_t context_length = 0;
  int64_t embedding_length = 0;
  int64_t feed_forward_length = 0;
  int64_t head_count = 0;
  int64_t head_count_kv = 0;
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
  double layer_norm_rms_epsilon = 0;
  double rope_freq_base = 10000;
  std::optional<GgufRopeScaling> rope_scaling;
  double rope_linear_factor = 1;  // not beside rope_scaling
  // Read where the architecture has them.
  int64_t sliding_window = 0;
  double rope_freq_base_swa = 10000;
  double attn_logit_softcapping = 0, final_logit_softcapping = 0;
  bool tied_embeddings = false;

  // Scores are divided by its square root, Hugging Face's query_pre_attn_scalar.
  int64_t score_width() const {
    return block_count == architecture->even_share_layers ? embedding_length / head_count : head_dim;
  }
};

// general.* and ARCHITECTURE.* of a model whose matrices are stored as `type`. Without tokenizer.
GgufMetadata GgufModelMetadata(const GgufModelFacts& facts, GgufType type);

// The tensors of a file, in order, with GGUF names. Vectors (norms) are F32, matrices `type`; in a Q4_0 file the token
// embedding and the output matrix are Q8_0, as they are the most sensitive. An error (kConfig) when rows are not whole
// blocks.
absl::StatusOr<std::vector<GgufTensor>> GgufModelTensors(const GgufModelFacts& facts, GgufType type);

// What a file says about its model. Refuses (kData) unknown architectures and what this program would compute
// differently: partial rotation, other kinds of position scaling, layers of differing sizes, several files. Checks that
// the file holds the tensors of GgufModelTensors with their shapes, of whatever type, and no others. known_scaling:
// what its position factors must be, instead of inferred from them (some scalings cannot be).
absl::StatusOr<GgufModelFacts> ReadGgufFacts(const GgufFile& file, const GgufRopeScaling* known_scaling = nullptr);

// Reads the part [row_begin, row_end) x [column_begin, column_end) of a canonical matrix or vector (one row) from the
// file, in canonical order: what a rank needs to fill its rectangle.
absl::Status ReadGgufRows(const GgufFile& file, const GgufModelFacts& facts, const std::string& canonical,
                          int64_t row_begin, int64_t row_end, int64_t column_begin, int64_t column_end, float* out);

// The contents of rope_freqs.weight, [head_dim / 2]: what each frequency is divided by. `facts` must have rope_scaling.
std::vector<float> GgufRopeFactors(const GgufModelFacts& facts);

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_GGUF_GGUF_MODEL_H_
