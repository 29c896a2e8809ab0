#include "models/formats/hf/peft.h"

#include <absl/strings/ascii.h>
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>
#include <google/protobuf/util/message_differencer.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "models/formats/base/json_file.h"

namespace trireme {
namespace {

using Json = nlohmann::json;

constexpr char kPrefix[] = "base_model.model.";
constexpr int64_t kMaxLayer = 1'000'000;

// Keys that say nothing about what the adapter computes.
constexpr const char* kWithoutEffect[] = {
    "auto_mapping",    "base_model_name_or_path", "corda_config", "eva_config",
    "inference_mode",  "init_lora_weights",       "loftq_config", "lora_ga_config",
    "megatron_config", "megatron_core",           "peft_version", "qalora_group_size",
    "revision",        "runtime_config",          "task_type",    "peft_type"};

bool SaysNothing(const Json& value) {
  return value.is_null() || value == false ||
         ((value.is_array() || value.is_object() || value.is_string()) && value.empty());
}

// A list of strings, or one string given to `one`.
template <typename One>
void ReadNames(JsonReader& reader, const char* key, google::protobuf::RepeatedPtrField<std::string>* names,
               const One& one) {
  const Json* value = reader.Find(key);
  if (value == nullptr) return;
  if (const std::string* text = JsonText(*value)) return one(*text, *value);
  if (!value->is_array()) return reader.Bad(key, *value, "is neither a list of names nor a string");
  for (const Json& name : *value) {
    const std::string* text = JsonText(name);
    if (text == nullptr) return reader.Bad(key, name, "is not a name");
    *names->Add() = *text;
  }
  std::sort(names->begin(), names->end());
}

template <typename T>
void ReadPattern(JsonReader& reader, const char* key, google::protobuf::Map<std::string, T>* pattern) {
  const Json* value = reader.Find(key);
  if (value == nullptr) return;
  if (!value->is_object()) return reader.Bad(key, *value, "is not an object");
  for (const auto& [name, number] : value->items()) {
    if (!number.is_number()) return reader.Bad(key, number, "is not a number");
    const std::optional<int64_t> whole = JsonInteger(number);
    const bool fits = whole.has_value() && *whole >= INT32_MIN && *whole <= INT32_MAX;
    if (std::is_integral_v<T> && !fits) return reader.Bad(key, number, "is not a whole number of 32 bits");
    (*pattern)[name] = std::is_integral_v<T> ? static_cast<T>(*whole) : static_cast<T>(*JsonNumber(number));
  }
}

std::string Quoted(const std::string& name) {
  std::string quoted;
  for (const char c : name)
    absl::StrAppend(&quoted, absl::ascii_isalnum(c) || c == '_' || (c & 0x80) ? "" : "\\", std::string(1, c));
  return quoted;
}

// What PEFT says of modules beside target_modules.
struct Selection {
  std::optional<std::vector<int32_t>> layers;  // layers_to_transform
  std::vector<std::string> patterns;           // layers_pattern: expressions for the part of a name before the number
  std::string excluded;                        // exclude_modules where it is an expression
};

// All of the rules as one expression (peft/tuners/tuners_utils.py, check_target_module_exists): a name is excluded when
// all of it matches. Its layer is the first number behind the first pattern that fits; a module that target_modules
// names in full is taken whatever its layer.
std::string ExpressionOf(const Selection& selection, const AdapterConfig& adapter) {
  const std::string excluded = selection.excluded.empty() ? "" : absl::StrCat("(?!(?:", selection.excluded, ")\\z)");
  if (!adapter.target_modules_regex().empty())
    return absl::StrCat(excluded, "(?:", adapter.target_modules_regex(), ")");
  std::vector<std::string> names;
  for (const std::string& name : adapter.target_modules()) {
    if (name == "all-linear") return absl::StrCat(excluded, "(?!(?:.*\\.)?lm_head\\z).*");
    names.push_back(Quoted(name));
  }
  std::string layers;
  if (selection.layers.has_value()) {
    std::vector<std::string> places, numbers;
    for (const std::string& pattern : selection.patterns)
      places.push_back(absl::StrCat("(?:^|.*?\\.)", pattern, "\\.\\d+\\."));
    if (places.empty()) places.push_back(".*?\\.[^.]*\\.\\d+\\.");
    for (const int32_t layer : *selection.layers) numbers.push_back(absl::StrCat("\\.", layer, "\\."));
    layers = absl::StrCat("(?=(?>", absl::StrJoin(places, "|"), ")(?<=", absl::StrJoin(numbers, "|"), "))");
  }
  const std::string any = absl::StrCat("(?:", absl::StrJoin(names, "|"), ")");
  return absl::StrCat(excluded, "(?:", any, "|", layers, ".*\\.", any, ")");
}

void ReadSelection(JsonReader& reader, Selection* selection) {
  if (const Json* layers = reader.Find("layers_to_transform"); layers != nullptr) {
    std::vector<int32_t> numbers;
    for (const Json& layer : layers->is_array() ? *layers : Json::array({*layers})) {
      const std::optional<int64_t> number = JsonInteger(layer);
      if (!number.has_value() || *number < 0 || *number > kMaxLayer)
        return reader.Bad("layers_to_transform", *layers, "is neither the number of a layer nor a list of such");
      numbers.push_back(static_cast<int32_t>(*number));
    }
    if (!numbers.empty()) selection->layers = std::move(numbers);
  }
  if (const Json* patterns = reader.Find("layers_pattern"); patterns != nullptr) {
    for (const Json& pattern : patterns->is_array() ? *patterns : Json::array({*patterns})) {
      const std::string* text = JsonText(pattern);
      if (text == nullptr) return reader.Bad("layers_pattern", *patterns, "is neither a name nor a list of names");
      if (!text->empty()) selection->patterns.push_back(*text);
    }
  }
}

}  // namespace

absl::StatusOr<PeftConfig> ReadPeftConfig(const std::string& folder) {
  const std::string path = absl::StrCat(folder, "/", kPeftConfigName);
  ASSIGN_OR_RETURN(const Json json, ReadJsonObject(path));
  std::vector<std::string> problems;
  JsonReader reader(json, "", &problems);
  PeftConfig config;
  AdapterConfig& adapter = config.adapter;
  if (reader.Text("peft_type") != "LORA")
    return Error(ExitCode::kData, path, ": peft_type is \"", reader.Text("peft_type"), "\"; only LORA can be read");
  reader.Require("task_type", "CAUSAL_LM", "is another task than CAUSAL_LM");
  config.base = reader.Text("base_model_name_or_path");
  adapter.set_r(reader.Integer("r").value_or(8));
  adapter.set_lora_alpha(reader.Number("lora_alpha").value_or(8));
  ReadNames(reader, "target_modules", adapter.mutable_target_modules(), [&](const std::string& text, const Json&) {
    text == "all-linear" ? adapter.add_target_modules(text) : adapter.set_target_modules_regex(text);
  });
  ReadNames(
      reader, "target_parameters", adapter.mutable_target_parameters(),
      [&](const std::string&, const Json& value) { reader.Bad("target_parameters", value, "is not a list of names"); });
  Selection selection;
  ReadNames(reader, "exclude_modules", adapter.mutable_exclude_modules(),
            [&](const std::string& text, const Json&) { selection.excluded = text; });
  ReadSelection(reader, &selection);
  const bool all = adapter.target_modules_size() > 0 && adapter.target_modules(0) == "all-linear";
  if (selection.layers.has_value() && (all || !adapter.target_modules_regex().empty())) {
    reader.Bad("layers_to_transform", JsonMember(json, "layers_to_transform"),
               "stands beside an expression or \"all-linear\" in target_modules, which PEFT refuses");
  } else if (selection.layers.has_value() || !selection.excluded.empty()) {
    adapter.set_target_modules_regex(ExpressionOf(selection, adapter));
    adapter.clear_target_modules();
  }
  ReadNames(reader, "modules_to_save", adapter.mutable_modules_to_save(), [&](const std::string&, const Json& value) {
    reader.Bad("modules_to_save", value, "is not a list of names");
  });
  ReadPattern(reader, "rank_pattern", adapter.mutable_rank_pattern());
  ReadPattern(reader, "alpha_pattern", adapter.mutable_alpha_pattern());
  adapter.set_use_rslora(reader.Bool("use_rslora").value_or(false));
  adapter.set_use_dora(reader.Bool("use_dora").value_or(false));
  if (const auto dropout = reader.Number("lora_dropout"); dropout.has_value()) adapter.set_lora_dropout(*dropout);
  reader.Require("bias", "none", "trains biases, which cannot be read");
  reader.Bool("fan_in_fan_out");  // how the base's matrices lie, which its family says
  if (const Json* start = reader.Find("init_lora_weights"); start != nullptr && start->is_string()) {
    const std::string method = JsonTextOr(*start, "");
    if (method != "gaussian" && method != "orthogonal" && method != "eva")
      reader.Bad("init_lora_weights", *start,
                 "changed the base model too; save the adapter converted to plain LoRA "
                 "(path_initial_model_for_weight_conversion)");
  }
  config.weights_tied = reader.Bool("ensure_weight_tying").value_or(false);
  for (const char* key : kWithoutEffect) reader.Find(key);
  for (const std::string& key : reader.Rest()) {
    if (!SaysNothing(JsonMember(json, key)))
      reader.Bad(key, JsonMember(json, key), "is not understood and may change the adapter");
  }
  if (problems.empty()) return config;
  return Error(ExitCode::kData, path, ": ", absl::StrJoin(problems, "; "));
}

std::string WritePeftConfig(const PeftConfig& config, const std::vector<std::string>& targets,
                            const std::vector<std::string>& parameters) {
  const AdapterConfig& a = config.adapter;
  const auto names = [](const auto& list) {
    return list.empty() ? Json() : Json(std::vector<std::string>(list.begin(), list.end()));
  };
  Json json;  // keys sorted, as PEFT writes them
  json["base_model_name_or_path"] = config.base.empty() ? Json() : Json(config.base);
  json["bias"] = "none";
  if (a.modules_to_save_size() > 0) json["ensure_weight_tying"] = config.weights_tied;
  json["fan_in_fan_out"] = config.transposed;
  json["inference_mode"] = true;
  json["init_lora_weights"] = true;
  json["lora_alpha"] = a.lora_alpha();
  if (a.lora_alpha() == static_cast<double>(static_cast<int64_t>(a.lora_alpha())))
    json["lora_alpha"] = static_cast<int64_t>(a.lora_alpha());
  json["lora_dropout"] = a.lora_dropout();
  json["modules_to_save"] = names(a.modules_to_save());
  json["peft_type"] = "LORA";
  json["r"] = a.r();
  json["task_type"] = "CAUSAL_LM";
  json["use_dora"] = a.use_dora();
  json["use_rslora"] = a.use_rslora();
  json["target_modules"] = targets.empty() ? Json() : Json(targets);
  json["target_parameters"] = names(parameters);
  json["rank_pattern"] = Json::object();
  json["alpha_pattern"] = Json::object();
  for (const auto& [key, r] : a.rank_pattern()) json["rank_pattern"][key] = r;
  for (const auto& [key, alpha] : a.alpha_pattern()) json["alpha_pattern"][key] = alpha;
  return DumpJson(json, 2) + "\n";
}

std::string ToPeftName(const std::string& canonical) { return kPrefix + canonical; }

std::string FromPeftName(const std::string& name) {
  return absl::StartsWith(name, kPrefix) ? name.substr(sizeof(kPrefix) - 1) : "";
}

void ResolveAdapterConfig(AdapterConfig* adapter, std::vector<std::string>* problems) {
  if (!adapter->has_from()) return;
  const absl::StatusOr<PeftConfig> file = ReadPeftConfig(adapter->from());
  if (!file.ok()) {
    problems->push_back(absl::StrCat("adapter.from: ", file.status().message()));
    return;
  }
  AdapterConfig merged = file->adapter;
  // Training's own.
  merged.set_from(adapter->from());
  merged.clear_lora_dropout();
  if (adapter->has_lora_dropout()) merged.set_lora_dropout(adapter->lora_dropout());
  if (adapter->has_loraplus_lr_ratio()) merged.set_loraplus_lr_ratio(adapter->loraplus_lr_ratio());
  if (adapter->has_init_lora_weights())
    problems->push_back("adapter.init_lora_weights: is set beside adapter.from, which gives the values; remove one");
  const google::protobuf::Reflection& reflection = *adapter->GetReflection();
  std::vector<const google::protobuf::FieldDescriptor*> set;
  reflection.ListFields(*adapter, &set);
  for (const google::protobuf::FieldDescriptor* field : set) {
    if (field->name() == "init_lora_weights") continue;
    google::protobuf::util::MessageDifferencer differ;
    differ.set_repeated_field_comparison(google::protobuf::util::MessageDifferencer::AS_SET);
    if (!differ.CompareWithFields(*adapter, merged, {field}, {field}))
      problems->push_back(absl::StrCat("adapter.", field->name(), ": differs from what ", adapter->from(), "/",
                                       kPeftConfigName,
                                       " says; remove it, or start a new adapter without adapter.from"));
  }
  *adapter = merged;
}

}  // namespace trireme
