#include "data/pretokenizer/pretokenizer_metaspace.h"

#include <absl/strings/match.h>
#include <absl/strings/str_replace.h>

#include <nlohmann/json.hpp>

#include "launch/base/json.h"

namespace trireme {
namespace {

constexpr size_t kLength = sizeof(kMetaspace) - 1;

}  // namespace

absl::Status MetaspaceSplitter::Split(absl::string_view text, PieceSink* sink) const {
  size_t begin = 0;
  size_t after = 0;  // end of the last U+2581
  while (true) {
    const size_t found = text.find(kMetaspace, after);
    if (found == absl::string_view::npos) break;
    if (found > begin && (!runs_ || found > after)) {
      sink->OnPiece(text.substr(begin, found - begin));
      begin = found;
    }
    after = found + kLength;
  }
  if (begin < text.size()) sink->OnPiece(text.substr(begin));
  return absl::OkStatus();
}

absl::StatusOr<Metaspace> Metaspace::FromJson(const nlohmann::json& json) {
  Metaspace result;
  if (JsonTextOr(JsonMember(json, "replacement"), "") != kMetaspace)
    return Error(ExitCode::kData, "pre_tokenizer: Metaspace without replacement U+2581 is not supported");
  const nlohmann::json& given = JsonMember(json, "prepend_scheme");
  const std::string scheme = json.contains("prepend_scheme") ? JsonTextOr(given, "") : "always";
  if (scheme == "never") {
    result.prepend = Prepend::kNever;
  } else if (scheme == "first") {
    result.prepend = Prepend::kFirst;
  } else if (scheme != "always") {
    return Error(ExitCode::kData, "pre_tokenizer: Metaspace has an unknown prepend_scheme");
  }
  if (JsonMember(json, "add_prefix_space") == false && result.prepend != Prepend::kNever)
    return Error(ExitCode::kData, "pre_tokenizer: Metaspace's add_prefix_space and prepend_scheme disagree");
  const std::optional<bool> split = json.contains("split") ? JsonBool(JsonMember(json, "split")) : true;
  if (!split.has_value()) return Error(ExitCode::kData, "pre_tokenizer: Metaspace's split is not true or false");
  result.split = *split;
  return result;
}

std::string Metaspace::Spell(absl::string_view text, bool at_start) const {
  std::string spelled = absl::StrReplaceAll(text, {{" ", kMetaspace}});
  const bool prepends = prepend == Prepend::kAlways || (prepend == Prepend::kFirst && at_start);
  return prepends && !absl::StartsWith(spelled, kMetaspace) ? absl::StrCat(kMetaspace, spelled) : spelled;
}

}  // namespace trireme
