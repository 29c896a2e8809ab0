// DeepSeek's mixtures, and GLM's that route as they do.
#include <algorithm>
#include <cmath>

#include "models/families/mixtures/mixture.h"
#include "models/parts/latent_attention.h"

namespace trireme {
namespace {

// Layers from first_k_dense_replace on have experts, of which some are shared: one that is so many times as wide.
DecoderSpec BuildDeepseek(const ModelConfig& config, DecoderDraft draft, ExpertsSettings experts,
                          std::vector<std::string>* problems) {
  CheckPositive("routed_scaling_factor", config.routed_scaling_factor(), /*zero_too=*/false, problems);
  CheckPositive("n_shared_experts", config.n_shared_experts(), /*zero_too=*/true, problems);
  CheckPositive("first_k_dense_replace", config.first_k_dense_replace(), /*zero_too=*/true, problems);
  experts.routing.scale = config.routed_scaling_factor();
  experts.routing.groups = config.n_group();
  experts.routing.chosen_groups = config.topk_group();
  experts.shared_width = int64_t{config.n_shared_experts()} * experts.width;
  const int64_t first = config.first_k_dense_replace();
  return BuildExperts(
      std::move(draft), experts, [first](int64_t layer) { return layer < first; }, problems);
}

// Experts are chosen by sigmoid scores with a correction.
ExpertsSettings CorrectedExperts(const ModelConfig& config, const DecoderDraft& draft) {
  ExpertsSettings experts = ExpertsOf(config, draft);
  experts.routing.score = RoutingRule::kSigmoid;
  experts.routing.epsilon = 1e-20;
  experts.correction = true;
  return experts;
}

DecoderSpec SpecifyGlm4Moe(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  RotatePartly(config, 0.5, &draft, problems);
  draft.attention.output_bias = false;
  if (config.use_qk_norm()) draft.attention.head_norm = HeadNormSpec{.norm = draft.block.norm};
  const ExpertsSettings experts = CorrectedExperts(config, draft);
  return BuildDeepseek(config, std::move(draft), experts, problems);
}

DecoderDraft DraftDeepseek(const ModelConfig& given, std::vector<std::string>* problems) {
  ModelConfig config = given;
  config.set_head_dim(std::max(2, given.qk_rope_head_dim()));  // what rotates
  DecoderDraft draft = DraftDecoder(config, problems);
  const auto positive = [&](const char* field, int32_t value) {
    if (value < 1) problems->push_back(absl::StrCat("model.", field, ": is ", value, "; give a positive number"));
  };
  positive("kv_lora_rank", config.kv_lora_rank());
  positive("qk_nope_head_dim", config.qk_nope_head_dim());
  positive("v_head_dim", config.v_head_dim());
  if (given.qk_rope_head_dim() < 2 || given.qk_rope_head_dim() % 2 != 0)
    problems->push_back(absl::StrCat("model.qk_rope_head_dim: is ", given.qk_rope_head_dim(),
                                     "; positions turn pairs, give an even number"));
  if (draft.attention.kv_heads != draft.attention.heads)
    problems->push_back(absl::StrCat("model.num_key_value_heads: is ", draft.attention.kv_heads,
                                     "; every head has its own, give num_attention_heads ", draft.attention.heads));
  if (config.q_lora_rank() < 0)
    problems->push_back(absl::StrCat("model.q_lora_rank: is ", config.q_lora_rank(), "; give 0 for none"));
  draft.rotation.interleaved = config.rope_interleave();
  LatentAttentionSettings attention;
  attention.heads = draft.attention.heads;
  attention.head = {config.qk_nope_head_dim(), config.qk_rope_head_dim(), config.v_head_dim()};
  attention.query_rank = config.q_lora_rank();
  attention.latent_rank = config.kv_lora_rank();
  attention.bias = config.attention_bias();
  attention.rotation = draft.rotation;
  if (draft.rotation.scaling.has_value() && draft.rotation.scaling->mscale_all_dim != 0) {
    const double magnitude = draft.rotation.scaling->MagnitudeOf(draft.rotation.scaling->mscale_all_dim);
    attention.scale =
        magnitude * magnitude / std::sqrt(static_cast<double>(attention.head.still + attention.head.turning));
  }
  draft.make_mixer = [part = MakeLatentAttention(attention)](int64_t) { return part; };
  return draft;
}

// Experts of the groups with the best expert each; weights are not divided by their sum, whatever norm_topk_prob says.
DecoderSpec SpecifyDeepseekV2(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDeepseek(config, problems);
  ExpertsSettings experts = ExpertsOf(config, draft);
  experts.routing.renormalize = false;
  return BuildDeepseek(config, std::move(draft), experts, problems);
}

DecoderSpec SpecifyDeepseekV3(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDeepseek(config, problems);
  const ExpertsSettings experts = CorrectedExperts(config, draft);
  return BuildDeepseek(config, std::move(draft), experts, problems);
}

// Layers behind the last, which predict further tokens, are left out, as Transformers does.
void ReadRoutedExperts(JsonReader& reader, HfConfig* config) {
  ReadNumExperts(reader, config);
  for (const char* key : {"num_mtp_layers", "num_nextn_predict_layers"}) reader.Find(key);
}

void WriteRoutedExperts(const ModelConfig& model, nlohmann::ordered_json* json) {
  (*json)["n_routed_experts"] = model.num_experts();
}

// What published files say besides: how experts were trained and served.
void ReadDeepseek(JsonReader& reader, HfConfig* config) {
  ReadRoutedExperts(reader, config);
  for (const char* key : {"aux_loss_alpha", "seq_aux", "ep_size", "qk_head_dim", "head_dim"}) reader.Find(key);
  config->model.set_head_dim(config->model.qk_rope_head_dim());
  if (const nlohmann::json* rank = reader.Find("q_lora_rank"); rank == nullptr && reader.Has("q_lora_rank"))
    config->model.set_q_lora_rank(0);
  reader.Require("moe_layer_freq", 1.0, "is not supported; every layer from first_k_dense_replace on has experts");
}

void ReadDeepseekV2(JsonReader& reader, HfConfig* config) {
  ReadDeepseek(reader, config);
  reader.Find("norm_topk_prob");  // which has no effect
  reader.Require("scoring_func", "softmax", "is not supported; \"softmax\" is");
  const std::string method = reader.Text("topk_method");
  if (method.empty() || method == "greedy") {
    config->model.set_n_group(1);
    config->model.set_topk_group(1);
  } else if (method != "group_limited_greedy") {
    reader.Bad("topk_method", method, "is not supported; \"greedy\" and \"group_limited_greedy\" are");
  }
}

void ReadDeepseekV3(JsonReader& reader, HfConfig* config) {
  ReadDeepseek(reader, config);
  reader.Require("scoring_func", "sigmoid", "is not supported; \"sigmoid\" is");
  reader.Require("topk_method", "noaux_tc", "is not supported; \"noaux_tc\" is");
}

void WriteDeepseek(const ModelConfig& model, nlohmann::ordered_json* json) {
  WriteRoutedExperts(model, json);
  (*json)["head_dim"] = model.qk_rope_head_dim();
  (*json)["q_lora_rank"] = model.q_lora_rank() > 0 ? nlohmann::json(model.q_lora_rank()) : nlohmann::json();
}

void WriteDeepseekV2(const ModelConfig& model, nlohmann::ordered_json* json) {
  WriteDeepseek(model, json);
  (*json)["norm_topk_prob"] = false;
  for (const char* key : {"n_group", "topk_group"}) {
    if (model.n_group() == 1) (*json)[key] = nullptr;
  }
  (*json)["topk_method"] = model.n_group() > 1 ? "group_limited_greedy" : "greedy";
}

HfModelType DeepseekType(const char* type, const char* architecture) {
  return {.model_type = type,
          .architecture = architecture,
          .family = type,
          .max_position_embeddings = 2048,
          .attention_bias = true,
          .keys = {{"kv_lora_rank", 512.0},
                   {"q_lora_rank", 1536.0},
                   {"qk_nope_head_dim", 128.0},
                   {"qk_rope_head_dim", 64.0},
                   {"v_head_dim", 128.0}}};
}

WeightNames DeepseekNames() {
  WeightNames names = {.rules = OneByOne(), .also = {AllInOne()}, .further_layers = true};
  const auto shared = [&](const char* name, const char* stored) { names.rules.push_back({name, stored}); };
  shared("model.layers.*.mlp.shared_expert.gate_proj.weight", "model.layers.*.mlp.shared_experts.gate_proj.weight");
  shared("model.layers.*.mlp.shared_expert.up_proj.weight", "model.layers.*.mlp.shared_experts.up_proj.weight");
  shared("model.layers.*.mlp.shared_expert.down_proj.weight", "model.layers.*.mlp.shared_experts.down_proj.weight");
  return names;
}

}  // namespace

// arXiv 2508.06471.
ModelFamily Glm4MoeFamily() {
  return {"glm4_moe",
          &SpecifyGlm4Moe,
          DeepseekNames(),
          {{.model_type = "glm4_moe",
            .architecture = "Glm4MoeForCausalLM",
            .family = "glm4_moe",
            .max_position_embeddings = 131072,
            .num_key_value_heads = 8,
            .attention_bias = true,
            .partial_rotary = 0.5,
            .rms_norm_eps = 1e-5,
            .keys = {{"moe_intermediate_size", 1408.0},
                     {"num_experts_per_tok", 8.0},
                     {"n_shared_experts", 1.0},
                     {"routed_scaling_factor", 1.0},
                     {"n_group", 1.0},
                     {"topk_group", 1.0},
                     {"first_k_dense_replace", 1.0},
                     {"norm_topk_prob", true},
                     {"use_qk_norm", false}},
            .read_more = &ReadRoutedExperts,
            .write_more = &WriteRoutedExperts}}};
}

// arXiv 2405.04434.
ModelFamily DeepseekV2Family() {
  HfModelType type = DeepseekType("deepseek_v2", "DeepseekV2ForCausalLM");
  type.keys.insert(type.keys.end(), {{"moe_intermediate_size", 1407.0},
                                     {"n_shared_experts", 2.0},
                                     {"routed_scaling_factor", 1.0},
                                     {"n_group", 1.0},
                                     {"topk_group", 1.0},
                                     {"first_k_dense_replace", 0.0},
                                     {"num_experts_per_tok", HfValue()}});
  type.read_more = &ReadDeepseekV2;
  type.write_more = &WriteDeepseekV2;
  return {"deepseek_v2", &SpecifyDeepseekV2, DeepseekNames(), {type}};
}

// arXiv 2412.19437.
ModelFamily DeepseekV3Family() {
  HfModelType type = DeepseekType("deepseek_v3", "DeepseekV3ForCausalLM");
  type.max_position_embeddings = 4096;
  type.keys.insert(type.keys.end(), {{"moe_intermediate_size", 2048.0},
                                     {"n_shared_experts", 1.0},
                                     {"routed_scaling_factor", 2.5},
                                     {"n_group", 8.0},
                                     {"topk_group", 4.0},
                                     {"first_k_dense_replace", 3.0},
                                     {"num_experts_per_tok", 8.0},
                                     {"norm_topk_prob", true},
                                     {"rope_interleave", true}});
  type.read_more = &ReadDeepseekV3;
  type.write_more = &WriteDeepseek;
  return {"deepseek_v3", &SpecifyDeepseekV3, DeepseekNames(), {type}};
}

}  // namespace trireme
