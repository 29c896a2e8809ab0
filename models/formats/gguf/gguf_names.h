// models/formats/gguf/gguf_names.h
// The architectures of GGUF files: how their tensors are called and stored. Follows llama.cpp's convert_hf_to_gguf.
#ifndef TRIREME_MODELS_FORMATS_GGUF_GGUF_NAMES_H_
#define TRIREME_MODELS_FORMATS_GGUF_GGUF_NAMES_H_

#include <absl/strings/string_view.h>

#include <cstdint>
#include <optional>
#include <string>

namespace trireme {

// What differs between architectures. The table in gguf_names.cc is the one place to add another.
struct GgufArchitecture {
  const char* name;    // general.architecture and the prefix of its keys
  const char* family;  // ModelConfig.family, and Hugging Face's model_type
  // Hugging Face rotates element i of a head with i + head_dim / 2. ggml does so too, or 2i with 2i + 1: rows of q_proj
  // and k_proj then stand in another order.
  bool reorders_rows = false;
  bool rope_factors = false;  // Llama 3's position scaling, in rope_freqs.weight
  bool qkv_biases = false;    // self_attn.{q,k,v}_proj.bias
  bool qk_norms = false;      // self_attn.{q,k}_norm.weight, of a head's width
  bool gemma = false;         // norms before and after sublayers, stored as 1 + weight; query_pre_attn_scalar
  // Has no head of its own, ever.
  bool always_tied = false;
  bool attention_softcap = false;  // always; final_logit_softcapping is Gemma's
  // What llama.cpp builds in and files do not say. All layers but each window_period-th have the sliding window (0:
  // none has one); each no_rope_period-th does not rotate (0: all do). Scores are scaled by a head's width, in models
  // of even_share_layers blocks by embedding_length / head_count.
  int64_t window_period = 0, no_rope_period = 0, even_share_layers = 0;
  bool local_rope = false;  // layers with a window have rope.freq_base_swa, without rescaling

  bool slides(int64_t layer) const { return window_period > 0 && (layer + 1) % window_period != 0; }
  bool rotates(int64_t layer) const { return no_rope_period == 0 || (layer + 1) % no_rope_period != 0; }
};

// Null for an unknown one.
const GgufArchitecture* FindGgufArchitecture(absl::string_view name);
const GgufArchitecture* GgufArchitectureOfFamily(absl::string_view family);
std::string KnownGgufArchitectures();  // "llama, qwen2, ..."

// "model.layers.3.self_attn.q_proj.weight" <-> "blk.3.attn_q.weight"; nullopt for a name that has no counterpart.
std::optional<std::string> ToGgufName(const GgufArchitecture& architecture, const std::string& canonical);
std::optional<std::string> ToCanonicalName(const GgufArchitecture& architecture, const std::string& gguf_name);

// Whether the rows of a tensor stand in another order. If so, row i of the canonical tensor is row LlamaGgufRow(i) of
// the file's; LlamaCanonicalRow is the inverse. Rows stay within their head, so whole heads can be handled apart.
bool GgufReordersRows(const GgufArchitecture& architecture, const std::string& canonical);
int64_t LlamaGgufRow(int64_t canonical_row, int64_t head_dim);
int64_t LlamaCanonicalRow(int64_t gguf_row, int64_t head_dim);

// What the file's elements exceed the canonical ones by: 1 for Gemma's norms. Adding it in 32 bits rounds what is below
// 2^-24, so such a weight comes back within 2^-24.
float GgufOffset(const GgufArchitecture& architecture, const std::string& canonical);

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_GGUF_GGUF_NAMES_H_
