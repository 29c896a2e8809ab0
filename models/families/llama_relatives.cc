// Llama's decoder with other norms.
#include "models/parts/draft.h"
#include "models/spec/family.h"

namespace trireme {
namespace {

// Where some layers have a window, only they rotate.
DecoderSpec SpecifyExaone4(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  draft.block.norm_before = false;
  draft.block.norm_after = true;
  draft.attention.head_norm = HeadNormSpec{.norm = draft.block.norm};
  if (config.sliding_window() > 0) {
    for (LayerPattern& layer : draft.pattern) layer.rope = layer.window > 0;
  }
  return draft.Build(problems);
}

DecoderSpec SpecifyHunYuan(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  draft.attention.head_norm = HeadNormSpec{.norm = draft.block.norm, .after_rotation = true};
  return draft.Build(problems);
}

DecoderSpec SpecifyApertus(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  draft.attention.head_norm = HeadNormSpec{.norm = draft.block.norm};
  draft.feed_forward.gated = false;
  draft.feed_forward.xielu = true;
  return draft.Build(problems);
}

// A file that says nothing of rotation means Llama 3's rescaling.
void ReadApertus(JsonReader& reader, HfConfig* config) {
  if (reader.Has("rope_parameters") || reader.Has("rope_scaling") || reader.Has("rope_theta")) return;
  RopeScaling& scaling = *config->model.mutable_rope_scaling();
  scaling.set_rope_type(RopeScaling::LLAMA3);
  scaling.set_factor(8);
  scaling.set_original_max_position_embeddings(8192);
  scaling.set_low_freq_factor(1);
  scaling.set_high_freq_factor(4);
}

DecoderSpec SpecifyStableLm(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  UseLayerNorm(config, /*bias=*/true, &draft, problems);
  RotatePartly(config, 0.25, &draft, problems);
  draft.block.parallel = draft.block.shared_norm = config.use_parallel_residual();
  draft.attention.output_bias = false;
  if (config.use_qk_norm()) {
    draft.attention.head_norm = HeadNormSpec{.extent = HeadNormSpec::kEachHead, .norm = draft.block.norm};
    draft.attention.head_norm->norm.bias = false;
  }
  return draft.Build(problems);
}

DecoderSpec SpecifyNemotron(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  UseLayerNorm(config, /*bias=*/true, &draft, problems);
  draft.EachNorm([](NormSpec* norm) { norm->offset = 1; });
  RotatePartly(config, 0.5, &draft, problems);
  draft.feed_forward.gated = false;
  draft.feed_forward.activation = ActivationOf(config, "relu2", problems);
  return draft.Build(problems);
}

constexpr int64_t kSmolLm3Interval = 4;  // each fourth layer of the published models does not rotate

DecoderSpec SpecifySmolLm3(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  if (config.no_rope_layers().empty()) {
    for (size_t i = 0; i < draft.pattern.size(); ++i) draft.pattern[i].rope = (i + 1) % kSmolLm3Interval != 0;
  }
  return draft.Build(problems);
}

}  // namespace

// EXAONE 4 (arXiv 2507.11407): norms after, not before; normed heads; global layers do not rotate.
ModelFamily Exaone4Family() {
  return {"exaone4",
          &SpecifyExaone4,
          {},
          {{.model_type = "exaone4",
            .architecture = "Exaone4ForCausalLM",
            .family = "exaone4",
            .max_position_embeddings = 2048,
            .num_key_value_heads = 32,
            .own_head_dim = false,
            .windows = HfWindows::kPattern,
            .sliding_window = 4096,
            .window_period = 4,
            .own_period = true,
            .rms_norm_eps = 1e-5}}};
}

// Hunyuan's dense models (Tencent): heads are normed after rotation.
ModelFamily HunYuanDenseFamily() {
  return {"hunyuan_v1_dense",
          &SpecifyHunYuan,
          {.rules = {{"model.layers.*.self_attn.q_norm.weight", "model.layers.*.self_attn.query_layernorm.weight"},
                     {"model.layers.*.self_attn.k_norm.weight", "model.layers.*.self_attn.key_layernorm.weight"}}},
          {{.model_type = "hunyuan_v1_dense",
            .architecture = "HunYuanDenseV1ForCausalLM",
            .family = "hunyuan_v1_dense",
            .max_position_embeddings = 2048,
            .attention_bias = true,
            .rope_alpha = true,
            .rms_norm_eps = 1e-5}}};
}

// Apertus (arXiv 2509.14233): normed heads, xIELU.
ModelFamily ApertusFamily() {
  return {
      "apertus",
      &SpecifyApertus,
      {.rules = {{"model.layers.*.input_layernorm.weight", "model.layers.*.attention_layernorm.weight"},
                 {"model.layers.*.post_attention_layernorm.weight", "model.layers.*.feedforward_layernorm.weight"},
                 {.name = "model.layers.*.mlp.act_fn.beta", .stored = "model.layers.*.mlp.act_fn.beta", .scalar = true},
                 {.name = "model.layers.*.mlp.act_fn.eps", .stored = "model.layers.*.mlp.act_fn.eps", .scalar = true}}},
      {{.model_type = "apertus",
        .architecture = "ApertusForCausalLM",
        .family = "apertus",
        .max_position_embeddings = 65536,
        .own_head_dim = false,
        .rope_theta = 12000000,
        .attention_bias = true,
        .rms_norm_eps = 1e-5,
        .only = {{"hidden_act", "xielu", "is not supported; \"xielu\" is"}},
        .read_more = &ReadApertus}}};
}

// StableLM 3B and 2 (arXiv 2402.17834).
ModelFamily StableLmFamily() {
  return {
      "stablelm",
      &SpecifyStableLm,
      {.rules = {{"model.layers.*.self_attn.q_norm.weight", "model.layers.*.self_attn.q_layernorm.norms.#.weight"},
                 {"model.layers.*.self_attn.k_norm.weight", "model.layers.*.self_attn.k_layernorm.norms.#.weight"}}},
      {{.model_type = "stablelm",
        .architecture = "StableLmForCausalLM",
        .family = "stablelm",
        .max_position_embeddings = 4096,
        .num_key_value_heads = 32,
        .own_head_dim = false,
        .partial_rotary = 0.25,
        .rms_norm_eps = 0,
        .keys = {{"layer_norm_eps", 1e-05},
                 {"use_qkv_bias", false, "attention_bias"},
                 {"qk_layernorm", false, "use_qk_norm"},
                 {"use_parallel_residual", false}},
        .dropouts = {"hidden_dropout", "attention_dropout"}}}};
}

// Nemotron-4 and Minitron (arXiv 2402.16819): LayerNorm that learns the distance from one, squared ReLU.
ModelFamily NemotronFamily() {
  return {"nemotron",
          &SpecifyNemotron,
          {},
          {{.model_type = "nemotron",
            .architecture = "NemotronForCausalLM",
            .family = "nemotron",
            .max_position_embeddings = 4096,
            .attention_bias = true,
            .partial_rotary = 0.5,
            .rms_norm_eps = 0,
            .initializer_range = 0.0134,
            .keys = {{"norm_eps", 1e-05, "layer_norm_eps"}, {"mlp_bias", false}, {"hidden_act", "relu2"}}}}};
}

// Llama whose positions do not turn everywhere.
ModelFamily SmolLm3Family() { return {"smollm3", &SpecifySmolLm3}; }

}  // namespace trireme
