// config.json of the Llama family: both dialects of rotary settings, and refusal of what would be computed otherwise.
// Long because each key that a published file holds is a case of its own; they share one file's text and its changes.
#include "models/formats/hf/hf_config.h"

#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace trireme {
namespace {

using Json = nlohmann::json;

// A file as Transformers 4 wrote it.
Json Old() {
  return Json::parse(R"({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 64,
    "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 500, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "rope_scaling": null, "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": [2, 7],
    "torch_dtype": "bfloat16", "attention_bias": false, "attention_dropout": 0.0, "use_cache": true,
    "pretraining_tp": 1, "transformers_version": "4.46.0"})");
}

Json Llama3() {
  return Json::parse(R"({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192})");
}

// The file with these keys replaced.
Json With(const Json& change) {
  Json file = Old();
  file.update(change);
  return file;
}
Json Without(const std::string& key) {
  Json file = Old();
  file.erase(key);
  return file;
}

HfConfig Read(const Json& file) {
  const absl::StatusOr<HfConfig> config = ParseHfConfig(file.dump(), "config.json", BuiltInHfModelTypes());
  EXPECT_TRUE(config.ok()) << config.status();
  return config.value_or(HfConfig());
}

std::string Write(const ModelConfig& model, const HfTokenIds& ids, const std::string& dtype) {
  return WriteHfConfig(model, *HfModelTypeOf(BuiltInHfModelTypes(), model), ids, dtype);
}

void ExpectRefused(const Json& file, const std::string& reason) {
  const absl::StatusOr<HfConfig> config = ParseHfConfig(file.dump(), "config.json", BuiltInHfModelTypes());
  ASSERT_FALSE(config.ok()) << "accepted; expected: " << reason;
  EXPECT_EQ(ExitCodeOf(config.status()), ExitCode::kData);
  EXPECT_NE(config.status().message().find("config.json: "), std::string::npos) << config.status();
  EXPECT_NE(config.status().message().find(reason), std::string::npos) << config.status();
}

// Older configs write -1 where there is no such token.
TEST(HfConfigTest, NegativeIdsMeanNone) {
  const HfTokenIds ids = Read(With({{"pad_token_id", -1}, {"bos_token_id", -1}, {"eos_token_id", {2, -1}}})).ids;
  EXPECT_EQ(ids.pad, std::nullopt);
  EXPECT_EQ(ids.bos, std::nullopt);
  EXPECT_EQ(ids.eos, std::vector<int64_t>{2});
  EXPECT_TRUE(Read(With({{"eos_token_id", -1}})).ids.eos.empty());
}

TEST(HfConfigTest, FollowsTypesThatAProgramBrings) {
  const HfModelTypes types = {{.model_type = "outrigger",
                               .architecture = "OutriggerForCausalLM",
                               .family = "outrigger",
                               .max_position_embeddings = 77,
                               .own_head_dim = false}};
  Json file = With({{"model_type", "outrigger"}, {"architectures", {"OutriggerForCausalLM"}}});
  for (const char* key : {"max_position_embeddings", "attention_bias"}) file.erase(key);
  const absl::StatusOr<HfConfig> config = ParseHfConfig(file.dump(), "config.json", types);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model.family(), "outrigger");
  EXPECT_EQ(config->model.max_position_embeddings(), 77);
  const Json written =
      Json::parse(WriteHfConfig(config->model, *HfModelTypeOf(types, config->model), config->ids, "float32"));
  EXPECT_EQ(written["model_type"], "outrigger");
  EXPECT_EQ(written["architectures"], Json({"OutriggerForCausalLM"}));
  EXPECT_FALSE(written.contains("head_dim"));
  ExpectRefused(file, "\"outrigger\" is not supported; \"llama\", ");
}

