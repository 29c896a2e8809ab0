// Mixtures of experts.
#include "models/parts/experts.h"

#include <algorithm>

#include "models/families/granite.h"
#include "models/families/olmo.h"
#include "models/parts/draft.h"
#include "models/spec/family.h"

namespace trireme {
namespace {

ExpertsSettings ExpertsOf(const ModelConfig& config, const DecoderDraft& draft) {
  ExpertsSettings experts;
  experts.routing.experts = config.num_experts();
  experts.routing.per_token = config.num_experts_per_tok();
  experts.routing.renormalize = config.norm_topk_prob();
  experts.width = config.has_moe_intermediate_size() ? config.moe_intermediate_size() : draft.feed_forward.width;
  return experts;
}

// Layers for which `dense` holds keep the draft's feed-forward.
DecoderSpec BuildExperts(DecoderDraft draft, const ExpertsSettings& experts, const std::function<bool(int64_t)>& dense,
                         std::vector<std::string>* problems) {
  const size_t before = problems->size();
  CheckExperts(experts, problems);
  if (problems->size() == before) {
    const std::shared_ptr<const BlockPart> mixture = MakeExperts(experts), plain = MakeFeedForward(draft.feed_forward);
    draft.make_feed_forward = [=](int64_t layer) { return dense(layer) ? plain : mixture; };
  }
  return draft.Build(problems);
}

bool AllSparse(int64_t) { return false; }

std::function<bool(int64_t)> QwenDense(const ModelConfig& config) {
  const std::vector<int32_t> only(config.mlp_only_layers().begin(), config.mlp_only_layers().end());
  const int64_t step = std::max(1, config.decoder_sparse_step());
  return [=](int64_t layer) {
    return (layer + 1) % step != 0 || std::find(only.begin(), only.end(), layer) != only.end();
  };
}

DecoderSpec SpecifyQwen3Moe(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  draft.attention.head_norm = HeadNormSpec{.norm = draft.block.norm};
  const ExpertsSettings experts = ExpertsOf(config, draft);
  return BuildExperts(std::move(draft), experts, QwenDense(config), problems);
}

DecoderSpec SpecifyMixtral(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  ExpertsSettings experts = ExpertsOf(config, draft);
  experts.routing.renormalize = true;
  return BuildExperts(std::move(draft), experts, &AllSparse, problems);
}

DecoderSpec SpecifyOlmoe(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  CheckPositive("clip_qkv", config.clip_qkv(), /*zero_too=*/true, problems);
  draft.attention.head_norm = HeadNormSpec{.extent = HeadNormSpec::kAllHeads, .norm = draft.block.norm};
  draft.attention.clip_after_norm = true;
  draft.attention.clip = config.clip_qkv();
  const ExpertsSettings experts = ExpertsOf(config, draft);
  return BuildExperts(std::move(draft), experts, &AllSparse, problems);
}

DecoderSpec SpecifyQwen2Moe(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  draft.attention.qkv_bias = true;
  draft.attention.output_bias = false;
  ExpertsSettings experts = ExpertsOf(config, draft);
  experts.shared_width = config.shared_expert_intermediate_size();
  experts.shared_gate = true;
  return BuildExperts(std::move(draft), experts, QwenDense(config), problems);
}

DecoderSpec SpecifyGlm4Moe(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  RotatePartly(config, 0.5, &draft, problems);
  CheckPositive("routed_scaling_factor", config.routed_scaling_factor(), /*zero_too=*/false, problems);
  draft.attention.output_bias = false;
  if (config.use_qk_norm()) draft.attention.head_norm = HeadNormSpec{.norm = draft.block.norm};
  ExpertsSettings experts = ExpertsOf(config, draft);
  experts.routing.score = RoutingRule::kSigmoid;
  experts.routing.renormalize = config.norm_topk_prob();
  experts.routing.epsilon = 1e-20;
  experts.routing.scale = config.routed_scaling_factor();
  experts.routing.groups = config.n_group();
  experts.routing.chosen_groups = config.topk_group();
  experts.correction = true;
  experts.shared_width = int64_t{config.n_shared_experts()} * experts.width;
  const int64_t first = config.first_k_dense_replace();
  return BuildExperts(
      std::move(draft), experts, [first](int64_t layer) { return layer < first; }, problems);
}

DecoderSpec SpecifyGraniteMoe(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftGranite(config, problems);
  ExpertsSettings experts = ExpertsOf(config, draft);
  experts.routing.score = RoutingRule::kSoftmaxAfter;
  return BuildExperts(std::move(draft), experts, &AllSparse, problems);
}

constexpr char kOurGateUp[] = "model.layers.*.mlp.experts.gate_up_proj.weight",
               kOurDown[] = "model.layers.*.mlp.experts.down_proj.weight";

// Experts one by one, as Qwen, OLMoE, GLM and DeepSeek have them.
std::vector<WeightRule> OneByOne() {
  return {{kOurGateUp, "model.layers.*.mlp.experts.#.gate_proj.weight|model.layers.*.mlp.experts.#.up_proj.weight"},
          {kOurDown, "model.layers.*.mlp.experts.#.down_proj.weight"}};
}

// Several names of the number of experts circulate.
void ReadNumExperts(JsonReader& reader, HfConfig* config) {
  for (const char* key : {"num_experts", "num_local_experts", "n_routed_experts"}) {
    const std::optional<int32_t> number = reader.Integer(key);
    if (!number.has_value()) continue;
    if (config->model.has_num_experts() && config->model.num_experts() != *number)
      reader.Bad(key, *number, absl::StrCat("contradicts another key, which says ", config->model.num_experts()));
    config->model.set_num_experts(*number);
  }
  // The auxiliary loss of training is not the model's.
  for (const char* key : {"output_router_logits", "router_aux_loss_coef"}) reader.Find(key);
}

void WriteLocalExperts(const ModelConfig& model, nlohmann::ordered_json* json) {
  (*json)["num_local_experts"] = model.num_experts();
}

void ReadQwenMoe(JsonReader& reader, HfConfig* config) {
  ReadNumExperts(reader, config);
  const nlohmann::json* only = reader.Find("mlp_only_layers");
  for (const nlohmann::json& layer : only != nullptr ? JsonList(*only) : nlohmann::json::array_t()) {
    const std::optional<int64_t> number = JsonInteger(layer);
    if (number.has_value() && *number >= 0 && *number <= INT32_MAX) {
      config->model.add_mlp_only_layers(static_cast<int32_t>(*number));
    } else {
      reader.Bad("mlp_only_layers", *only, "is no list of layers");
    }
  }
}

void WriteQwenMoe(const ModelConfig& model, nlohmann::ordered_json* json) {
  (*json)["num_experts"] = model.num_experts();
  (*json)["mlp_only_layers"] = std::vector<int32_t>(model.mlp_only_layers().begin(), model.mlp_only_layers().end());
}

// Layers behind the last, which predict further tokens, are left out, as Transformers does.
void ReadGlm4Moe(JsonReader& reader, HfConfig* config) {
  ReadNumExperts(reader, config);
  for (const char* key : {"num_mtp_layers", "num_nextn_predict_layers"}) reader.Find(key);
}

void WriteRoutedExperts(const ModelConfig& model, nlohmann::ordered_json* json) {
  (*json)["n_routed_experts"] = model.num_experts();
}

void ReadOlmoe(JsonReader& reader, HfConfig* config) {
  ReadNumExperts(reader, config);
  ReadClip(reader, config);
}

void WriteOlmoe(const ModelConfig& model, nlohmann::ordered_json* json) {
  (*json)["num_experts"] = model.num_experts();
  WriteClip(model, json);
}

}  // namespace

// arXiv 2505.09388.
ModelFamily Qwen3MoeFamily() {
  return {"qwen3_moe",
          &SpecifyQwen3Moe,
          {.rules = OneByOne()},
          {{.model_type = "qwen3_moe",
            .architecture = "Qwen3MoeForCausalLM",
            .family = "qwen3_moe",
            .max_position_embeddings = 32768,
            .num_key_value_heads = 4,
            .windows = HfWindows::kOff,
            .attention_bias = true,
            .keys = {{"moe_intermediate_size", 768.0},
                     {"num_experts_per_tok", 8.0},
                     {"norm_topk_prob", false},
                     {"decoder_sparse_step", 1.0}},
            .read_more = &ReadQwenMoe,
            .write_more = &WriteQwenMoe}}};
}

// arXiv 2401.04088.
ModelFamily MixtralFamily() {
  return {"mixtral",
          &SpecifyMixtral,
          {.rules = {{"model.layers.*.mlp.gate.weight", "model.layers.*.block_sparse_moe.gate.weight"},
                     {kOurGateUp,
                      "model.layers.*.block_sparse_moe.experts.#.w1.weight|"
                      "model.layers.*.block_sparse_moe.experts.#.w3.weight"},
                     {kOurDown, "model.layers.*.block_sparse_moe.experts.#.w2.weight"}}},
          {{.model_type = "mixtral",
            .architecture = "MixtralForCausalLM",
            .family = "mixtral",
            .max_position_embeddings = 131072,
            .num_key_value_heads = 8,
            .own_head_dim = false,
            .rope_theta = 1e6,
            .windows = HfWindows::kAll,
            .rms_norm_eps = 1e-5,
            .keys = {{"num_experts_per_tok", 2.0}},
            .only = {{"router_jitter_noise", 0.0, "is not supported; routing has no noise"}},
            .read_more = &ReadNumExperts,
            .write_more = &WriteLocalExperts}}};
}

// arXiv 2409.02060.
ModelFamily OlmoeFamily() {
  return {"olmoe",
          &SpecifyOlmoe,
          {.rules = OneByOne()},
          {{.model_type = "olmoe",
            .architecture = "OlmoeForCausalLM",
            .family = "olmoe",
            .max_position_embeddings = 4096,
            .own_head_dim = false,
            .attention_bias = true,
            .rms_norm_eps = 1e-5,
            .keys = {{"num_experts_per_tok", 8.0}, {"norm_topk_prob", false}},
            .read_more = &ReadOlmoe,
            .write_more = &WriteOlmoe}}};
}

// arXiv 2407.10671.
ModelFamily Qwen2MoeFamily() {
  return {"qwen2_moe",
          &SpecifyQwen2Moe,
          {.rules = OneByOne()},
          {{.model_type = "qwen2_moe",
            .architecture = "Qwen2MoeForCausalLM",
            .family = "qwen2_moe",
            .max_position_embeddings = 32768,
            .num_key_value_heads = 16,
            .own_head_dim = false,
            .windows = HfWindows::kOff,
            .keys = {{"moe_intermediate_size", 1408.0},
                     {"shared_expert_intermediate_size", 5632.0},
                     {"num_experts_per_tok", 4.0},
                     {"norm_topk_prob", false},
                     {"decoder_sparse_step", 1.0}},
            .only = {{"qkv_bias", true, "is not supported; q, k and v have biases"}},
            .read_more = &ReadQwenMoe,
            .write_more = &WriteQwenMoe}}};
}

// arXiv 2508.06471.
ModelFamily Glm4MoeFamily() {
  WeightNames names = {.rules = OneByOne()};
  const auto shared = [&](const char* name, const char* stored) { names.rules.push_back({name, stored}); };
  shared("model.layers.*.mlp.shared_expert.gate_proj.weight", "model.layers.*.mlp.shared_experts.gate_proj.weight");
  shared("model.layers.*.mlp.shared_expert.up_proj.weight", "model.layers.*.mlp.shared_experts.up_proj.weight");
  shared("model.layers.*.mlp.shared_expert.down_proj.weight", "model.layers.*.mlp.shared_experts.down_proj.weight");
  return {"glm4_moe",
          &SpecifyGlm4Moe,
          names,
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
            .read_more = &ReadGlm4Moe,
            .write_more = &WriteRoutedExperts}}};
}

// Granite 3's mixtures: gate and up of all experts in one tensor.
ModelFamily GraniteMoeFamily() {
  HfModelType type = GraniteType("granitemoe", "GraniteMoeForCausalLM");
  type.keys.push_back({"num_experts_per_tok", 2.0});
  type.read_more = &ReadNumExperts;
  type.write_more = &WriteLocalExperts;
  WeightNames names;
  names.rules = {
      {"model.layers.*.mlp.gate.weight", "model.layers.*.block_sparse_moe.router.layer.weight"},
      {.name = kOurGateUp, .stored = "model.layers.*.block_sparse_moe.input_linear.weight", .by_heads = true},
      {.name = kOurDown, .stored = "model.layers.*.block_sparse_moe.output_linear.weight", .by_heads = true}};
  return {"granitemoe", &SpecifyGraniteMoe, names, {type}};
}

}  // namespace trireme
