#include "models/parts/draft.h"
#include "models/spec/family.h"

namespace trireme {
namespace {

DecoderSpec SpecifyLlama(const ModelConfig& config, std::vector<std::string>* problems) {
  return DraftDecoder(config, problems).Build(problems);
}

DecoderSpec SpecifyInterleaved(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  draft.rotation.interleaved = true;
  return draft.Build(problems);
}

DecoderSpec SpecifyHelium(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  draft.rotation.interleaved = true;
  draft.attention.output_bias = false;
  return draft.Build(problems);
}

DecoderSpec SpecifySeedOss(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  draft.attention.qkv_bias = config.attention_bias();
  draft.attention.output_bias = config.attention_out_bias();
  return draft.Build(problems);
}

DecoderSpec SpecifyArcee(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  draft.feed_forward.gated = false;
  draft.feed_forward.activation = ActivationOf(config, "relu2", problems);
  return draft.Build(problems);
}

}  // namespace

ModelFamily LlamaFamily() { return {"llama", &SpecifyLlama}; }

// Ministral 8B: windows by layer.
ModelFamily MinistralFamily() {
  return {"ministral",
          &SpecifyLlama,
          {},
          {{.model_type = "ministral",
            .architecture = "MinistralForCausalLM",
            .family = "ministral",
            .max_position_embeddings = 131072,
            .num_key_value_heads = 8,
            .windows = HfWindows::kPattern,
            .sliding_window = 4096}}};
}

// ERNIE 4.5's dense models: neighbours rotate.
ModelFamily Ernie45Family() {
  return {"ernie4_5",
          &SpecifyInterleaved,
          {},
          {{.model_type = "ernie4_5",
            .architecture = "Ernie4_5ForCausalLM",
            .family = "ernie4_5",
            .max_position_embeddings = 131072,
            .num_key_value_heads = 2,
            .head_dim = 128,
            .tied = true,
            .rope_theta = 500000,
            .rms_norm_eps = 1e-5,
            .keys = {{"use_bias", false, "mlp_bias"}},
            .elsewhere = {"attention_dropout"},
            .read_more = [](JsonReader&, HfConfig* config) {
              config->model.set_attention_bias(config->model.mlp_bias());
            }}}};
}

// Helium 1 (kyutai): neighbours rotate.
ModelFamily HeliumFamily() {
  return {"helium",
          &SpecifyHelium,
          {},
          {{.model_type = "helium",
            .architecture = "HeliumForCausalLM",
            .family = "helium",
            .max_position_embeddings = 4096,
            .num_key_value_heads = 20,
            .head_dim = 128,
            .rope_theta = 100000,
            .attention_bias = true,
            .rms_norm_eps = 1e-8,
            .keys = {{"mlp_bias", false}}}}};
}

// Seed-OSS (ByteDance): biases of q, k and v apart from o's.
ModelFamily SeedOssFamily() {
  return {"seed_oss",
          &SpecifySeedOss,
          {},
          {{.model_type = "seed_oss",
            .architecture = "SeedOssForCausalLM",
            .family = "seed_oss",
            .max_position_embeddings = 524288,
            .num_key_value_heads = 8,
            .head_dim = 128,
            .keys = {{"attention_bias", true}, {"attention_out_bias", false}, {"mlp_bias", false}},
            .dropouts = {"attention_dropout", "residual_dropout"}}}};
}

// Arcee's AFM: no gate, squared ReLU.
ModelFamily ArceeFamily() {
  return {"arcee",
          &SpecifyArcee,
          {},
          {{.model_type = "arcee",
            .architecture = "ArceeForCausalLM",
            .family = "arcee",
            .max_position_embeddings = 4096,
            .attention_bias = true,
            .rms_norm_eps = 1e-5,
            .keys = {{"mlp_bias", false}, {"hidden_act", "relu2"}}}}};
}

}  // namespace trireme
