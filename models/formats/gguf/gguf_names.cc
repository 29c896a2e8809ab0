#include "models/formats/gguf/gguf_names.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

#include <charconv>

namespace trireme {
namespace {

struct NamePair {
  absl::string_view canonical;
  absl::string_view gguf;
};
constexpr NamePair kGlobalNames[] = {
    {"model.embed_tokens.weight", "token_embd.weight"},
    {"model.norm.weight", "output_norm.weight"},
    {"lm_head.weight", "output.weight"},
};
// Behind "model.layers.N." and "blk.N.".
constexpr NamePair kBlockNames[] = {
    {"input_layernorm.weight", "attn_norm.weight"},    {"self_attn.q_proj.weight", "attn_q.weight"},
    {"self_attn.k_proj.weight", "attn_k.weight"},      {"self_attn.v_proj.weight", "attn_v.weight"},
    {"self_attn.o_proj.weight", "attn_output.weight"}, {"mlp.gate_proj.weight", "ffn_gate.weight"},
    {"mlp.up_proj.weight", "ffn_up.weight"},           {"mlp.down_proj.weight", "ffn_down.weight"},
    {"self_attn.q_proj.bias", "attn_q.bias"},          {"self_attn.k_proj.bias", "attn_k.bias"},
    {"self_attn.v_proj.bias", "attn_v.bias"},          {"self_attn.q_norm.weight", "attn_q_norm.weight"},
    {"self_attn.k_norm.weight", "attn_k_norm.weight"},
};
// post_attention_layernorm stands before the MLP, but in Gemma it is what it says.
constexpr NamePair kNormNames[] = {{"post_attention_layernorm.weight", "ffn_norm.weight"}};
constexpr NamePair kGemmaNormNames[] = {
    {"post_attention_layernorm.weight", "post_attention_norm.weight"},
    {"pre_feedforward_layernorm.weight", "ffn_norm.weight"},
    {"post_feedforward_layernorm.weight", "post_ffw_norm.weight"},
};

constexpr GgufArchitecture kArchitectures[] = {
    {.name = "llama", .family = "llama", .reorders_rows = true, .rope_factors = true},
    {.name = "qwen2", .family = "qwen2", .qkv_biases = true},
    {.name = "qwen3", .family = "qwen3", .qk_norms = true},
    {.name = "smollm3", .family = "smollm3", .reorders_rows = true, .no_rope_period = 4},
    {.name = "gemma2",
     .family = "gemma2",
     .gemma = true,
     .always_tied = true,
     .attention_softcap = true,
     .window_period = 2,
     .even_share_layers = 46},
    {.name = "gemma3",
     .family = "gemma3_text",
     .qk_norms = true,
     .gemma = true,
     .window_period = 6,
     .even_share_layers = 62,
     .local_rope = true},
};

using Side = absl::string_view NamePair::*;

template <size_t kSize>
std::optional<absl::string_view> Lookup(const NamePair (&table)[kSize], absl::string_view name, Side from, Side to) {
  for (const NamePair& pair : table) {
    if (name == pair.*from) return pair.*to;
  }
  return std::nullopt;
}

std::optional<std::string> Translate(const GgufArchitecture& architecture, const std::string& name, Side from, Side to,
                                     const std::string& from_prefix, const std::string& to_prefix) {
  if (const auto global = Lookup(kGlobalNames, name, from, to)) return std::string(*global);
  if (!absl::StartsWith(name, from_prefix)) return std::nullopt;
  const size_t dot = name.find('.', from_prefix.size());
  if (dot == std::string::npos) return std::nullopt;
  const std::string number = name.substr(from_prefix.size(), dot - from_prefix.size()), rest = name.substr(dot + 1);
  int layer = 0;
  const auto parsed = std::from_chars(number.data(), number.data() + number.size(), layer);
  if (parsed.ec != std::errc() || absl::StrCat(layer) != number || layer < 0) return std::nullopt;
  std::optional<absl::string_view> found = Lookup(kBlockNames, rest, from, to);
  if (!found.has_value())
    found = architecture.gemma ? Lookup(kGemmaNormNames, rest, from, to) : Lookup(kNormNames, rest, from, to);
  if (!found.has_value()) return std::nullopt;
  return absl::StrCat(to_prefix, number, ".", *found);
}

}  // namespace

const GgufArchitecture* FindGgufArchitecture(absl::string_view name) {
  for (const GgufArchitecture& architecture : kArchitectures) {
    if (name == architecture.name) return &architecture;
  }
  return nullptr;
}

const GgufArchitecture* GgufArchitectureOfFamily(absl::string_view family) {
  for (const GgufArchitecture& architecture : kArchitectures) {
    if (family == architecture.family) return &architecture;
  }
  return nullptr;
}

std::string KnownGgufArchitectures() {
  return absl::StrJoin(kArchitectures, ", ", [](std::string* out, const auto& a) { out->append(a.name); });
}

std::optional<std::string> ToGgufName(const GgufArchitecture& architecture, const std::string& canonical) {
  return Translate(architecture, canonical, &NamePair::canonical, &NamePair::gguf, "model.layers.", "blk.");
}

std::optional<std::string> ToCanonicalName(const GgufArchitecture& architecture, const std::string& gguf_name) {
  return Translate(architecture, gguf_name, &NamePair::gguf, &NamePair::canonical, "blk.", "model.layers.");
}

bool GgufReordersRows(const GgufArchitecture& architecture, const std::string& canonical) {
  return architecture.reorders_rows && (absl::EndsWith(canonical, ".self_attn.q_proj.weight") ||
                                        absl::EndsWith(canonical, ".self_attn.k_proj.weight"));
}

int64_t LlamaGgufRow(int64_t canonical_row, int64_t head_dim) {
  const int64_t in_head = canonical_row % head_dim, half = head_dim / 2;
  return canonical_row - in_head + in_head % half * 2 + in_head / half;
}

int64_t LlamaCanonicalRow(int64_t gguf_row, int64_t head_dim) {
  const int64_t in_head = gguf_row % head_dim, half = head_dim / 2;
  return gguf_row - in_head + in_head % 2 * half + in_head / 2;
}

float GgufOffset(const GgufArchitecture& architecture, const std::string& canonical) {
  return architecture.gemma && absl::EndsWith(canonical, "norm.weight") ? 1.0f : 0.0f;
}

}  // namespace trireme
