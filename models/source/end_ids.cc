#include "models/source/end_ids.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "data/chat/masked_tokens.h"
#include "launch/base/file.h"
#include "launch/base/json.h"
#include "launch/base/log.h"
#include "models/formats/base/json_file.h"
#include "models/source/model_text.h"

namespace trireme {
namespace {

// eos_token_id of a generation_config.json: one, or a list. What is wrong with the file is told: a model that does not
// stop where it should looks like a bad model.
std::vector<int64_t> GenerationEnds(const std::string& folder) {
  const std::string path = folder + "/generation_config.json";
  if (!Exists(path)) return {};
  const absl::StatusOr<nlohmann::json> file = ReadJsonObject(path);
  if (!file.ok()) {
    Warning(file.status().message(), "; generation does not stop at its eos_token_id");
    return {};
  }
  const nlohmann::json& eos = JsonMember(*file, "eos_token_id");
  std::vector<int64_t> ids;
  for (const nlohmann::json& id : eos.is_array() ? eos : nlohmann::json::array({eos})) {
    if (const std::optional<int64_t> number = JsonInteger(id)) {
      ids.push_back(*number);
    } else if (!id.is_null()) {
      Warning(path, ": eos_token_id holds ", DumpJson(id), ", which is no id; it is left out");
    }
  }
  return ids;
}

}  // namespace

std::vector<int64_t> TurnEndIds(const ChatTemplate& chat_template, const Tokenizer& tokenizer) {
  Conversation conversation;
  conversation.messages = {{{"role", "user"}, {"content", "Hi"}}, {{"role", "assistant"}, {"content", "Hello"}}};
  const absl::StatusOr<RenderedChat> chat = chat_template.RenderForTraining(conversation);
  if (!chat.ok() || chat->assistant.empty()) return {};
  const absl::StatusOr<MaskedTokens> tokens = EncodeMasked(tokenizer, chat->text, {chat->assistant.back()});
  if (!tokens.ok()) return {};
  int64_t end = static_cast<int64_t>(tokens->ids.size());
  while (end > 0 && tokens->learned[end - 1] == 0) --end;
  const int32_t id = LearnedEnd(tokenizer, *tokens, end, /*end_id=*/-1);
  return id < 0 ? std::vector<int64_t>() : std::vector<int64_t>{id};
}

std::vector<int64_t> EndIds(const ModelSource& source, const Tokenizer* tokenizer, const ChatTemplate* turns) {
  std::vector<int64_t> ids;
  const auto add = [&](int64_t id) {
    if (id < 0 || id >= source.model.vocab_size() || std::find(ids.begin(), ids.end(), id) != ids.end()) return;
    ids.push_back(id);
  };
  const auto add_all = [&](const std::vector<int64_t>& more) { std::for_each(more.begin(), more.end(), add); };
  add_all(source.ids.eos);
  Digest first;
  for (const std::string& folder : source.tokenizer_folders) {
    const std::string path = FindTokenizer(folder);
    const absl::StatusOr<Digest> digest = path.empty() ? absl::StatusOr<Digest>("") : HashFile(path);
    if (!digest.ok() || (!first.empty() && *digest != first)) continue;  // The files of another tokenizer.
    first = *digest;
    add_all(GenerationEnds(folder));
    const absl::StatusOr<SpecialTokens> tokens = ReadSpecialTokens(folder);
    if (!tokens.ok()) Warning(tokens.status().message(), "; generation does not stop at its eos_token");
    if (tokens.ok() && tokenizer != nullptr) add(SpecialTokenId(*tokens, "eos_token", *tokenizer).value_or(-1));
  }
  add_all(source.text.ends);
  if (turns != nullptr && tokenizer != nullptr) add_all(TurnEndIds(*turns, *tokenizer));
  if (ids.empty() && tokenizer != nullptr) add(tokenizer->end_of_document());
  return ids;
}

}  // namespace trireme
