// models/formats/gguf_llama.h
// Models of the Llama family in GGUF files (architecture "llama"): metadata, tensor names, order of rows. Follows
// llama.cpp's convert_hf_to_gguf.
#ifndef TRIREME_MODELS_FORMATS_GGUF_LLAMA_H_
#define TRIREME_MODELS_FORMATS_GGUF_LLAMA_H_

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

struct GgufModelFacts {
  std::string name;
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

// general.* and llama.* of a model whose matrices are stored as `type`. Without tokenizer.
GgufMetadata LlamaMetadata(const GgufModelFacts& facts, GgufType type);

// The tensors of a file, in order, with GGUF names. Vectors (norms) are F32, matrices `type`; in a Q4_0 file the token
// embedding and the output matrix are Q8_0, as they are the most sensitive. An error (kConfig) when rows are not whole
// blocks.
absl::StatusOr<std::vector<GgufTensor>> LlamaTensors(const GgufModelFacts& facts, GgufType type);

// What a file says about its model. Refuses (kData) other architectures and what this program would compute
// differently: partial rotation, other kinds of position scaling, layers of differing sizes, several files. Checks that
// the file holds the tensors of LlamaTensors with their shapes, of whatever type, and no others.
absl::StatusOr<GgufModelFacts> ReadLlamaFacts(const GgufFile& file);

// "model.layers.3.self_attn.q_proj.weight" <-> "blk.3.attn_q.weight"; nullopt for a name that has no counterpart.
std::optional<std::string> LlamaGgufName(const std::string& canonical);
std::optional<std::string> LlamaCanonicalName(const std::string& gguf_name);

// Hugging Face rotates element i of a head with i + head_dim / 2, ggml 2i with 2i + 1: rows of q_proj and k_proj stand
// in another order. Row i of the canonical tensor is row LlamaGgufRow(i) of the file's; LlamaCanonicalRow is the
// inverse. Rows stay within their head, so whole heads can be handled apart.
bool LlamaReordersRows(const std::string& canonical);
int64_t LlamaGgufRow(int64_t canonical_row, int64_t head_dim);
int64_t LlamaCanonicalRow(int64_t gguf_row, int64_t head_dim);

// Reads the part [row_begin, row_end) x [column_begin, column_end) of a canonical matrix or vector (one row) from the
// file, in canonical order: what a rank needs to fill its rectangle.
absl::Status ReadLlamaRows(const GgufFile& file, const GgufModelFacts& facts, const std::string& canonical,
                           int64_t row_begin, int64_t row_end, int64_t column_begin, int64_t column_end, float* out);

// The contents of rope_freqs.weight, [head_dim / 2]: what each frequency is divided by. `facts` must have rope_scaling.
std::vector<float> LlamaRopeFactors(const GgufModelFacts& facts);

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_GGUF_LLAMA_H_
