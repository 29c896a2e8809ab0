// models/formats/gguf_model.h
// Models in GGUF files: metadata, tensor names, order of rows. Follows llama.cpp's convert_hf_to_gguf.
#ifndef TRIREME_MODELS_FORMATS_GGUF_MODEL_H_
#define TRIREME_MODELS_FORMATS_GGUF_MODEL_H_

#include <absl/strings/string_view.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "models/formats/gguf.h"

namespace trireme {

// Hugging Face's rope type "llama3".
struct GgufRopeScaling {
  double factor = 8;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  double original_max_position_embeddings = 8192;
};

// What differs between architectures. The table in gguf_model.cc is the one place to add another.
struct GgufArchitecture {
  const char* name;    // general.architecture and the prefix of its keys
  const char* family;  // ModelConfig.family, and Hugging Face's model_type
  // Hugging Face rotates element i of a head with i + head_dim / 2. ggml does so too, or 2i with 2i + 1: rows of q_proj
  // and k_proj then stand in another order.
  bool reorders_rows;
  bool qkv_biases;  // self_attn.{q,k,v}_proj.bias
  bool qk_norms;    // self_attn.{q,k}_norm.weight, of a head's width
};

// Null for an unknown one.
const GgufArchitecture* FindGgufArchitecture(absl::string_view name);
const GgufArchitecture* GgufArchitectureOfFamily(absl::string_view family);

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
  bool tied_embeddings = false;
};

// general.* and ARCHITECTURE.* of a model whose matrices are stored as `type`. Without tokenizer.
GgufMetadata GgufModelMetadata(const GgufModelFacts& facts, GgufType type);

// The tensors of a file, in order, with GGUF names. Vectors (norms) are F32, matrices `type`; in a Q4_0 file the token
// embedding and the output matrix are Q8_0, as they are the most sensitive. An error (kConfig) when rows are not whole
// blocks.
absl::StatusOr<std::vector<GgufTensor>> GgufModelTensors(const GgufModelFacts& facts, GgufType type);

// What a file says about its model. Refuses (kData) unknown architectures and what this program would compute
// differently: partial rotation, other kinds of position scaling, layers of differing sizes, several files. Checks that
// the file holds the tensors of GgufModelTensors with their shapes, of whatever type, and no others.
absl::StatusOr<GgufModelFacts> ReadGgufFacts(const GgufFile& file);

// "model.layers.3.self_attn.q_proj.weight" <-> "blk.3.attn_q.weight"; nullopt for a name that has no counterpart.
std::optional<std::string> ToGgufName(const std::string& canonical);
std::optional<std::string> ToCanonicalName(const std::string& gguf_name);

// Whether the rows of a tensor stand in another order. If so, row i of the canonical tensor is row LlamaGgufRow(i) of
// the file's; LlamaCanonicalRow is the inverse. Rows stay within their head, so whole heads can be handled apart.
bool GgufReordersRows(const GgufArchitecture& architecture, const std::string& canonical);
int64_t LlamaGgufRow(int64_t canonical_row, int64_t head_dim);
int64_t LlamaCanonicalRow(int64_t gguf_row, int64_t head_dim);

// Reads the part [row_begin, row_end) x [column_begin, column_end) of a canonical matrix or vector (one row) from the
// file, in canonical order: what a rank needs to fill its rectangle.
absl::Status ReadGgufRows(const GgufFile& file, const GgufModelFacts& facts, const std::string& canonical,
                          int64_t row_begin, int64_t row_end, int64_t column_begin, int64_t column_end, float* out);

// The contents of rope_freqs.weight, [head_dim / 2]: what each frequency is divided by. `facts` must have rope_scaling.
std::vector<float> GgufRopeFactors(const GgufModelFacts& facts);

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_GGUF_MODEL_H_
