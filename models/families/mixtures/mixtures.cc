// Mixtures whose layers are those of a dense family with experts in them.
#include <absl/strings/str_cat.h>

#include <algorithm>

#include "models/families/granite.h"
#include "models/families/mixtures/mixture.h"
#include "models/families/olmo.h"

namespace trireme {
namespace {

std::function<bool(int64_t)> QwenDense(const ModelConfig& config, std::vector<std::string>* problems) {
  CheckPositive("decoder_sparse_step", config.decoder_sparse_step(), /*zero_too=*/false, problems);
  for (const int32_t layer : config.mlp_only_layers()) {
    if (layer < 0 || layer >= config.num_hidden_layers())
      problems->push_back(absl::StrCat("model.mlp_only_layers: names layer ", layer, "; there are layers 0 to ",
                                       config.num_hidden_layers() - 1));
  }
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
  return BuildExperts(std::move(draft), experts, QwenDense(config, problems), problems);
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
  CheckPositive("shared_expert_intermediate_size", config.shared_expert_intermediate_size(), /*zero_too=*/true,
                problems);
  experts.shared_width = config.shared_expert_intermediate_size();
  experts.shared_gate = true;
  return BuildExperts(std::move(draft), experts, QwenDense(config, problems), problems);
}

DecoderSpec SpecifyGraniteMoe(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftGranite(config, problems);
  ExpertsSettings experts = ExpertsOf(config, draft);
  experts.routing.score = RoutingRule::kSoftmaxAfter;
  return BuildExperts(std::move(draft), experts, &AllSparse, problems);
}

std::vector<WeightRule> WithRouter(const char* stored, std::vector<WeightRule> rules) {
  rules.push_back({kOurRouter, stored});
  return rules;
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
          {.rules = OneByOne(), .also = {AllInOne()}},
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
          {.rules = {{kOurRouter, "model.layers.*.block_sparse_moe.gate.weight"},
                     {kOurGateUp,
                      "model.layers.*.block_sparse_moe.experts.#.w1.weight|"
                      "model.layers.*.block_sparse_moe.experts.#.w3.weight"},
                     {kOurDown, "model.layers.*.block_sparse_moe.experts.#.w2.weight"}},
           .also = {WithRouter("model.layers.*.mlp.gate.weight", AllInOne())}},
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
          {.rules = OneByOne(), .also = {AllInOne()}},
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
          {.rules = OneByOne(), .also = {AllInOne()}},
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

// Granite 3's mixtures: gate and up of all experts in one tensor.
ModelFamily GraniteMoeFamily() {
  HfModelType type = GraniteType("granitemoe", "GraniteMoeForCausalLM");
  type.keys.push_back({"num_experts_per_tok", 2.0});
  type.read_more = &ReadNumExperts;
  type.write_more = &WriteLocalExperts;
  WeightNames names;
  names.rules = {
      {kOurRouter, "model.layers.*.block_sparse_moe.router.layer.weight"},
      {.name = kOurGateUp, .stored = "model.layers.*.block_sparse_moe.input_linear.weight", .by_heads = true},
      {.name = kOurDown, .stored = "model.layers.*.block_sparse_moe.output_linear.weight", .by_heads = true}};
  names.also = {WithRouter(
      "model.layers.*.block_sparse_moe.router.weight",
      {{.name = kOurGateUp, .stored = "model.layers.*.block_sparse_moe.experts.gate_up_proj", .by_heads = true},
       {.name = kOurDown, .stored = "model.layers.*.block_sparse_moe.experts.down_proj", .by_heads = true}})};
  return {"granitemoe", &SpecifyGraniteMoe, names, {type}};
}

}  // namespace trireme
