#include "models/formats/hf_config.h"

#include <absl/strings/match.h>
#include <absl/strings/str_join.h>
#include <google/protobuf/util/message_differencer.h>

#include <nlohmann/json.hpp>
#include <set>

#include "launch/file.h"
#include "models/formats/json_file.h"

namespace trireme {
namespace {

using Json = nlohmann::json;

// What Transformers assumes where a file is silent. Sizes are not among it: a file without them is incomplete.
struct Defaults {
  int32_t max_position_embeddings;
  int32_t num_key_value_heads;  // 0: as many as query heads
  int32_t sliding_window;       // 0: none
};
constexpr uint64_t kMaxConfigBytes = uint64_t{64} << 20;
constexpr Defaults kLlama = {2048, 0, 0}, kMistral = {131072, 8, 4096};
constexpr double kRopeTheta = 10000, kRmsNormEps = 1e-6, kInitializerRange = 0.02;

// Says nothing: null, false, empty.
bool IsBlank(const Json& value) {
  return value.is_null() || value == false || value == "" || ((value.is_array() || value.is_object()) && value.empty());
}

// Expected in every file, without influence on what is computed.
constexpr const char* kBookkeeping[] = {"architectures", "transformers_version", "use_cache", "_name_or_path"};

// Settings of generation and of the Python classes.
bool WithoutEffect(const std::string& key) {
  static const std::set<std::string> keys = {
      "attn_implementation",
      "bad_words_ids",
      "begin_suppress_tokens",
      "chunk_size_feed_forward",
      "diversity_penalty",
      "do_sample",
      "early_stopping",
      "encoder_no_repeat_ngram_size",
      "exponential_decay_length_penalty",
      "finetuning_task",
      "id2label",
      "is_decoder",
      "is_llama_config",
      "label2id",
      "length_penalty",
      "max_length",
      "min_length",
      "no_repeat_ngram_size",
      "num_beam_groups",
      "num_beams",
      "num_return_sequences",
      "output_attentions",
      "output_hidden_states",
      "output_scores",
      "prefix",
      "pretraining_tp",  // Cuts products into pieces: the same function up to round-off.
      "problem_type",
      "repetition_penalty",
      "return_dict",
      "return_dict_in_generate",
      "suppress_tokens",
      "task_specific_params",
      "temperature",
      "tf_legacy_loss",
      "tokenizer_class",
      "top_k",
      "top_p",
      "torchscript",
      "transformers.js_config",
      "typical_p",
      "unsloth_fixed",
      "unsloth_version",
      "use_bfloat16",
  };
  // Attributes that Transformers keeps for itself, and ids for text, not for the model.
  return keys.count(key) > 0 || absl::StartsWith(key, "_") || absl::EndsWith(key, "_token_id");
}

// One of the two dialects: `theta` of its own, scaling if any.
struct Rope {
  std::optional<double> theta;
  std::optional<RopeScaling> scaling;
};

Rope ReadRope(const Json& object, const std::string& name, std::vector<std::string>* problems) {
  Rope rope;
  JsonReader reader(object, name + ".", problems);
  rope.theta = reader.Number("rope_theta");
  reader.Require("partial_rotary_factor", 1.0, "is not supported; every dimension of a head is turned");
  std::string type = reader.Text("rope_type");
  const std::string old_type = reader.Text("type");
  if (type.empty()) type = old_type;
  if (type == "llama3") {
    RopeScaling& scaling = rope.scaling.emplace();
    scaling.set_rope_type(RopeScaling::LLAMA3);
    const auto required = [&](const char* key) {
      const std::optional<double> value = reader.Number(key);
      if (!value.has_value() && !reader.Has(key))
        problems->push_back(absl::StrCat(name, ".", key, ": missing; rope_type llama3 needs it"));
      return value.value_or(1);
    };
    scaling.set_factor(required("factor"));
    scaling.set_low_freq_factor(required("low_freq_factor"));
    scaling.set_high_freq_factor(required("high_freq_factor"));
    required("original_max_position_embeddings");
    scaling.set_original_max_position_embeddings(reader.Integer("original_max_position_embeddings").value_or(1));
  } else if (type == "default" || (type.empty() && !reader.Has("factor"))) {
    // The default type has no other settings: Transformers ignores them too.
    return rope;
  } else {
    problems->push_back(absl::StrCat(name, ".rope_type: ", type.empty() ? "missing" : absl::StrCat("\"", type, "\""),
                                     " is not supported; \"default\" and \"llama3\" are"));
    return rope;
  }
  for (const std::string& key : reader.Rest()) reader.Bad(key, object[key], "is not understood");
  return rope;
}

void ReadRotary(JsonReader& reader, ModelConfig* model, std::vector<std::string>* problems) {
  Rope old_dialect, new_dialect;
  old_dialect.theta = reader.Number("rope_theta");
  const auto read = [&](const char* key, Rope* rope) {
    const Json* value = reader.Find(key);
    if (value == nullptr) return false;
    if (!value->is_object()) {
      reader.Bad(key, *value, "is not an object");
      return false;
    }
    const Rope found = ReadRope(*value, key, problems);
    if (found.theta.has_value()) {
      if (rope->theta.has_value() && rope->theta != found.theta)
        problems->push_back(absl::StrCat(key, ".rope_theta: ", *found.theta, " contradicts rope_theta ", *rope->theta));
      rope->theta = found.theta;
    }
    rope->scaling = found.scaling;
    return true;
  };
  // rope_scaling: null says that there is none; leaving it out says nothing once there are rope_parameters.
  const bool has_scaling = read("rope_scaling", &old_dialect) || reader.Has("rope_scaling");
  const bool has_parameters = read("rope_parameters", &new_dialect);
  if (has_parameters) {
    if (old_dialect.theta.has_value() && new_dialect.theta.has_value() && old_dialect.theta != new_dialect.theta) {
      problems->push_back(absl::StrCat("rope_parameters.rope_theta: ", *new_dialect.theta, " contradicts rope_theta ",
                                       *old_dialect.theta));
    }
    if (has_scaling && old_dialect.scaling.has_value() != new_dialect.scaling.has_value()) {
      problems->push_back(
          "rope_parameters: contradicts rope_scaling; one rescales the frequencies, the other does not");
    } else if (old_dialect.scaling.has_value() &&
               !google::protobuf::util::MessageDifferencer::Equals(*old_dialect.scaling, *new_dialect.scaling)) {
      problems->push_back("rope_parameters: contradicts rope_scaling; their numbers differ");
    }
  }
  const std::optional<double> theta = new_dialect.theta.has_value() ? new_dialect.theta : old_dialect.theta;
  model->set_rope_theta(theta.value_or(kRopeTheta));
  const std::optional<RopeScaling>& scaling = has_parameters ? new_dialect.scaling : old_dialect.scaling;
  if (scaling.has_value()) *model->mutable_rope_scaling() = *scaling;
}

void ReadSizes(JsonReader& reader, const Defaults& defaults, bool mistral, ModelConfig* model) {
  const auto integer = [&](const char* key, void (ModelConfig::*set)(int32_t)) {
    if (const std::optional<int32_t> value = reader.Integer(key)) (model->*set)(*value);
  };
  integer("num_hidden_layers", &ModelConfig::set_num_hidden_layers);
  integer("hidden_size", &ModelConfig::set_hidden_size);
  integer("num_attention_heads", &ModelConfig::set_num_attention_heads);
  integer("intermediate_size", &ModelConfig::set_intermediate_size);
  integer("vocab_size", &ModelConfig::set_vocab_size);
  integer("head_dim", &ModelConfig::set_head_dim);
  integer("num_key_value_heads", &ModelConfig::set_num_key_value_heads);
  if (!model->has_num_key_value_heads()) {
    if (defaults.num_key_value_heads > 0 && !reader.Has("num_key_value_heads")) {
      model->set_num_key_value_heads(defaults.num_key_value_heads);
    } else if (model->has_num_attention_heads()) {
      model->set_num_key_value_heads(model->num_attention_heads());
    }
  }
  if (!model->has_head_dim() && model->hidden_size() > 0 && model->num_attention_heads() > 0)
    model->set_head_dim(model->hidden_size() / model->num_attention_heads());
  model->set_max_position_embeddings(
      reader.Integer("max_position_embeddings").value_or(defaults.max_position_embeddings));
  model->set_sliding_window(mistral && !reader.Has("sliding_window") ? defaults.sliding_window
                                                                     : reader.Integer("sliding_window").value_or(0));
  if (!mistral && model->sliding_window() != 0)
    reader.Bad("sliding_window", model->sliding_window(), "has no effect on model_type llama; remove it");
}

HfTokenIds ReadIds(JsonReader& reader) {
  HfTokenIds ids;
  const auto id = [&](const char* key) {
    const std::optional<int32_t> value = reader.Integer(key);
    return value.has_value() ? std::optional<int64_t>(*value) : std::nullopt;
  };
  ids.bos = id("bos_token_id");
  ids.pad = id("pad_token_id");
  const Json* eos = reader.Find("eos_token_id");
  if (eos != nullptr && eos->is_array()) {
    for (const Json& value : *eos) {
      if (value.is_number_integer()) {
        ids.eos.push_back(value.get<int64_t>());
      } else {
        reader.Bad("eos_token_id", *eos, "is not a list of ids");
      }
    }
  } else if (eos != nullptr) {
    if (const std::optional<int64_t> value = id("eos_token_id")) ids.eos.push_back(*value);
  }
  return ids;
}

void CheckArchitecture(JsonReader& reader, const std::string& type, std::vector<std::string>* problems) {
  const std::string expected = type == "mistral" ? "MistralForCausalLM" : "LlamaForCausalLM";
  if (type != "llama" && type != "mistral") {
    problems->push_back(absl::StrCat("model_type: ", type.empty() ? "missing" : absl::StrCat("\"", type, "\""),
                                     " is not supported; \"llama\" and \"mistral\" are"));
  } else if (const Json* names = reader.Find("architectures"); names != nullptr && *names != Json::array({expected})) {
    reader.Bad("architectures", *names, absl::StrCat("is not [\"", expected, "\"]"));
  }
  reader.Require("hidden_act", "silu", "is not supported; \"silu\" is");
  reader.Require("attention_bias", false, "is not supported; projections have no biases here");
  reader.Require("mlp_bias", false, "is not supported; projections have no biases here");
  reader.Require("attention_dropout", 0.0, "is not supported; there is no dropout");
  reader.Require("rope_interleaved", false, "is not supported; halves are turned, not neighbours");
  reader.Require("is_encoder_decoder", false, "is not supported");
  reader.Require("add_cross_attention", false, "is not supported");
  reader.Require("tie_encoder_decoder", false, "is not supported");
  if (const Json* method = reader.Find("quantization_config"); method != nullptr)
    reader.Bad("quantization_config", *method, "is not supported; give the unquantized model");
}

}  // namespace

absl::StatusOr<HfConfig> ParseHfConfig(const std::string& text, const std::string& origin) {
  ASSIGN_OR_RETURN(const Json object, ParseJsonObject(text, origin));
  std::vector<std::string> problems;
  HfConfig config;
  JsonReader reader(object, "", &problems);
  const std::string type = reader.Text("model_type");
  const bool mistral = type == "mistral";
  CheckArchitecture(reader, type, &problems);
  ReadSizes(reader, mistral ? kMistral : kLlama, mistral, &config.model);
  ReadRotary(reader, &config.model, &problems);
  config.model.set_rms_norm_eps(reader.Number("rms_norm_eps").value_or(kRmsNormEps));
  config.model.set_tie_word_embeddings(reader.Bool("tie_word_embeddings").value_or(false));
  config.model.set_initializer_range(reader.Number("initializer_range").value_or(kInitializerRange));
  config.ids = ReadIds(reader);
  config.dtype = reader.Text("dtype");
  const std::string old_dtype = reader.Text("torch_dtype");
  if (config.dtype.empty()) config.dtype = old_dtype;
  for (const char* key : kBookkeeping) reader.Find(key);
  for (const std::string& key : reader.Rest()) {
    if (IsBlank(object[key]) || WithoutEffect(key)) {
      config.ignored.push_back(key);
    } else {
      reader.Bad(key, object[key], "is not understood and could change numbers");
    }
  }
  if (problems.empty()) return config;
  return Error(ExitCode::kData, origin, ": cannot be followed exactly:\n  ", absl::StrJoin(problems, "\n  "),
               "\nremove from a copy of the file what is sure not to matter");
}

absl::StatusOr<HfConfig> ReadHfConfig(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxConfigBytes));
  return ParseHfConfig(text, path);
}

}  // namespace trireme
