#include "models/formats/gguf/gguf_config.h"

#include <absl/strings/match.h>

#include <cstring>
#include <filesystem>
#include <fstream>

namespace trireme {
namespace {

constexpr char kSliding[] = "sliding_attention", kFull[] = "full_attention";

// Files name the architecture; which layers slide and rotate and how scores are scaled, llama.cpp knows by that name.
absl::Status CheckExpressible(const ModelConfig& model, const GgufModelFacts& facts) {
  const GgufArchitecture& architecture = *facts.architecture;
  const auto refuse = [&](const auto&... why) {
    return Error(ExitCode::kConfig, "gguf: ", why..., "; export to Hugging Face's format instead");
  };
  if (model.attention_bias()) return refuse("biases of attention_bias are not written");
  const RopeScaling::Type rope_type = model.rope_scaling().rope_type();
  if (model.has_rope_scaling() && rope_type != RopeScaling::LINEAR && rope_type != RopeScaling::LLAMA3)
    return refuse("rope_scaling ", RopeScaling::Type_Name(rope_type),
                  " is not written, LINEAR and (for Llama) LLAMA3 are");
  if (model.has_rope_scaling() && model.rope_scaling().rope_type() == RopeScaling::LLAMA3 && !architecture.rope_factors)
    return refuse("the architecture \"", architecture.name, "\" has no rope_scaling LLAMA3");
  if (architecture.always_tied && !facts.tied_embeddings)
    return refuse("the architecture \"", architecture.name, "\" has no head apart from the embedding");
  const auto listed = [](int size, int64_t i) { return size > 0 && i < size; };
  for (int64_t i = 0; i < facts.block_count; ++i) {
    const int at = static_cast<int>(i);
    const bool slides =
        model.sliding_window() > 0 && (!listed(model.layer_types_size(), i) || model.layer_types(at) == kSliding);
    if (architecture.window_period == 0 && slides && model.sliding_window() < facts.context_length)
      return refuse("the architecture \"", architecture.name, "\" has no sliding window, the model has one of ",
                    model.sliding_window());
    if (architecture.window_period > 0 && slides != architecture.slides(i))
      return refuse("in the architecture \"", architecture.name, "\" all layers but each ", architecture.window_period,
                    "th have the sliding window; in the model, layer ", i, " differs");
    if (listed(model.no_rope_layers_size(), i) && (model.no_rope_layers(at) != 0) != architecture.rotates(i))
      return refuse("the architecture \"", architecture.name, "\" ",
                    architecture.rotates(i) ? "rotates" : "does not rotate", " in layer ", i, ", the model differs");
  }
  if (!architecture.gemma) return absl::OkStatus();
  const double scalar =
      model.has_query_pre_attn_scalar() ? model.query_pre_attn_scalar() : static_cast<double>(facts.head_dim);
  if (scalar != static_cast<double>(facts.score_width()))
    return refuse("the architecture \"", architecture.name, "\" scales the scores of such a model by ",
                  facts.score_width(), ", query_pre_attn_scalar is ", scalar);
  if (architecture.attention_softcap != (facts.attn_logit_softcapping > 0))
    return refuse("the architecture \"", architecture.name, "\" ", architecture.attention_softcap ? "always" : "never",
                  " caps scores, attn_logit_softcapping is ", facts.attn_logit_softcapping);
  if (architecture.attention_softcap && !(facts.final_logit_softcapping > 0))
    return refuse("the architecture \"", architecture.name, "\" always caps logits, final_logit_softcapping is 0");
  return absl::OkStatus();
}

}  // namespace

bool NamesGguf(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) return false;
  if (absl::EndsWith(path, ".gguf")) return true;
  char magic[4] = {};
  return std::filesystem::is_regular_file(path, error) && std::ifstream(path).read(magic, sizeof(magic)) &&
         std::memcmp(magic, "GGUF", sizeof(magic)) == 0;
}

