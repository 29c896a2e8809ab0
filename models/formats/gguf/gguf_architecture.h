// models/formats/gguf/gguf_architecture.h
// The architectures of GGUF files as data: what general.architecture means, which keys beside those of all files are
// which fields of a model, and what llama.cpp builds in and no key says. Follows its convert_hf_to_gguf and
// src/models/. What its tensors are called: models/weights/gguf_layout.h.
#ifndef TRIREME_MODELS_FORMATS_GGUF_GGUF_ARCHITECTURE_H_
#define TRIREME_MODELS_FORMATS_GGUF_GGUF_ARCHITECTURE_H_

#include <absl/strings/string_view.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "configs/run_config.pb.h"
#include "models/formats/gguf/gguf.h"
#include "models/formats/hf/hf_model_type.h"

namespace trireme {

// A key that is a field of ModelConfig: u32, f32 or bool, as the field is.
struct GgufKey {
  const char* key;  // behind "NAME."
  const char* field;
  std::optional<double> if_absent =
      std::nullopt;       // what llama.cpp takes where a file is silent; none: it must be there
  bool positive = false;  // 0 has no meaning
  bool left_out = false;  // a file that would say if_absent is silent
};

// A field of ModelConfig that llama.cpp takes to have this value, whatever the file says.
struct GgufFixed {
  const char* field;
  HfValue value;
};

// A field of ModelConfig that is whether the first block has a tensor.
struct GgufSwitch {
  const char* field;
  const char* tensor;    // behind "blk.0."
  bool lacking = false;  // ... or has not
};

// Whether files have a head apart from the embedding.
enum class GgufHead { kAny, kNever, kAlways };

// Which layers have a window where an architecture has windows at all: a period says it, or a list in the file.
enum class GgufWindowList { kNever, kUnlessPeriodic, kAlways };

struct GgufArchitecture {
  const char* name;    // general.architecture and the prefix of its keys
  const char* family;  // ModelConfig.family
  // Of several records with this name or family: the models that this one is for, by layers, experts and window; the
  // first that fits, and whose constants a file does not contradict, counts. Null: all.
  bool (*when)(const ModelConfig& model) = nullptr;
  std::vector<GgufKey> keys = {};
  std::vector<std::pair<const char*, GgufValue>> constants = {};  // keys that have one value in all files
  std::vector<GgufFixed> fixed = {};
  std::vector<GgufSwitch> switches = {};
  GgufHead head = GgufHead::kAny;
  bool even_heads = false;   // heads share embedding_length, none has a width of its own
  bool even_groups = false;  // as many key-value heads as heads
  // Latent attention, said as what it is to a cache: one key that all heads share, kv_lora_rank and qk_rope_head_dim
  // wide. Scores are as YaRN's mscale_all_dim says.
  bool latent = false;

  bool rotates = true;
  // Hugging Face rotates element i of a head with i + head_dim / 2. ggml does so too, or 2i with 2i + 1: rows of q_proj
  // and k_proj then stand in another order than in Hugging Face's files (unless those turn neighbours, too).
  bool reorders_rows = false;
  bool partial_rotation = false;  // rope.dimension_count may be less than the width of a head
  bool says_unscaled = false;     // rope.scaling.type is "none" where frequencies are not rescaled
  bool rope_factors = false;      // Llama 3's position scaling, in rope_freqs.weight
  bool long_factors = false;      // LongRoPE's, in rope_factors_long.weight and rope_factors_short.weight
  bool alpha_in_base = false;     // Hunyuan's alpha is part of rope.freq_base
  // Models have yarn with truncate: false, which files cannot say: llama.cpp rounds the ends of the ramp nevertheless.
  bool untruncated_yarn = false;
  int64_t no_rope_period = 0;  // each no_rope_period-th layer does not rotate; 0: all do

  // All layers but each window_period-th have attention.sliding_window; 0: none has one.
  int64_t window_period = 0;
  GgufWindowList lists_windows = GgufWindowList::kNever;  // in attention.sliding_window_pattern
  bool local_rope = false;  // layers with a window have rope.freq_base_swa, without rescaling

  // query_pre_attn_scalar is a head's width, in models of even_share_layers blocks embedding_length / head_count.
  bool scales_by_width = false;
  int64_t even_share_layers = 0;

  // Matrices that llama.cpp multiplies by without looking for an adapter: the tensors' names between "blk.N." and
  // ".weight".
  std::vector<const char*> without_adapters = {};

  // Reads what else differs, or says why llama.cpp would not take the file; null: nothing.
  absl::Status (*read_more)(const GgufHeader& header, ModelConfig* model) = nullptr;

  bool slides(int64_t layer) const { return window_period > 0 && (layer + 1) % window_period != 0; }
  bool rotates_in(int64_t layer) const { return no_rope_period == 0 || (layer + 1) % no_rope_period != 0; }
};

// All records.
const std::vector<GgufArchitecture>& GgufArchitectures();

// The record for a file of this name whose model has these layers, experts and window; null: there is none.
const GgufArchitecture* FindGgufArchitecture(absl::string_view name, const GgufHeader& header,
                                             const ModelConfig& model);
// The record for a model, by its family; null: there is none.
const GgufArchitecture* GgufArchitectureOf(const ModelConfig& model);
bool KnowsGgufArchitecture(absl::string_view name);
std::string KnownGgufArchitectures();  // "llama, qwen2, ..."

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_GGUF_GGUF_ARCHITECTURE_H_