TEST(HfConfigTest, ReadsSizesIdsAndDtype) {
  const HfConfig config = Read(Old());
  EXPECT_EQ(config.model.num_hidden_layers(), 2);
  EXPECT_EQ(config.model.hidden_size(), 64);
  EXPECT_EQ(config.model.num_attention_heads(), 4);
  EXPECT_EQ(config.model.num_key_value_heads(), 2);
  EXPECT_EQ(config.model.head_dim(), 16);
  EXPECT_EQ(config.model.intermediate_size(), 160);
  EXPECT_EQ(config.model.vocab_size(), 500);
  EXPECT_EQ(config.model.max_position_embeddings(), 256);
  EXPECT_EQ(config.model.rms_norm_eps(), 1e-5);
  EXPECT_TRUE(config.model.tie_word_embeddings());
  EXPECT_EQ(config.model.rope_theta(), 500000);
  EXPECT_FALSE(config.model.has_rope_scaling());
  EXPECT_EQ(config.ids.bos, 1);
  EXPECT_EQ(config.ids.eos, (std::vector<int64_t>{2, 7}));
  EXPECT_FALSE(config.ids.pad.has_value());
  EXPECT_EQ(config.dtype, "bfloat16");
  EXPECT_EQ(config.ignored, std::vector<std::string>{"pretraining_tp"});
}

TEST(HfConfigTest, WhereAFileIsSilentTransformersDefaultsHold) {
  Json file = Old();
  for (const char* key : {"rms_norm_eps", "rope_theta", "rope_scaling", "tie_word_embeddings", "num_key_value_heads",
                          "max_position_embeddings", "torch_dtype", "eos_token_id"})
    file.erase(key);
  const HfConfig config = Read(file);
  EXPECT_EQ(config.model.rms_norm_eps(), 1e-6) << "not this program's own default";
  EXPECT_EQ(config.model.rope_theta(), 10000);
  EXPECT_FALSE(config.model.tie_word_embeddings());
  EXPECT_EQ(config.model.num_key_value_heads(), 4);
  EXPECT_EQ(config.model.max_position_embeddings(), 2048);
  EXPECT_EQ(config.dtype, "");
  EXPECT_TRUE(config.ids.eos.empty());
  EXPECT_FALSE(Read(Without("hidden_size")).model.has_hidden_size()) << "sizes are never guessed";
}

TEST(HfConfigTest, BothRopeDialectsSayTheSame) {
  const ModelConfig old_dialect = Read(With({{"rope_scaling", Llama3()}})).model;
  Json parameters = Llama3();
  parameters["rope_theta"] = 500000.0;
  Json file = Without("rope_theta");
  file.erase("rope_scaling");
  file["rope_parameters"] = parameters;
  EXPECT_EQ(Read(file).model.SerializeAsString(), old_dialect.SerializeAsString());
  EXPECT_EQ(old_dialect.rope_scaling().factor(), 32);
  EXPECT_EQ(old_dialect.rope_scaling().original_max_position_embeddings(), 8192);
  EXPECT_EQ(old_dialect.rope_theta(), 500000);

  const Json both = With({{"rope_scaling", Llama3()}, {"rope_parameters", parameters}});
  EXPECT_EQ(Read(both).model.SerializeAsString(), old_dialect.SerializeAsString());
  Json type = Llama3();
  type.erase("rope_type");
  type["type"] = "llama3";
  EXPECT_EQ(Read(With({{"rope_scaling", type}})).model.SerializeAsString(), old_dialect.SerializeAsString());
}

TEST(HfConfigTest, DialectsThatContradictEachOtherAreRefused) {
  ExpectRefused(With({{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 10000.0}}}}),
                "rope_parameters.rope_theta: 10000 contradicts rope_theta 500000");
  ExpectRefused(With({{"rope_scaling", Llama3()}, {"rope_parameters", {{"rope_type", "default"}}}}),
                "rope_parameters: contradicts rope_scaling");
  Json other = Llama3();
  other["factor"] = 8.0;
  ExpectRefused(With({{"rope_scaling", Llama3()}, {"rope_parameters", other}}), "their numbers differ");
}

