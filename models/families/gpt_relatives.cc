// GPT's decoder with other norms, biases and positions.
#include "models/families/gpt.h"
#include "models/spec/family.h"

namespace trireme {
namespace {

DecoderSpec SpecifyStarcoder2(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  UseLayerNorm(config, /*bias=*/true, &draft, problems);
  const bool bias = config.attention_bias();
  draft.attention.qkv_bias = draft.attention.output_bias = draft.feed_forward.bias = bias;
  draft.feed_forward.gated = false;
  draft.feed_forward.activation = ActivationOf(config, "gelu_pytorch_tanh", problems);
  return draft.Build(problems);
}

// arXiv 2311.16867. 7B: one key head, one norm for both parts; later: groups and two norms; RW-like: one part after the
// other.
DecoderSpec SpecifyFalcon(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  UseLayerNorm(config, /*bias=*/true, &draft, problems);
  const bool grouped = config.new_decoder_architecture();
  const int32_t norms = config.has_num_ln_in_parallel_attn() ? config.num_ln_in_parallel_attn() : 2;
  draft.block.parallel = grouped || config.parallel_attn();
  draft.block.shared_norm = grouped ? norms == 1 : config.parallel_attn();
  if (grouped && norms != 1 && norms != 2)
    problems->push_back(absl::StrCat("model.num_ln_in_parallel_attn: is ", norms, "; give 1 or 2"));
  draft.feed_forward.gated = false;
  draft.feed_forward.bias = config.attention_bias();
  draft.feed_forward.activation = ActivationOf(config, "gelu", problems);
  return draft.Build(problems);
}

DecoderSpec SpecifyOpt(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftGpt(config, "relu", problems);
  draft.EachNorm([](NormSpec* norm) { norm->eps = 1e-5; });
  draft.spec.embedding.positions = true;
  draft.spec.embedding.position_offset = 2;
  const bool bias = config.attention_bias();
  draft.attention.qkv_bias = draft.attention.output_bias = draft.feed_forward.bias = bias;
  for (LayerPattern& layer : draft.pattern) layer.rope = false;
  return draft.Build(problems);
}

DecoderSpec SpecifyBloom(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftGpt(config, "gelu_pytorch_tanh", problems);
  draft.attention.qkv_bias = draft.attention.output_bias = true;
  draft.attention.alibi = true;
  draft.spec.embedding.norm = draft.block.norm;
  for (LayerPattern& layer : draft.pattern) layer.rope = false;
  return draft.Build(problems);
}

// q, k and v of one kv group after another in one tensor.
std::vector<WeightRule> GroupedQkv(const char* weight, const char* bias) {
  std::vector<WeightRule> rules =
      Fused(weight, {"model.layers.*.self_attn.q_proj.weight", "model.layers.*.self_attn.k_proj.weight",
                     "model.layers.*.self_attn.v_proj.weight"});
  for (const WeightRule& rule :
       Fused(bias, {"model.layers.*.self_attn.q_proj.bias", "model.layers.*.self_attn.k_proj.bias",
                    "model.layers.*.self_attn.v_proj.bias"}))
    rules.push_back(rule);
  for (WeightRule& rule : rules) rule.per_group = true;
  return rules;
}

// How Falcon and BLOOM call what they share; `more` comes first.
WeightNames TransformerNames(std::vector<WeightRule> more) {
  WeightNames names = {.rules = std::move(more), .optional_prefix = "transformer."};
  const auto add = [&](const std::vector<WeightRule>& rules) {
    names.rules.insert(names.rules.end(), rules.begin(), rules.end());
  };
  add(GroupedQkv("transformer.h.*.self_attention.query_key_value.weight",
                 "transformer.h.*.self_attention.query_key_value.bias"));
  add({{"model.embed_tokens.weight", "transformer.word_embeddings.weight"},
       {"model.layers.*.input_layernorm.weight", "transformer.h.*.input_layernorm.weight"},
       {"model.layers.*.input_layernorm.bias", "transformer.h.*.input_layernorm.bias"},
       {"model.layers.*.post_attention_layernorm.weight", "transformer.h.*.post_attention_layernorm.weight"},
       {"model.layers.*.post_attention_layernorm.bias", "transformer.h.*.post_attention_layernorm.bias"},
       {"model.layers.*.self_attn.o_proj.weight", "transformer.h.*.self_attention.dense.weight"},
       {"model.layers.*.self_attn.o_proj.bias", "transformer.h.*.self_attention.dense.bias"},
       {"model.layers.*.mlp.up_proj.weight", "transformer.h.*.mlp.dense_h_to_4h.weight"},
       {"model.layers.*.mlp.up_proj.bias", "transformer.h.*.mlp.dense_h_to_4h.bias"},
       {"model.layers.*.mlp.down_proj.weight", "transformer.h.*.mlp.dense_4h_to_h.weight"},
       {"model.layers.*.mlp.down_proj.bias", "transformer.h.*.mlp.dense_4h_to_h.bias"},
       {"model.norm.weight", "transformer.ln_f.weight"},
       {"model.norm.bias", "transformer.ln_f.bias"}});
  return names;
}

WeightNames FalconNames() {
  // Norms of parallel parts have names of their own.
  const auto two = [](const char* name, const char* stored) {
    return WeightRule{.name = name, .stored = stored, .applies = [](const DecoderSpec& spec) {
                        return spec.layer(0).parallel && !spec.layer(0).shared_norm;
                      }};
  };
  return TransformerNames({two("model.layers.*.input_layernorm.weight", "transformer.h.*.ln_attn.weight"),
                           two("model.layers.*.input_layernorm.bias", "transformer.h.*.ln_attn.bias"),
                           two("model.layers.*.post_attention_layernorm.weight", "transformer.h.*.ln_mlp.weight"),
                           two("model.layers.*.post_attention_layernorm.bias", "transformer.h.*.ln_mlp.bias")});
}

WeightNames BloomNames() {
  return TransformerNames({{"model.embed_norm.weight", "transformer.word_embeddings_layernorm.weight"},
                           {"model.embed_norm.bias", "transformer.word_embeddings_layernorm.bias"}});
}

WeightNames OptNames() {
  return {
      .rules = {{"model.embed_tokens.weight", "model.decoder.embed_tokens.weight"},
                {"model.embed_positions.weight", "model.decoder.embed_positions.weight"},
                {"model.layers.*.input_layernorm.weight", "model.decoder.layers.*.self_attn_layer_norm.weight"},
                {"model.layers.*.input_layernorm.bias", "model.decoder.layers.*.self_attn_layer_norm.bias"},
                {"model.layers.*.self_attn.q_proj.weight", "model.decoder.layers.*.self_attn.q_proj.weight"},
                {"model.layers.*.self_attn.k_proj.weight", "model.decoder.layers.*.self_attn.k_proj.weight"},
                {"model.layers.*.self_attn.v_proj.weight", "model.decoder.layers.*.self_attn.v_proj.weight"},
                {"model.layers.*.self_attn.o_proj.weight", "model.decoder.layers.*.self_attn.out_proj.weight"},
                {"model.layers.*.self_attn.q_proj.bias", "model.decoder.layers.*.self_attn.q_proj.bias"},
                {"model.layers.*.self_attn.k_proj.bias", "model.decoder.layers.*.self_attn.k_proj.bias"},
                {"model.layers.*.self_attn.v_proj.bias", "model.decoder.layers.*.self_attn.v_proj.bias"},
                {"model.layers.*.self_attn.o_proj.bias", "model.decoder.layers.*.self_attn.out_proj.bias"},
                {"model.layers.*.post_attention_layernorm.weight", "model.decoder.layers.*.final_layer_norm.weight"},
                {"model.layers.*.post_attention_layernorm.bias", "model.decoder.layers.*.final_layer_norm.bias"},
                {"model.layers.*.mlp.up_proj.weight", "model.decoder.layers.*.fc1.weight"},
                {"model.layers.*.mlp.up_proj.bias", "model.decoder.layers.*.fc1.bias"},
                {"model.layers.*.mlp.down_proj.weight", "model.decoder.layers.*.fc2.weight"},
                {"model.layers.*.mlp.down_proj.bias", "model.decoder.layers.*.fc2.bias"},
                {"model.norm.weight", "model.decoder.final_layer_norm.weight"},
                {"model.norm.bias", "model.decoder.final_layer_norm.bias"}},
      .optional_prefix = "model."};
}

// 7B's one key head goes with any number that the file gives for the new layout.
void ReadFalcon(JsonReader& reader, HfConfig* config) {
  ModelConfig& model = config->model;
  const int32_t heads = model.num_attention_heads();
  const bool grouped = model.new_decoder_architecture();
  const std::optional<int32_t> given = reader.Integer("num_kv_heads");
  if (reader.Bool("multi_query").value_or(true) && !grouped) {
    model.set_num_key_value_heads(1);
  } else {
    model.set_num_key_value_heads(given.value_or(heads));
    if (!grouped && given.has_value() && *given != heads)
      reader.Bad("num_kv_heads", *given, "is not num_attention_heads, which this layout has");
  }
  const std::optional<int32_t> norms = reader.Integer("num_ln_in_parallel_attn");
  if (grouped) model.set_num_ln_in_parallel_attn(norms.value_or(2));
  if (!model.has_intermediate_size()) model.set_intermediate_size(4 * std::min(model.hidden_size(), INT32_MAX / 4));
  reader.Require("alibi", false, "is not supported; Transformers computes it in bfloat16, whatever the model is in");
}

void WriteFalcon(const ModelConfig& model, nlohmann::ordered_json* json) {
  const bool grouped = model.new_decoder_architecture();
  const int32_t kv = model.has_num_key_value_heads() ? model.num_key_value_heads() : model.num_attention_heads();
  (*json)["num_kv_heads"] = grouped ? kv : model.num_attention_heads();
  (*json)["multi_query"] = grouped || kv == 1;
  (*json)["alibi"] = false;
  json->erase("num_key_value_heads");
  (*json)["num_ln_in_parallel_attn"] =
      !grouped ? nlohmann::json()
               : nlohmann::json(model.has_num_ln_in_parallel_attn() ? model.num_ln_in_parallel_attn() : 2);
}

void ReadBloom(JsonReader& reader, HfConfig* config) {
  ModelConfig& model = config->model;
  if (!model.has_hidden_size()) {
    if (const std::optional<int32_t> old = reader.Integer("n_embed")) model.set_hidden_size(*old);
  } else {
    reader.Find("n_embed");
  }
  model.set_intermediate_size(4 * std::min(model.hidden_size(), INT32_MAX / 4));
  reader.Find("slow_but_exact");
  for (const char* key : {"masked_softmax_fusion", "attention_softmax_in_fp32", "bias_dropout_fusion", "unk_token_id",
                          "skip_bias_add", "skip_bias_add_qkv"})
    reader.Find(key);  // of the training program, without meaning here
}

void WriteBloom(const ModelConfig&, nlohmann::ordered_json* json) {
  for (const char* key :
       {"intermediate_size", "num_key_value_heads", "hidden_act", "rope_theta", "rope_scaling", "rope_parameters"})
    json->erase(key);
}

void WriteOpt(const ModelConfig& model, nlohmann::ordered_json* json) {
  (*json)["word_embed_proj_dim"] = model.hidden_size();
  for (const char* key : {"num_key_value_heads", "rope_theta", "rope_scaling", "rope_parameters", "initializer_range"})
    json->erase(key);
}

void ReadOpt(JsonReader& reader, HfConfig* config) {
  if (const std::optional<int32_t> width = reader.Integer("word_embed_proj_dim");
      width.has_value() && *width != config->model.hidden_size())
    reader.Bad("word_embed_proj_dim", *width, "is not hidden_size, which is not supported");
  reader.Find("activation_dropout");
  reader.Find("prefix");
}

}  // namespace

// arXiv 2402.19173.
ModelFamily Starcoder2Family() {
  return {"starcoder2",
          &SpecifyStarcoder2,
          {.rules = {{"model.layers.*.mlp.up_proj.weight", "model.layers.*.mlp.c_fc.weight"},
                     {"model.layers.*.mlp.up_proj.bias", "model.layers.*.mlp.c_fc.bias"},
                     {"model.layers.*.mlp.down_proj.weight", "model.layers.*.mlp.c_proj.weight"},
                     {"model.layers.*.mlp.down_proj.bias", "model.layers.*.mlp.c_proj.bias"}}},
          {{.model_type = "starcoder2",
            .architecture = "Starcoder2ForCausalLM",
            .family = "starcoder2",
            .max_position_embeddings = 4096,
            .num_key_value_heads = 2,
            .own_head_dim = false,
            .tied = true,
            .windows = HfWindows::kAll,
            .rms_norm_eps = 0,
            .initializer_range = 0.018042,
            .keys = {{"norm_epsilon", 1e-05, "layer_norm_eps"},
                     {"use_bias", true, "attention_bias"},
                     {"hidden_act", "gelu_pytorch_tanh"}},
            .dropouts = {"attention_dropout", "residual_dropout", "embedding_dropout"}}}};
}

ModelFamily FalconFamily() {
  return {"falcon",
          &SpecifyFalcon,
          FalconNames(),
          {{.model_type = "falcon",
            .architecture = "FalconForCausalLM",
            .family = "falcon",
            .max_position_embeddings = 2048,
            .own_head_dim = false,
            .tied = true,
            .rms_norm_eps = 0,
            .keys = {{"layer_norm_epsilon", 1e-05, "layer_norm_eps"},
                     {"ffn_hidden_size", {}, "intermediate_size"},
                     {"activation", "gelu", "hidden_act"},
                     {"bias", false, "attention_bias"},
                     {"new_decoder_architecture", false},
                     {"parallel_attn", true}},
            .dropouts = {"attention_dropout", "hidden_dropout"},
            .read_more = &ReadFalcon,
            .write_more = &WriteFalcon}}};
}

// arXiv 2205.01068, all sizes but 350M, whose norms stand elsewhere.
ModelFamily OptFamily() {
  return {"opt",
          &SpecifyOpt,
          OptNames(),
          {{.model_type = "opt",
            .architecture = "OPTForCausalLM",
            .family = "opt",
            .max_position_embeddings = 2048,
            .own_head_dim = false,
            .tied = true,
            .rms_norm_eps = 0,
            .keys = {{"ffn_dim", {}, "intermediate_size"},
                     {"activation_function", "relu", "hidden_act"},
                     {"enable_bias", true, "attention_bias"},
                     {"init_std", 0.02, "initializer_range"}},
            .only = {{"do_layer_norm_before", true, "is not supported; norms stand before layers"},
                     {"_remove_final_layer_norm", false, "is not supported"},
                     {"layer_norm_elementwise_affine", true, "is not supported"}},
            .dropouts = {"dropout", "attention_dropout", "layerdrop"},
            .read_more = &ReadOpt,
            .write_more = &WriteOpt}}};
}

// arXiv 2211.05100: scores fall with distance, embeddings are normed.
ModelFamily BloomFamily() {
  return {"bloom",
          &SpecifyBloom,
          BloomNames(),
          {{.model_type = "bloom",
            .architecture = "BloomForCausalLM",
            .family = "bloom",
            .max_position_embeddings = 2048,
            .own_head_dim = false,
            .tied = true,
            .rms_norm_eps = 0,
            .keys = {{"n_layer", {}, "num_hidden_layers"},
                     {"n_head", {}, "num_attention_heads"},
                     {"seq_length", 2048.0, "max_position_embeddings"},
                     {"layer_norm_epsilon", 1e-05, "layer_norm_eps"}},
            .only = {{"apply_residual_connection_post_layernorm", false, "is not supported"}},
            .dropouts = {"hidden_dropout", "attention_dropout"},
            .read_more = &ReadBloom,
            .write_more = &WriteBloom}}};
}

}  // namespace trireme
