#include "models/families/mixtures/mixture.h"

namespace trireme {

ExpertsSettings ExpertsOf(const ModelConfig& config, const DecoderDraft& draft) {
  ExpertsSettings experts;
  experts.routing.experts = config.num_experts();
  experts.routing.per_token = config.num_experts_per_tok();
  experts.routing.renormalize = config.norm_topk_prob();
  experts.width = config.has_moe_intermediate_size() ? config.moe_intermediate_size() : draft.feed_forward.width;
  return experts;
}

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

std::vector<WeightRule> OneByOne() {
  return {{kOurGateUp, "model.layers.*.mlp.experts.#.gate_proj.weight|model.layers.*.mlp.experts.#.up_proj.weight"},
          {kOurDown, "model.layers.*.mlp.experts.#.down_proj.weight"}};
}

std::vector<WeightRule> AllInOne() {
  return {{.name = kOurGateUp, .stored = "model.layers.*.mlp.experts.gate_up_proj", .by_heads = true},
          {.name = kOurDown, .stored = "model.layers.*.mlp.experts.down_proj", .by_heads = true}};
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

}  // namespace trireme