TEST(HfConfigTest, OtherRotaryMethodsAreRefused) {
  ExpectRefused(With({{"rope_scaling", {{"type", "spiral"}, {"factor", 2.0}}}}), "\"spiral\" is not supported");
  ExpectRefused(With({{"rope_scaling", {{"type", "longrope"}, {"factor", 2.0}}}}),
                "short_factor: is no list of numbers");
  ExpectRefused(With({{"rope_scaling", {{"type", "dynamic"}}}}), "rope_scaling.factor: missing");
  ExpectRefused(With({{"rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}, {"alpha", 3.0}}}}), "alpha: 3.0");
  ExpectRefused(With({{"rope_scaling", {{"factor", 2.0}}}}), "rope_scaling.rope_type: missing");
  Json incomplete = Llama3();
  incomplete.erase("low_freq_factor");
  ExpectRefused(With({{"rope_scaling", incomplete}}), "rope_scaling.low_freq_factor: missing");
  Json strange = Llama3();
  strange["attention_factor"] = 2.0;
  ExpectRefused(With({{"rope_scaling", strange}}), "rope_scaling.attention_factor: 2.0 is not understood");
  ExpectRefused(With({{"rope_parameters", {{"rope_theta", 500000.0}, {"partial_rotary_factor", 0.5}}}}),
                "partial_rotary_factor: 0.5");
}

TEST(HfConfigTest, WhatWouldBeComputedOtherwiseIsRefusedByName) {
  const std::pair<Json, const char*> cases[] = {
      {{{"model_type", "phi9"}}, "model_type: \"phi9\" is not supported; \"llama\", \"mistral\", \"qwen2\""},
      {{{"architectures", Json::array({"LlamaForSequenceClassification"})}}, "architectures: "},
      {{{"hidden_act", "gelu"}}, "hidden_act: \"gelu\""},
      {{{"model_type", "mistral"}, {"architectures", Json::array({"MistralForCausalLM"})}, {"mlp_bias", true}},
       "mlp_bias: true"},
      {{{"attention_dropout", 0.1}}, "attention_dropout: 0.1"},
      {{{"rope_interleaved", true}}, "rope_interleaved: true"},
      {{{"quantization_config", {{"quant_method", "gptq"}}}}, "quantization_config.quant_method: \"gptq\""},
      {{{"quantization_config", true}}, "quantization_config: true is no object"},
      {{{"sliding_window", 128}}, "sliding_window: 128"},
      {{{"final_logit_softcapping", 30.0}}, "final_logit_softcapping: 30.0 is not understood"},
      {{{"hidden_size", "64"}}, "hidden_size: \"64\" is not a number"},
      {{{"hidden_size", 64.5}}, "hidden_size: 64.5 is not a whole number"},
      {{{"vocab_size", 1e12}}, "vocab_size: "},
      {{{"tie_word_embeddings", 1}}, "tie_word_embeddings: 1"},
      {{{"eos_token_id", {2, "x"}}}, "eos_token_id: "},
  };
  for (const auto& [change, reason] : cases) ExpectRefused(With(change), reason);
}

TEST(HfConfigTest, AllProblemsAreListedAtOnce) {
  const Json file = With({{"hidden_act", "gelu"}, {"rope_interleaved", true}});
  ExpectRefused(file, "hidden_act");
  ExpectRefused(file, "rope_interleaved");
}

TEST(HfConfigTest, WhatHasNoEffectIsIgnoredAndNamed) {
  Read(With({{"gradient_checkpointing", true}, {"max_sequence_length", 2048}, {"partial_rotary_factor", 1.0}}));
  ExpectRefused(With({{"partial_rotary_factor", 0.5}}), "partial_rotary_factor: 0.5");
  const HfConfig config = Read(
      With({{"temperature", 0.6}, {"novelty", nullptr}, {"extra_norm", false}, {"_note", "x"}, {"unk_token_id", 0}}));
  EXPECT_EQ(config.ignored, (std::vector<std::string>{"_note", "extra_norm", "novelty", "pretraining_tp", "temperature",
                                                      "unk_token_id"}));
}

TEST(HfConfigTest, FilesThatAreNoObjectAreRefused) {
  for (const std::string text : {"", "[]", "{", "{\"a\": 1, \"a\": 2}", "null", "{\"a\": 1} x"}) {
    const absl::Status status = ParseHfConfig(text, "config.json", BuiltInHfModelTypes()).status();
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kData) << text;
  }
  std::string deep;
  for (int i = 0; i < 1000; ++i) deep += "{\"a\":";
  EXPECT_NE(ParseHfConfig(deep, "config.json", BuiltInHfModelTypes()).status().message().find("nested too deeply"),
            std::string::npos);
}

TEST(HfConfigTest, MistralHasAWindow) {
  const Json change = {{"model_type", "mistral"}, {"architectures", Json::array({"MistralForCausalLM"})}};
  EXPECT_EQ(Read(With(change)).model.sliding_window(), 4096) << "the default of Transformers";
  Json file = With(change);
  file["sliding_window"] = nullptr;
  EXPECT_EQ(Read(file).model.sliding_window(), 0);
  file["sliding_window"] = 20;
  EXPECT_EQ(Read(file).model.sliding_window(), 20);
}

TEST(HfConfigTest, LinearAndYarnRotations) {
  const RopeScaling linear = Read(With({{"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}}})).model.rope_scaling();
  EXPECT_EQ(linear.rope_type(), RopeScaling::LINEAR);
  EXPECT_EQ(linear.factor(), 2);
  const Json settings = {{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 64}};
  const RopeScaling yarn = Read(With({{"rope_scaling", settings}})).model.rope_scaling();
  EXPECT_EQ(yarn.rope_type(), RopeScaling::YARN);
  EXPECT_EQ(yarn.original_max_position_embeddings(), 64);
  EXPECT_FALSE(yarn.has_attention_factor());
  ExpectRefused(With({{"rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}}}}),
                "rope_scaling.original_max_position_embeddings: missing; rope_type yarn needs it");
  Json cut = settings;
  EXPECT_TRUE(yarn.truncate());
  cut["truncate"] = nullptr;  // which Transformers takes for false
  EXPECT_FALSE(Read(With({{"rope_scaling", cut}})).model.rope_scaling().truncate());
  cut = settings;
  cut["factor"] = nullptr;
  ExpectRefused(With({{"rope_scaling", cut}}), "rope_scaling.factor: missing");
  cut = settings;
  cut["mscale"] = nullptr;
  EXPECT_EQ(Read(With({{"rope_scaling", cut}})).model.rope_scaling().factor(), 4);
}

Json Of(const char* type, const char* architecture, const Json& change) {
  Json file = With({{"model_type", type}, {"architectures", Json::array({architecture})}, {"num_hidden_layers", 4}});
  file.update(change);
  return file;
}

std::vector<std::string> LayerTypes(const Json& file) {
  const ModelConfig model = Read(file).model;
  return {model.layer_types().begin(), model.layer_types().end()};
}

TEST(HfConfigTest, QwenHasItsWindowOnlyWhereSwitchedOn) {
  const Json off = Of("qwen2", "Qwen2ForCausalLM", {{"sliding_window", 20}, {"use_sliding_window", false}});
  EXPECT_EQ(Read(off).model.sliding_window(), 0);
  EXPECT_EQ(Read(off).model.family(), "qwen2");
  const Json on =
      Of("qwen3", "Qwen3ForCausalLM", {{"sliding_window", 20}, {"use_sliding_window", true}, {"max_window_layers", 3}});
  EXPECT_EQ(Read(on).model.sliding_window(), 20);
  const std::string full = "full_attention", sliding = "sliding_attention";
  EXPECT_EQ(LayerTypes(on), (std::vector<std::string>{full, full, full, sliding}));
}

TEST(HfConfigTest, GemmaHasAPatternOfWindows) {
  const std::string full = "full_attention", sliding = "sliding_attention";
  Json gemma = Of("gemma2", "Gemma2ForCausalLM", {{"hidden_activation", "gelu_pytorch_tanh"}});
  gemma.erase("hidden_act");
  EXPECT_EQ(LayerTypes(gemma), (std::vector<std::string>{sliding, full, sliding, full}));
  EXPECT_EQ(Read(gemma).model.attn_logit_softcapping(), 50);
  gemma["attn_logit_softcapping"] = nullptr;
  EXPECT_EQ(Read(gemma).model.attn_logit_softcapping(), 0);
  Json period = gemma;
  period["sliding_window_pattern"] = 3;  // which Transformers does not heed
  ExpectRefused(period, "sliding_window_pattern: 3 is not understood");
  gemma["hidden_activation"] = "relu";
  ExpectRefused(gemma, "hidden_activation: \"relu\"");

  Json third =
      Of("gemma3_text", "Gemma3ForCausalLM", {{"sliding_window_pattern", 3}, {"rope_local_base_freq", 9000.0}});
  third.erase("hidden_act");
  EXPECT_EQ(LayerTypes(third), (std::vector<std::string>{sliding, sliding, full, sliding}));
  EXPECT_EQ(Read(third).model.rope_local_base_freq(), 9000);
  Json capped = third;
  capped["attn_logit_softcapping"] = 2.0;
  ExpectRefused(capped, "attn_logit_softcapping: 2.0 has no effect on model_type gemma3_text");
  Json flat = third;
  flat["rope_parameters"] = {{"rope_type", "linear"}, {"factor", 4.0}};
  ExpectRefused(flat, "has no full_attention and sliding_attention");
  third["rope_parameters"] = {{"full_attention", {{"rope_type", "default"}, {"rope_theta", 500000.0}}},
                              {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 8000.0}}}};
  ExpectRefused(third, "contradicts rope_local_base_freq 9000");
}

TEST(HfConfigTest, SmolLm3LeavesRotationOutOfEachFourthLayer) {
  const ModelConfig model = Read(Of("smollm3", "SmolLM3ForCausalLM", Json::object())).model;
  const std::vector<int32_t> layers(model.no_rope_layers().begin(), model.no_rope_layers().end());
  EXPECT_EQ(layers, (std::vector<int32_t>{1, 1, 1, 0}));
  Json silent = Of("smollm3", "SmolLM3ForCausalLM", Json::object());
  silent.erase("rope_theta");
  EXPECT_EQ(Read(silent).model.rope_theta(), 2e6);
  ExpectRefused(Of("smollm3", "SmolLM3ForCausalLM", {{"no_rope_layers", {1, 0}}}), "no_rope_layers: ");
}

// As published: with the dropout of pretraining, and settings of other heads.
Json Gpt2() {
  return Json::parse(R"({
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
    "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
    "resid_pdrop": 0.1, "summary_activation": null, "summary_first_dropout": 0.1, "summary_proj_to_labels": true,
    "summary_type": "cls_index", "summary_use_proj": true, "vocab_size": 50257})");
}

TEST(HfConfigTest, Gpt2HasNamesOfItsOwn) {
  const HfConfig config = Read(Gpt2());
  EXPECT_EQ(config.model.family(), "gpt2");
  EXPECT_EQ(config.model.num_hidden_layers(), 12);
  EXPECT_EQ(config.model.hidden_size(), 768);
  EXPECT_EQ(config.model.num_attention_heads(), 12);
  EXPECT_EQ(config.model.intermediate_size(), 3072) << "four times the width";
  EXPECT_EQ(config.model.max_position_embeddings(), 1024);
  EXPECT_EQ(config.model.hidden_act(), "gelu_new");
  EXPECT_EQ(config.model.layer_norm_eps(), 1e-5);
  EXPECT_TRUE(config.model.tie_word_embeddings());
  EXPECT_EQ(std::count(config.ignored.begin(), config.ignored.end(), "resid_pdrop (there is no dropout)"), 1);
  Json file = Gpt2();
  file["n_inner"] = 100;
  EXPECT_EQ(Read(file).model.intermediate_size(), 100);
  file["scale_attn_by_inverse_layer_idx"] = true;
  EXPECT_TRUE(Read(file).model.scale_attn_by_inverse_layer_idx());
  file["reorder_and_upcast_attn"] = true;
  ExpectRefused(file, "reorder_and_upcast_attn: true");
}

Json GptNeox(const Json& change) {
  Json file = Json::parse(R"({
    "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
    "hidden_size": 512, "initializer_range": 0.02, "intermediate_size": 2048, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 6,
    "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false, "torch_dtype": "float16",
    "transformers_version": "4.24.0", "use_cache": true, "use_parallel_residual": true, "vocab_size": 50304})");
  file.update(change);
  return file;
}

TEST(HfConfigTest, GptNeoxTurnsAShareOfEachHead) {
  const HfConfig old = Read(GptNeox(Json::object()));
  EXPECT_EQ(old.model.family(), "gpt_neox");
  EXPECT_EQ(old.model.partial_rotary_factor(), 0.25);
  EXPECT_EQ(old.model.rope_theta(), 10000);
  EXPECT_TRUE(old.model.use_parallel_residual());
  EXPECT_TRUE(old.model.attention_bias());
  const Json parameters = {{"rope_type", "default"}, {"rope_theta", 9000.0}, {"partial_rotary_factor", 0.5}};
  Json file = GptNeox({{"rope_parameters", parameters}, {"attention_bias", false}});
  ExpectRefused(file, "partial_rotary_factor: 0.5 contradicts rotary_pct 0.25");
  file.erase("rotary_pct");
  file.erase("rotary_emb_base");
  const HfConfig config = Read(file);
  EXPECT_EQ(config.model.partial_rotary_factor(), 0.5);
  EXPECT_EQ(config.model.rope_theta(), 9000);
  EXPECT_FALSE(config.model.attention_bias());
  ExpectRefused(GptNeox({{"hidden_dropout", 0.1}}), "hidden_dropout: 0.1");
  ExpectRefused(With({{"rope_parameters", parameters}}), "partial_rotary_factor: 0.5");
}

TEST(HfConfigTest, WritesWhatItReads) {
  Json mistral =
      With({{"model_type", "mistral"}, {"architectures", Json::array({"MistralForCausalLM"})}, {"sliding_window", 20}});
  Json gemma = Of("gemma3_text", "Gemma3ForCausalLM", {{"sliding_window_pattern", 3}, {"query_pre_attn_scalar", 144}});
  gemma.erase("hidden_act");
  const Json yarn = {
      {"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 64}, {"beta_fast", 20.0}};
  for (const Json& file :
       {Old(), With({{"rope_scaling", Llama3()}}), With({{"head_dim", 24}}), mistral, gemma,
        With({{"rope_scaling", yarn}}), Of("qwen2", "Qwen2ForCausalLM", Json::object()),
        Of("smollm3", "SmolLM3ForCausalLM", {{"attention_bias", true}}), Gpt2(),
        GptNeox({{"use_parallel_residual", false}}), GptNeox({{"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}}}),
        Of("qwen3", "Qwen3ForCausalLM",
           {{"sliding_window", 20}, {"use_sliding_window", true}, {"max_window_layers", 2}})}) {
    const HfConfig config = Read(file);
    const HfConfig again = Read(Json::parse(Write(config.model, config.ids, config.dtype)));
    EXPECT_EQ(again.model.SerializeAsString(), config.model.SerializeAsString());
    EXPECT_EQ(again.ids.bos, config.ids.bos);
    EXPECT_EQ(again.ids.eos, config.ids.eos);
    EXPECT_EQ(again.ids.pad, config.ids.pad);
    EXPECT_EQ(again.dtype, config.dtype);
    EXPECT_TRUE(again.ignored.empty());
  }
}

TEST(HfConfigTest, WritesBothDialects) {
  const Json plain = Json::parse(Write(Read(Old()).model, {}, "float32"));
  EXPECT_EQ(plain["rope_theta"], 500000.0);
  EXPECT_TRUE(plain["rope_scaling"].is_null());
  EXPECT_EQ(plain["rope_parameters"], Json({{"rope_theta", 500000.0}, {"rope_type", "default"}}));
  EXPECT_EQ(plain["torch_dtype"], "float32");
  EXPECT_EQ(plain["dtype"], "float32");
  EXPECT_TRUE(plain["eos_token_id"].is_null()) << "left out, Transformers would take 2";

  const Json scaled = Json::parse(Write(Read(With({{"rope_scaling", Llama3()}})).model, {}, "float32"));
  Json parameters = Llama3();
  EXPECT_EQ(scaled["rope_scaling"], parameters);
  parameters["rope_theta"] = 500000.0;
  EXPECT_EQ(scaled["rope_parameters"], parameters);
}

ModelConfig Fields(const std::string& text) {
  ModelConfig model;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &model)) << text;
  return model;
}

TEST(HfConfigTest, MergingFillsInWhatIsOpen) {
  const ModelConfig file = Read(Old()).model;
  ModelConfig model = Fields("from: \"x\" hidden_size: 64 rms_norm_eps: 1e-5 scaled_residual_init: true");
  std::vector<std::string> problems;
  MergeHfConfig(file, "config.json", &model, &problems);
  EXPECT_TRUE(problems.empty()) << problems[0];
  EXPECT_EQ(model.vocab_size(), 500);
  EXPECT_TRUE(model.scaled_residual_init());
  const ModelConfig once = model;
  MergeHfConfig(file, "config.json", &model, &problems);
  EXPECT_TRUE(problems.empty()) << "a resolved config is fine as it is";
  EXPECT_EQ(model.SerializeAsString(), once.SerializeAsString());
}

TEST(HfConfigTest, MergingNamesContradictions) {
  const std::pair<const char*, const char*> cases[] = {
      {"hidden_size: 128", "model.hidden_size: is 128, but config.json says 64"},
      {"rope_theta: 10000", "model.rope_theta: is 10000, but config.json says 500000"},
      {"tie_word_embeddings: false", "model.tie_word_embeddings: is false, but config.json says true"},
      {"sliding_window: 5", "model.sliding_window: is 5, but config.json says 0"},
      {"rope_scaling { rope_type: LLAMA3 }", "model.rope_scaling: config.json has none"},
  };
  for (const auto& [text, reason] : cases) {
    ModelConfig model = Fields(text);
    std::vector<std::string> problems;
    MergeHfConfig(Read(Old()).model, "config.json", &model, &problems);
    ASSERT_EQ(problems.size(), 1u) << text;
    EXPECT_NE(problems[0].find(reason), std::string::npos) << problems[0];
  }
}

TEST(HfConfigTest, MergingComparesRopeScalingWithItsDefaults) {
  Json scaling = Llama3();
  scaling["factor"] = 8.0;
  const ModelConfig file = Read(With({{"rope_scaling", scaling}})).model;
  std::vector<std::string> problems;
  ModelConfig same = Fields("rope_scaling { rope_type: LLAMA3 }");
  MergeHfConfig(file, "config.json", &same, &problems);
  EXPECT_TRUE(problems.empty()) << problems[0];
  ModelConfig other = Fields("rope_scaling { rope_type: LLAMA3 factor: 4 }");
  MergeHfConfig(file, "config.json", &other, &problems);
  ASSERT_EQ(problems.size(), 1u);
  EXPECT_NE(problems[0].find("model.rope_scaling: is { "), std::string::npos) << problems[0];
}

}  // namespace
}  // namespace trireme