ModelConfig ConfigOfGguf(const GgufModelFacts& facts) {
  ModelConfig model;
  // Sizes are below 2^28.
  const auto int32 = [](int64_t number) { return static_cast<int32_t>(number); };
  model.set_family(facts.architecture->family);
  model.set_num_hidden_layers(int32(facts.block_count));
  model.set_hidden_size(int32(facts.embedding_length));
  model.set_num_attention_heads(int32(facts.head_count));
  model.set_num_key_value_heads(int32(facts.head_count_kv));
  model.set_head_dim(int32(facts.head_dim));
  model.set_intermediate_size(int32(facts.feed_forward_length));
  model.set_vocab_size(int32(facts.vocab_size));
  model.set_max_position_embeddings(int32(facts.context_length));
  model.set_rope_theta(facts.rope_freq_base);
  model.set_rms_norm_eps(facts.layer_norm_rms_epsilon);
  model.set_tie_word_embeddings(facts.tied_embeddings);
  if (facts.rope_scaling.has_value()) {
    RopeScaling& scaling = *model.mutable_rope_scaling();
    scaling.set_rope_type(RopeScaling::LLAMA3);
    scaling.set_factor(facts.rope_scaling->factor);
    scaling.set_low_freq_factor(facts.rope_scaling->low_freq_factor);
    scaling.set_high_freq_factor(facts.rope_scaling->high_freq_factor);
    scaling.set_original_max_position_embeddings(int32(facts.rope_scaling->original_max_position_embeddings));
  }
  if (facts.rope_linear_factor != 1) {
    model.mutable_rope_scaling()->set_rope_type(RopeScaling::LINEAR);
    model.mutable_rope_scaling()->set_factor(facts.rope_linear_factor);
  }
  const GgufArchitecture& architecture = *facts.architecture;
  for (int64_t i = 0; i < facts.block_count; ++i) {
    if (architecture.no_rope_period > 0) model.add_no_rope_layers(architecture.rotates(i) ? 1 : 0);
    // One layer less than a period: all have the window, which goes without a list.
    if (architecture.window_period > 0 && facts.block_count >= architecture.window_period)
      model.add_layer_types(architecture.slides(i) ? kSliding : kFull);
  }
  if (architecture.window_period > 0) model.set_sliding_window(int32(facts.sliding_window));
  if (architecture.local_rope) model.set_rope_local_base_freq(facts.rope_freq_base_swa);
  if (architecture.gemma) {
    model.set_query_pre_attn_scalar(static_cast<double>(facts.score_width()));
    model.set_attn_logit_softcapping(facts.attn_logit_softcapping);
    model.set_final_logit_softcapping(facts.final_logit_softcapping);
  }
  return model;
}

absl::StatusOr<GgufModelFacts> GgufFactsOf(const ModelConfig& model, const std::string& name) {
  GgufModelFacts facts;
  facts.name = name;
  facts.architecture = GgufArchitectureOfFamily(model.family());
  if (facts.architecture == nullptr)
    return Error(ExitCode::kConfig, "gguf: the family \"", model.family(),
                 "\" has no architecture here; export to Hugging Face's format instead");
  facts.block_count = model.num_hidden_layers();
  facts.context_length = model.max_position_embeddings();
  facts.embedding_length = model.hidden_size();
  facts.feed_forward_length = model.intermediate_size();
  facts.head_count = model.num_attention_heads();
  facts.head_count_kv = model.has_num_key_value_heads() ? model.num_key_value_heads() : facts.head_count;
  facts.head_dim = model.has_head_dim() ? model.head_dim() : facts.embedding_length / facts.head_count;
  facts.vocab_size = model.vocab_size();
  facts.layer_norm_rms_epsilon = model.rms_norm_eps();
  facts.rope_freq_base = model.rope_theta();
  facts.tied_embeddings = model.tie_word_embeddings();
  facts.sliding_window = model.sliding_window();
  facts.rope_freq_base_swa = model.rope_local_base_freq();
  facts.attn_logit_softcapping = model.attn_logit_softcapping();
  facts.final_logit_softcapping = model.final_logit_softcapping();
  RETURN_IF_ERROR(CheckExpressible(model, facts));
  if (model.has_rope_scaling() && model.rope_scaling().rope_type() == RopeScaling::LINEAR) {
    facts.rope_linear_factor = model.rope_scaling().factor();
  } else if (model.has_rope_scaling()) {
    const RopeScaling& s = model.rope_scaling();
    facts.rope_scaling = GgufRopeScaling{s.factor(), s.low_freq_factor(), s.high_freq_factor(),
                                         static_cast<double>(s.original_max_position_embeddings())};
  }
  return facts;
}

absl::StatusOr<HfTokenIds> ReadGgufTokenIds(const GgufFile& file, int64_t vocab_size) {
  HfTokenIds ids;
  const auto read = [&](const char* name) -> absl::StatusOr<std::optional<int64_t>> {
    ASSIGN_OR_RETURN(const int64_t id, file.Integer(absl::StrCat("tokenizer.ggml.", name, "_token_id"), -1));
    return id < 0 || id >= vocab_size ? std::nullopt : std::optional<int64_t>(id);
  };
  ASSIGN_OR_RETURN(ids.bos, read("bos"));
  ASSIGN_OR_RETURN(ids.pad, read("padding"));
  for (const char* name : {"eos", "eot", "eom"}) {
    ASSIGN_OR_RETURN(const std::optional<int64_t> end, read(name));
    if (end.has_value() && std::find(ids.eos.begin(), ids.eos.end(), *end) == ids.eos.end()) ids.eos.push_back(*end);
  }
  return ids;
}

}  // namespace trireme
