#include "data/pretokenizer/normalizer.h"

#include <absl/strings/str_replace.h>
#include <absl/strings/strip.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "data/pretokenizer/pretokenizer_metaspace.h"
#include "data/unicode/unicode_nfc.h"
#include "launch/base/json.h"

namespace trireme {
namespace {

using nlohmann::json;

constexpr size_t kMaxNormalizerSteps = 16;
constexpr size_t kMaxContentBytes = 64;  // what a character may become; bounds how much text can grow

absl::StatusOr<std::string> Text(const json& object, const char* name) {
  const std::string* field = JsonText(JsonMember(object, name));
  if (field == nullptr) return Error(ExitCode::kData, "normalizer: ", name, " is not a string");
  const std::string& text = *field;
  if (text.empty() || text.size() > kMaxContentBytes)
    return Error(ExitCode::kData, "normalizer: ", name, " has ", text.size(), " bytes; 1 to ", kMaxContentBytes,
                 " are supported");
  return text;
}

// Leaves one of several spaces in a row and none at the ends; at the end U+2581 counts as a space, as in SentencePiece.
std::string Collapsed(absl::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c != ' ' || (!result.empty() && result.back() != ' ')) result += c;
  }
  absl::string_view kept = result;
  while (absl::ConsumeSuffix(&kept, " ") || absl::ConsumeSuffix(&kept, kMetaspace)) {
  }
  return std::string(kept);
}

}  // namespace

Normalizer Normalizer::SentencePiece(bool prefix, bool collapse) {
  Normalizer normalizer;
  if (collapse) normalizer.steps_.push_back({Kind::kCollapse, "", ""});
  if (prefix) normalizer.steps_.push_back({Kind::kPrepend, "", kMetaspace});
  normalizer.steps_.push_back({Kind::kReplace, " ", kMetaspace});
  return normalizer;
}

absl::StatusOr<Normalizer> Normalizer::FromJson(const json& json) {
  Normalizer normalizer;
  if (!json.is_null()) RETURN_IF_ERROR(normalizer.Add(json));
  return normalizer;
}

absl::Status Normalizer::Add(const json& json) {
  const std::string type = JsonTextOr(JsonMember(json, "type"), "without type");
  const nlohmann::json& pattern_of = JsonMember(json, "pattern");
  if (type == "Sequence" && JsonMember(json, "normalizers").is_array()) {
    for (const auto& member : JsonMember(json, "normalizers")) RETURN_IF_ERROR(Add(member));
    return absl::OkStatus();
  }
  if (steps_.size() == kMaxNormalizerSteps)
    return Error(ExitCode::kData, "normalizer: more than ", kMaxNormalizerSteps, " steps are not supported");
  if (type == "NFC") {
    steps_.push_back({Kind::kNfc, "", ""});
  } else if (type == "Prepend") {
    ASSIGN_OR_RETURN(std::string content, Text(json, "prepend"));
    steps_.push_back({Kind::kPrepend, "", std::move(content)});
  } else if (type == "Replace" && pattern_of.is_object() && pattern_of.contains("String")) {
    ASSIGN_OR_RETURN(std::string pattern, Text(pattern_of, "String"));
    ASSIGN_OR_RETURN(std::string content, Text(json, "content"));
    steps_.push_back({Kind::kReplace, std::move(pattern), std::move(content)});
  } else {
    return Error(ExitCode::kData, "the normalizer ", type.substr(0, 60),
                 " is not supported (NFC, Prepend and Replace of a literal text are)");
  }
  return absl::OkStatus();
}

absl::string_view Normalizer::Apply(absl::string_view text, std::string* storage) const {
  for (const Step& step : steps_) {
    std::string result;
    switch (step.kind) {
      case Kind::kNfc: {
        const absl::string_view composed = NormalizeNfc(text, &result);
        if (composed.data() == text.data()) continue;
        break;
      }
      case Kind::kPrepend:
        if (text.empty()) continue;
        result = absl::StrCat(step.content, text);
        break;
      case Kind::kCollapse:
        result = Collapsed(text);
        break;
      case Kind::kReplace:
        result = absl::StrReplaceAll(text, {{step.pattern, step.content}});
        break;
    }
    *storage = std::move(result);
    text = *storage;
  }
  return text;
}

bool Normalizer::applies_nfc() const {
  return std::any_of(steps_.begin(), steps_.end(), [](const Step& step) { return step.kind == Kind::kNfc; });
}

}  // namespace trireme
