#include "models/formats/gguf/gguf_architecture.h"

namespace trireme {
namespace {

using Records = std::vector<GgufArchitecture>;

const GgufKey kRmsEpsilon = {"attention.layer_norm_rms_epsilon", "rms_norm_eps"},
              kLayerEpsilon = {"attention.layer_norm_epsilon", "layer_norm_eps"},
              kExperts = {.key = "expert_count", .field = "num_experts", .positive = true},
              kExpertsUsed = {.key = "expert_used_count", .field = "num_experts_per_tok", .positive = true},
              kExpertWidth = {.key = "expert_feed_forward_length", .field = "moe_intermediate_size", .positive = true};

const GgufSwitch kInputBiases = {"attention_bias", "attn_q.bias"},
                 kOutputBias = {"attention_out_bias", "attn_output.bias"},
                 kFeedForwardBiases = {"mlp_bias", "ffn_up.bias"}, kHeadNorms = {"use_qk_norm", "attn_q_norm.weight"};

bool HasExperts(const ModelConfig& model) { return model.num_experts() > 0; }
bool HasWindow(const ModelConfig& model) { return model.sliding_window() > 0; }

// Llama and what has its keys and tensors.
Records LlamaRecords() {
  return {
      {.name = "llama",
       .family = "mixtral",
       .when = &HasExperts,
       .keys = {kRmsEpsilon, kExperts, kExpertsUsed},
       .reorders_rows = true,
       .rope_factors = true},
      {.name = "llama",
       .family = "llama",
       .keys = {kRmsEpsilon},
       .switches = {kInputBiases, kOutputBias, kFeedForwardBiases},
       .reorders_rows = true,
       .rope_factors = true},
      {.name = "smollm3", .family = "smollm3", .keys = {kRmsEpsilon}, .reorders_rows = true, .no_rope_period = 4},
      {.name = "arcee",
       .family = "arcee",
       .keys = {kRmsEpsilon},
       .fixed = {{"hidden_act", "relu2"}},
       .reorders_rows = true,
       .rope_factors = true},
      {.name = "seed_oss",
       .family = "seed_oss",
       .keys = {kRmsEpsilon},
       .fixed = {{"attention_out_bias", false}},
       .switches = {kInputBiases}},
      {.name = "ernie4_5", .family = "ernie4_5", .keys = {kRmsEpsilon}},
      {.name = "apertus",
       .family = "apertus",
       .keys = {kRmsEpsilon},
       .switches = {kInputBiases, kOutputBias},
       .head = GgufHead::kAlways,
       .rope_factors = true},
      {.name = "hunyuan-dense", .family = "hunyuan_v1_dense", .keys = {kRmsEpsilon}, .alpha_in_base = true},
      // The largest has windows, others have none and rotate everywhere.
      {.name = "exaone4",
       .family = "exaone4",
       .when = [](const ModelConfig& model) { return model.num_hidden_layers() == 64; },
       .keys = {kRmsEpsilon},
       .even_heads = true,
       .rope_factors = true,
       .window_period = 4,
       .lists_windows = GgufWindowList::kAlways},
      {.name = "exaone4",
       .family = "exaone4",
       .keys = {kRmsEpsilon},
       .fixed = {{"sliding_window", 0.0}},
       .even_heads = true,
       .rope_factors = true},
  };
}

Records QwenRecords() {
  return {
      {.name = "qwen2", .family = "qwen2", .keys = {kRmsEpsilon}, .even_heads = true},
      {.name = "qwen3", .family = "qwen3", .keys = {kRmsEpsilon}},
      {.name = "qwen3moe",
       .family = "qwen3_moe",
       .keys = {kRmsEpsilon, kExperts, kExpertsUsed, kExpertWidth},
       .fixed = {{"norm_topk_prob", true}, {"decoder_sparse_step", 1.0}}},
      {.name = "qwen2moe",
       .family = "qwen2_moe",
       .keys = {kRmsEpsilon,
                kExperts,
                kExpertsUsed,
                kExpertWidth,
                {"expert_shared_feed_forward_length", "shared_expert_intermediate_size"}},
       .fixed = {{"norm_topk_prob", false}, {"decoder_sparse_step", 1.0}},
       .head = GgufHead::kAlways,
       .even_heads = true},
  };
}

Records GemmaRecords() {
  return {
      {.name = "gemma", .family = "gemma", .keys = {kRmsEpsilon}, .head = GgufHead::kNever},
      {.name = "gemma2",
       .family = "gemma2",
       .keys =
           {kRmsEpsilon,
            {.key = "attn_logit_softcapping", .field = "attn_logit_softcapping", .if_absent = 50, .positive = true},
            {.key = "final_logit_softcapping", .field = "final_logit_softcapping", .if_absent = 30, .positive = true}},
       .head = GgufHead::kNever,
       .window_period = 2,
       .scales_by_width = true,
       .even_share_layers = 46},
      {.name = "gemma3",
       .family = "gemma3_text",
       .keys =
           {kRmsEpsilon,
            {.key = "final_logit_softcapping", .field = "final_logit_softcapping", .if_absent = 0, .left_out = true}},
       .fixed = {{"attn_logit_softcapping", 0.0}},
       .window_period = 6,
       .local_rope = true,
       .scales_by_width = true,
       .even_share_layers = 62},
  };
}

Records GlmRecords() {
  return {
      {.name = "chatglm",
       .family = "glm",
       .keys = {kRmsEpsilon},
       .switches = {kInputBiases},
       .even_heads = true,
       .partial_rotation = true},
      {.name = "glm4", .family = "glm4", .keys = {kRmsEpsilon}, .switches = {kInputBiases}, .partial_rotation = true},
      {.name = "glm4moe",
       .family = "glm4_moe",
       .keys = {kRmsEpsilon,
                kExperts,
                kExpertsUsed,
                kExpertWidth,
                {.key = "expert_shared_count", .field = "n_shared_experts"},
                {.key = "leading_dense_block_count", .field = "first_k_dense_replace", .if_absent = 0},
                {.key = "expert_weights_scale", .field = "routed_scaling_factor", .if_absent = 1, .positive = true},
                {.key = "expert_weights_norm", .field = "norm_topk_prob", .if_absent = 0},
                {.key = "expert_group_count", .field = "n_group", .if_absent = 1},
                {.key = "expert_group_used_count", .field = "topk_group", .if_absent = 1}},
       .constants = {{"expert_gating_func", uint32_t{2}}},  // sigmoid
       .switches = {kInputBiases, kHeadNorms},
       .partial_rotation = true},
  };
}

// llama.cpp takes DeepSeek models of these layers for lite ones, whose queries have no latent.
bool IsLite(const ModelConfig& model) {
  const int32_t layers = model.num_hidden_layers();
  return layers == 26 || layers == 27 || (layers == 48 && model.vocab_size() == 128256);
}

absl::Status CheckQueryRank(const GgufHeader&, ModelConfig* model) {
  if (IsLite(*model) == (model->q_lora_rank() == 0)) return absl::OkStatus();
  return Error(ExitCode::kData, "architecture \"deepseek2\" has a q_lora_rank unless there are 26 or 27 layers (or 48 ",
               "with a vocabulary of 128256); q_lora_rank is ", model->q_lora_rank(), " with ",
               model->num_hidden_layers(), " layers");
}

// DeepSeek V2 and V3, told apart by how experts are scored.
Records DeepseekRecords() {
  GgufArchitecture v2 = {
      .name = "deepseek2",
      .family = "deepseek_v2",
      .keys = {kRmsEpsilon,
               kExperts,
               kExpertsUsed,
               kExpertWidth,
               {.key = "expert_shared_count", .field = "n_shared_experts", .positive = true},
               {.key = "leading_dense_block_count", .field = "first_k_dense_replace", .if_absent = 0},
               {.key = "expert_weights_scale", .field = "routed_scaling_factor", .if_absent = 1, .positive = true},
               {.key = "expert_weights_norm", .field = "norm_topk_prob", .if_absent = 0, .left_out = true},
               {.key = "attention.q_lora_rank", .field = "q_lora_rank", .if_absent = 0, .left_out = true},
               {.key = "attention.kv_lora_rank", .field = "kv_lora_rank", .positive = true}},
      .constants = {{"expert_gating_func", uint32_t{1}}},  // softmax
      // The norms between latents have the epsilon of the others, where Transformers has 1e-6.
      .fixed = {{"rms_norm_eps", 1e-6}, {"attention_bias", false}, {"rope_interleave", true}},
      .latent = true,
      .without_adapters = {"attn_q", "attn_q_a", "attn_q_b", "attn_kv_a_mqa", "output"},
      .read_more = &CheckQueryRank};
  GgufArchitecture v3 = v2;
  const GgufKey groups = {"expert_group_count", "n_group", 1}, chosen = {"expert_group_used_count", "topk_group", 1};
  v3.family = "deepseek_v3";
  v3.keys.insert(v3.keys.end(), {groups, chosen});
  v3.constants = {{"expert_gating_func", uint32_t{2}}};  // sigmoid
  // Groups are chosen by the sum of their best two, in V2 by the best.
  v2.fixed.insert(v2.fixed.end(), {{"norm_topk_prob", false}, {"n_group", 1.0}, {"topk_group", 1.0}});
  for (GgufKey key : {groups, chosen}) {
    key.left_out = true;
    v2.keys.push_back(key);
  }
  return {v2, v3};
}

Records GptOssRecords() {
  return {{.name = "gpt-oss",
           .family = "gpt_oss",
           .keys = {kRmsEpsilon, kExperts, kExpertsUsed, {"expert_feed_forward_length", "intermediate_size"}},
           .fixed = {{"attention_bias", true}, {"swiglu_alpha", 1.702}, {"swiglu_limit", 7.0}},
           .head = GgufHead::kAlways,
           .untruncated_yarn = true,
           .window_period = 2}};
}

Records OlmoRecords() {
  return {
      {.name = "olmo",
       .family = "olmo",
       .keys = {{.key = "attention.clamp_kqv", .field = "clip_qkv", .if_absent = 0, .left_out = true}},
       .constants = {{"attention.layer_norm_epsilon", 1e-5f}},
       .even_heads = true,
       .reorders_rows = true},
      // Layers with a window have the same base, not rescaled.
      {.name = "olmo2",
       .family = "olmo3",
       .when = &HasWindow,
       .keys = {kRmsEpsilon},
       .head = GgufHead::kAlways,
       .even_heads = true,
       .window_period = 4,
       .lists_windows = GgufWindowList::kAlways,
       .read_more =
           [](const GgufHeader&, ModelConfig* model) {
             model->set_rope_local_base_freq(model->rope_theta());
             return absl::OkStatus();
           }},
      {.name = "olmo2", .family = "olmo2", .keys = {kRmsEpsilon}, .head = GgufHead::kAlways, .even_heads = true},
      {.name = "olmoe",
       .family = "olmoe",
       .keys = {kRmsEpsilon, kExperts, kExpertsUsed},
       .fixed = {{"norm_topk_prob", false}, {"clip_qkv", 0.0}},
       .head = GgufHead::kAlways,
       .even_heads = true,
       .even_groups = true},
  };
}

Records GraniteRecords() {
  const GgufKey attention = {.key = "attention.scale", .field = "attention_multiplier", .positive = true},
                embedding = {.key = "embedding_scale",
                             .field = "embedding_multiplier",
                             .if_absent = 1,
                             .positive = true},
                residual = {.key = "residual_scale", .field = "residual_multiplier", .if_absent = 1, .positive = true},
                logits = {.key = "logit_scale", .field = "logits_scaling", .positive = true};
  return {
      {.name = "granite",
       .family = "granite",
       .keys = {kRmsEpsilon, attention, embedding, residual, logits},
       .switches = {kInputBiases, kOutputBias, kFeedForwardBiases},
       .reorders_rows = true,
       .rope_factors = true},
      {.name = "granitemoe",
       .family = "granitemoe",
       .keys = {kRmsEpsilon, attention, embedding, residual, logits, kExperts, kExpertsUsed},
       .switches = {kInputBiases, kOutputBias},
       .reorders_rows = true},
  };
}

Records CohereRecords() {
  GgufArchitecture command = {.name = "command-r",
                              .family = "cohere",
                              .keys = {kLayerEpsilon, {"logit_scale", "logit_scale", 1}},
                              .fixed = {{"use_qk_norm", false}},
                              .head = GgufHead::kNever,
                              .even_heads = true,
                              .says_unscaled = true};
  GgufArchitecture plus = command;  // R+ is told by its layers
  plus.when = [](const ModelConfig& model) { return model.num_hidden_layers() >= 64; };
  plus.fixed = {{"use_qk_norm", true}};
  return {
      plus,
      command,
      {.name = "cohere2",
       .family = "cohere2",
       .keys = {kLayerEpsilon, {.key = "logit_scale", .field = "logit_scale", .positive = true}},
       .head = GgufHead::kNever,
       .even_heads = true,
       .says_unscaled = true,
       .window_period = 4,
       .lists_windows = GgufWindowList::kUnlessPeriodic},
  };
}

// Files of 40B and later have two norms, or groups of heads that share a key.
absl::Status ReadFalconLayout(const GgufHeader& header, ModelConfig* model) {
  const bool two_norms = header.FindTensor("blk.0.attn_norm_2.weight") != nullptr;
  const bool grouped =
      model->num_key_value_heads() != 1 && model->num_key_value_heads() != model->num_attention_heads();
  model->set_new_decoder_architecture(two_norms || grouped);
  if (two_norms || grouped) model->set_num_ln_in_parallel_attn(two_norms ? 2 : 1);
  return absl::OkStatus();
}

// GPT-2 and what came of it: LayerNorms, mostly with biases.
Records GptRecords() {
  return {
      {.name = "gpt2",
       .family = "gpt2",
       .keys = {kLayerEpsilon},
       .fixed = {{"hidden_act", "gelu_new"}, {"scale_attn_by_inverse_layer_idx", false}},
       .even_heads = true,
       .rotates = false},
      {.name = "gptneox",
       .family = "gpt_neox",
       .keys = {kLayerEpsilon, {"use_parallel_residual", "use_parallel_residual"}},
       .fixed = {{"hidden_act", "gelu"}, {"attention_bias", true}},
       .head = GgufHead::kAlways,
       .even_heads = true,
       .partial_rotation = true},
      {.name = "bloom",
       .family = "bloom",
       .keys = {kLayerEpsilon},
       .fixed = {{"hidden_act", "gelu_pytorch_tanh"}},
       .even_heads = true,
       .rotates = false},
      {.name = "falcon",
       .family = "falcon",
       .keys = {kLayerEpsilon},
       .constants = {{"tensor_data_layout", std::string("jploski")}},
       .fixed = {{"hidden_act", "gelu"}, {"parallel_attn", true}, {"attention_bias", false}},
       .even_heads = true,
       .read_more = &ReadFalconLayout},
      {.name = "starcoder2",
       .family = "starcoder2",
       .keys = {kLayerEpsilon},
       .fixed = {{"hidden_act", "gelu_pytorch_tanh"}, {"attention_bias", true}},
       .even_heads = true},
      {.name = "phi2",
       .family = "phi",
       .keys = {kLayerEpsilon},
       .fixed = {{"hidden_act", "gelu_new"}, {"use_qk_norm", false}},
       .head = GgufHead::kAlways,
       .even_heads = true,
       .partial_rotation = true},
      {.name = "phi3",
       .family = "phi3",
       .keys = {kRmsEpsilon, {"attention.sliding_window", "sliding_window", 0}},
       .even_heads = true,
       .partial_rotation = true,
       .long_factors = true},
      // Old files say so of models whose parts follow one another, too: tensors tell.
      {.name = "stablelm",
       .family = "stablelm",
       .keys = {kLayerEpsilon, {"use_parallel_residual", "use_parallel_residual", 1}},
       .switches = {kInputBiases, kHeadNorms, {"use_parallel_residual", "ffn_norm.weight", /*lacking=*/true}},
       .head = GgufHead::kAlways,
       .even_heads = true,
       .partial_rotation = true},
      {.name = "nemotron",
       .family = "nemotron",
       .keys = {kLayerEpsilon},
       .fixed = {{"hidden_act", "relu2"}},
       .switches = {kInputBiases, kOutputBias, kFeedForwardBiases},
       .head = GgufHead::kAlways,
       .even_heads = true,
       .partial_rotation = true,
       .says_unscaled = true},
  };
}

}  // namespace

const std::vector<GgufArchitecture>& GgufArchitectures() {
  static const Records all = [] {
    Records result;
    for (Records some : {LlamaRecords(), QwenRecords(), GemmaRecords(), GlmRecords(), DeepseekRecords(),
                         GptOssRecords(), OlmoRecords(), GraniteRecords(), CohereRecords(), GptRecords()})
      result.insert(result.end(), some.begin(), some.end());
    return result;
  }();
  return all;
}

}  // namespace trireme
