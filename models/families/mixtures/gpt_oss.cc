#include "models/families/mixtures/mixture.h"

namespace trireme {
namespace {

DecoderSpec SpecifyGptOss(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  CheckPositive("swiglu_alpha", config.swiglu_alpha(), /*zero_too=*/false, problems);
  CheckPositive("swiglu_limit", config.swiglu_limit(), /*zero_too=*/false, problems);
  draft.attention.sinks = true;
  ExpertsSettings experts = ExpertsOf(config, draft);
  experts.width = draft.feed_forward.width;
  experts.routing.score = RoutingRule::kSoftmaxAfter;
  experts.routing.renormalize = false;
  experts.gate.clamped = ClampedGate{config.swiglu_alpha(), config.swiglu_limit()};
  experts.bias = true;
  return BuildExperts(std::move(draft), experts, &AllSparse, problems);
}

void ReadGptOss(JsonReader& reader, HfConfig* config) {
  ReadNumExperts(reader, config);
  for (const char* key : {"experts_per_token", "initial_context_length"}) reader.Find(key);  // nobody reads them
  if (reader.Has("rope_scaling") || reader.Has("rope_parameters")) return;
  RopeScaling* scaling = config->model.mutable_rope_scaling();
  scaling->set_rope_type(RopeScaling::YARN);
  scaling->set_factor(32);
  scaling->set_original_max_position_embeddings(4096);
  scaling->set_truncate(false);
}

constexpr char kGateUpBias[] = "model.layers.*.mlp.experts.gate_up_proj.bias",
               kDownBias[] = "model.layers.*.mlp.experts.down_proj.bias";

// Matrices by expert as [inputs, outputs].
std::vector<WeightRule> GptOssRules() {
  return {
      {kOurRouter, "model.layers.*.mlp.router.weight"},
      {"model.layers.*.mlp.gate.bias", "model.layers.*.mlp.router.bias"},
      {.name = kOurGateUp, .stored = "model.layers.*.mlp.experts.gate_up_proj", .transposed = true, .by_heads = true},
      {.name = kOurDown, .stored = "model.layers.*.mlp.experts.down_proj", .transposed = true, .by_heads = true},
      {.name = kGateUpBias, .stored = "model.layers.*.mlp.experts.gate_up_proj_bias", .by_heads = true},
      {.name = kDownBias, .stored = "model.layers.*.mlp.experts.down_proj_bias", .by_heads = true}};
}

// Or as published: codes of four bits (models/formats/hf/packed.h), not transposed.
std::vector<WeightRule> GptOssPacked() {
  return {{.name = kOurGateUp, .stored = "model.layers.*.mlp.experts.gate_up_proj_blocks", .by_heads = true},
          {.name = kOurDown, .stored = "model.layers.*.mlp.experts.down_proj_blocks", .by_heads = true}};
}

}  // namespace

// arXiv 2508.10925: sinks, biases everywhere, gates with a limit, windows in every other layer.
ModelFamily GptOssFamily() {
  return {
      "gpt_oss",
      &SpecifyGptOss,
      {.rules = GptOssRules(), .also = {GptOssPacked()}},
      {{.model_type = "gpt_oss",
        .architecture = "GptOssForCausalLM",
        .family = "gpt_oss",
        .max_position_embeddings = 131072,
        .num_key_value_heads = 8,
        .head_dim = 64,
        .rope_theta = 150000,
        .windows = HfWindows::kPattern,
        .sliding_window = 128,
        .window_period = 2,
        .rms_norm_eps = 1e-5,
        .keys =
            {{"attention_bias", true}, {"num_experts_per_tok", 4.0}, {"swiglu_alpha", 1.702}, {"swiglu_limit", 7.0}},
        .read_more = &ReadGptOss,
        .write_more = &WriteLocalExperts}}};
}

}  // namespace trireme
