#include <google/protobuf/util/message_differencer.h>

#include <nlohmann/json.hpp>

#include "models/formats/hf/hf_model_type.h"

namespace trireme {
namespace {

using Json = nlohmann::json;

// One of the two dialects: `theta` of its own, scaling if any.
struct Rope {
  std::optional<double> theta, share;  // share: of dimensions, where rotation may be partial
  std::optional<RopeScaling> scaling;
};

Rope ReadRope(const Json& object, const HfModelType& model_type, const std::string& name,
              std::vector<std::string>* problems) {
  Rope rope;
  JsonReader reader(object, name + ".", problems);
  rope.theta = reader.Number("rope_theta");
  if (model_type.partial_rotary > 0)
    rope.share = reader.Number("partial_rotary_factor");
  else
    reader.Require("partial_rotary_factor", 1.0, "is not supported; every dimension of a head is turned");
  std::string type = reader.Text("rope_type");
  const std::string old_type = reader.Text("type");
  if (type.empty()) type = old_type;
  const auto required = [&](const char* key) {
    const std::optional<double> value = reader.Number(key);
    if (reader.Find(key) == nullptr)
      problems->push_back(absl::StrCat(name, ".", key, ": missing; rope_type ", type, " needs it"));
    return value.value_or(1);
  };
  const auto original_context = [&](RopeScaling* scaling) {
    required("original_max_position_embeddings");
    scaling->set_original_max_position_embeddings(reader.Integer("original_max_position_embeddings").value_or(1));
  };
  if (type == "llama3") {
    RopeScaling& scaling = rope.scaling.emplace();
    scaling.set_rope_type(RopeScaling::LLAMA3);
    scaling.set_factor(required("factor"));
    scaling.set_low_freq_factor(required("low_freq_factor"));
    scaling.set_high_freq_factor(required("high_freq_factor"));
    original_context(&scaling);
  } else if (type == "linear") {
    RopeScaling& scaling = rope.scaling.emplace();
    scaling.set_rope_type(RopeScaling::LINEAR);
    scaling.set_factor(required("factor"));
  } else if (type == "yarn") {
    RopeScaling& scaling = rope.scaling.emplace();
    scaling.set_rope_type(RopeScaling::YARN);
    scaling.set_factor(required("factor"));
    original_context(&scaling);
    if (const std::optional<double> fast = reader.Number("beta_fast")) scaling.set_beta_fast(*fast);
    if (const std::optional<double> slow = reader.Number("beta_slow")) scaling.set_beta_slow(*slow);
    if (const std::optional<double> factor = reader.Number("attention_factor")) scaling.set_attention_factor(*factor);
    // Transformers takes null for false.
    if (reader.Has("truncate")) scaling.set_truncate(reader.Bool("truncate").value_or(false));
    if (const std::optional<double> scale = reader.Number("mscale")) scaling.set_mscale(*scale);
    if (const std::optional<double> scale = reader.Number("mscale_all_dim")) scaling.set_mscale_all_dim(*scale);
  } else if (type == "longrope" || (model_type.original_context > 0 && (type == "su" || type == "yarn"))) {
    RopeScaling& scaling = rope.scaling.emplace();
    scaling.set_rope_type(RopeScaling::LONGROPE);
    const auto list = [&](const char* key, google::protobuf::RepeatedField<double>* factors) {
      const Json* values = reader.Find(key);
      bool numbers = values != nullptr && values->is_array();
      for (const Json& value : values != nullptr ? JsonList(*values) : Json::array_t()) {
        const std::optional<double> number = JsonNumber(value);
        numbers = numbers && number.has_value();
        factors->Add(number.value_or(0));
      }
      if (!numbers)
        problems->push_back(absl::StrCat(name, ".", key, ": is no list of numbers; rope_type ", type, " needs one"));
    };
    list("short_factor", scaling.mutable_short_factor());
    list("long_factor", scaling.mutable_long_factor());
    // Beside the numbers of rotation, or among those of the model.
    if (const std::optional<int32_t> original = reader.Integer("original_max_position_embeddings"))
      scaling.set_original_max_position_embeddings(*original);
    if (const std::optional<double> factor = reader.Number("factor")) scaling.set_factor(*factor);
    if (const std::optional<double> factor = reader.Number("attention_factor")) scaling.set_attention_factor(*factor);
  } else if (type == "dynamic") {
    RopeScaling& scaling = rope.scaling.emplace();
    scaling.set_rope_type(RopeScaling::DYNAMIC);
    scaling.set_factor(required("factor"));
    const std::optional<double> alpha = model_type.rope_alpha ? reader.Number("alpha") : std::nullopt;
    if (alpha.has_value() && *alpha != 0) scaling.set_alpha(*alpha);
    if (model_type.rope_alpha) {
      for (const char* key : {"beta_fast", "beta_slow", "mscale", "mscale_all_dim"}) reader.Find(key);  // nobody reads
    }
  } else if (type == "default" || (type.empty() && !reader.Has("factor"))) {
    // The default type has no other settings: Transformers ignores them too.
    return rope;
  } else {
    problems->push_back(absl::StrCat(
        name, ".rope_type: ", type.empty() ? "missing" : absl::StrCat("\"", type, "\""),
        " is not supported; \"default\", \"linear\", \"llama3\", \"yarn\", \"longrope\" and \"dynamic\" are"));
    return rope;
  }
  for (const std::string& key : reader.Rest()) {
    if (!object[key].is_null()) reader.Bad(key, object[key], "is not understood");
  }
  return rope;
}

}  // namespace

void ReadHfRotary(JsonReader& reader, const HfModelType& type, ModelConfig* model, std::vector<std::string>* problems) {
  Rope old_dialect, new_dialect, local;
  old_dialect.theta = reader.Number(type.neox_rotary ? "rotary_emb_base" : "rope_theta");
  const auto read = [&](const char* key, Rope* rope) {
    const Json* value = reader.Find(key);
    if (value == nullptr) return false;
    if (!value->is_object()) {
      reader.Bad(key, *value, "is not an object");
      return false;
    }
    // Gemma 3's has an object for each kind of layer.
    const bool nested =
        type.local_rope_theta > 0 && (value->contains("full_attention") || value->contains("sliding_attention"));
    if (type.local_rope_theta > 0 && !nested && !value->empty() &&
        rope == &new_dialect) {  // Transformers looks only into those
      reader.Bad(key, *value, "has no full_attention and sliding_attention");
      return false;
    }
    if (nested) {
      JsonReader kinds(*value, absl::StrCat(key, "."), problems);
      const Json* sliding = kinds.Find("sliding_attention");
      if (sliding != nullptr) local = ReadRope(*sliding, type, absl::StrCat(key, ".sliding_attention"), problems);
      if (local.scaling.has_value()) kinds.Bad("sliding_attention", *sliding, "rescales, which is not supported");
      value = kinds.Find("full_attention");
      for (const std::string& rest : kinds.Rest()) kinds.Bad(rest, Json(), "is not understood");
      if (value == nullptr) return false;
    }
    const Rope found = ReadRope(*value, type, nested ? absl::StrCat(key, ".full_attention") : key, problems);
    if (found.theta.has_value()) {
      if (rope->theta.has_value() && rope->theta != found.theta)
        problems->push_back(absl::StrCat(key, ".rope_theta: ", *found.theta, " contradicts rope_theta ", *rope->theta));
      rope->theta = found.theta;
    }
    rope->scaling = found.scaling;
    rope->share = found.share;
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
  model->set_rope_theta(theta.value_or(type.rope_theta));
  if (type.partial_rotary > 0) {
    const char* key = type.neox_rotary ? "rotary_pct" : "partial_rotary_factor";
    const std::optional<double> share = new_dialect.share.has_value() ? new_dialect.share : old_dialect.share,
                                old_share = reader.Number(key);
    if (share.has_value() && old_share.has_value() && share != old_share)
      problems->push_back(
          absl::StrCat("rope_parameters.partial_rotary_factor: ", *share, " contradicts ", key, " ", *old_share));
    model->set_partial_rotary_factor(share.has_value() ? *share : old_share.value_or(type.partial_rotary));
  }
  if (type.local_rope_theta > 0) {
    const std::optional<double> old_local =
        type.gemma ? reader.Number("rope_local_base_freq") : std::optional<double>();
    if (local.theta.has_value() && old_local.has_value() && local.theta != old_local)
      problems->push_back(absl::StrCat("rope_parameters.sliding_attention.rope_theta: ", *local.theta,
                                       " contradicts rope_local_base_freq ", *old_local));
    model->set_rope_local_base_freq(local.theta.has_value() ? *local.theta : old_local.value_or(type.local_rope_theta));
  }
  const std::optional<RopeScaling>& scaling = has_parameters ? new_dialect.scaling : old_dialect.scaling;
  if (scaling.has_value()) *model->mutable_rope_scaling() = *scaling;
  const std::optional<int32_t> original =
      type.original_context > 0 ? reader.Integer("original_max_position_embeddings") : std::nullopt;
  if (!scaling.has_value() || scaling->rope_type() != RopeScaling::LONGROPE) return;
  // Transformers prefers the model's own.
  if (type.original_context > 0) {
    model->mutable_rope_scaling()->set_original_max_position_embeddings(original.value_or(type.original_context));
  } else if (!scaling->has_original_max_position_embeddings()) {
    model->mutable_rope_scaling()->set_original_max_position_embeddings(model->max_position_embeddings());
  }
}

}  // namespace trireme
