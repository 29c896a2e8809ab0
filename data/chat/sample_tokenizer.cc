#include "data/chat/sample_tokenizer.h"

#include <absl/strings/match.h>

#include <algorithm>
#include <string>
#include <utility>

namespace trireme {
namespace {

// Leaves out the turns that the sample says carry no loss: those of its prompt, and those of weight 0.
absl::Status KeepLearned(const ConversationSample& sample, const ChatTemplate& chat_template, RenderedChat* chat) {
  std::vector<ByteRange>& turns = chat->assistant;
  if (std::find(sample.learned.begin(), sample.learned.end(), false) != sample.learned.end()) {
    if (turns.size() != sample.learned.size()) {
      return Error(ExitCode::kData, "the template writes ", turns.size(), " turns for the ", sample.learned.size(),
                   " messages of the assistant, so \"weight\" cannot be applied; leave it out");
    }
    std::vector<ByteRange> kept;
    for (size_t i = 0; i < turns.size(); ++i) {
      if (sample.learned[i]) kept.push_back(turns[i]);
    }
    turns = std::move(kept);
  }
  if (sample.prompt_messages == 0) return absl::OkStatus();
  Conversation prompt = sample.conversation;
  prompt.messages.erase(prompt.messages.begin() + static_cast<int64_t>(sample.prompt_messages), prompt.messages.end());
  ASSIGN_OR_RETURN(std::string given, chat_template.Render(prompt, /*add_generation_prompt=*/false));
  if (!absl::StartsWith(chat->text, given)) {  // Some templates end a conversation that is not to go on.
    ASSIGN_OR_RETURN(given, chat_template.Render(prompt, /*add_generation_prompt=*/true));
  }
  if (!absl::StartsWith(chat->text, given)) {
    return Error(ExitCode::kData,
                 "the template writes the prompt differently when the completion follows, so the two "
                 "cannot be told apart; write the sample as \"messages\"");
  }
  turns.erase(
      std::remove_if(turns.begin(), turns.end(), [&given](const ByteRange& turn) { return turn.begin < given.size(); }),
      turns.end());
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<MaskedTokens> SampleTokenizer::Encode(const ConversationSample& sample) const {
  absl::StatusOr<MaskedTokens> tokens = sample.is_chat() ? EncodeChat(sample) : EncodeText(sample);
  if (!tokens.ok()) return Annotate(tokens.status(), sample.place);
  if (options_.train_on == ConversationData::ALL) std::fill(tokens->learned.begin(), tokens->learned.end(), 1);
  return tokens;
}

absl::StatusOr<MaskedTokens> SampleTokenizer::EncodeChat(const ConversationSample& sample) const {
  if (!options_.chat_template.has_value()) return options_.no_template_reason;
  if (options_.train_on == ConversationData::ALL) {
    ASSIGN_OR_RETURN(const std::string text, options_.chat_template->Render(sample.conversation, false));
    return EncodeMasked(*options_.tokenizer, text, {{0, text.size()}});
  }
  ASSIGN_OR_RETURN(RenderedChat chat, options_.chat_template->RenderForTraining(sample.conversation));
  RETURN_IF_ERROR(KeepLearned(sample, *options_.chat_template, &chat));
  return EncodeMasked(*options_.tokenizer, chat.text, chat.assistant);
}

absl::StatusOr<MaskedTokens> SampleTokenizer::EncodeText(const ConversationSample& sample) const {
  if (options_.end_id < 0) {
    return Error(ExitCode::kData,
                 "the tokenizer names no token that ends a text (eos_token), so a model trained on this "
                 "would never stop; name one in tokenizer_config.json");
  }
  const std::string text = sample.prompt + sample.completion;
  ASSIGN_OR_RETURN(const MaskedTokens encoded,
                   EncodeMasked(*options_.tokenizer, text, {{sample.prompt.size(), text.size()}}));
  MaskedTokens tokens;
  // A text that already begins or ends as it should gets nothing twice.
  const std::vector<int32_t> prefix(options_.prefix_ids.begin(), options_.prefix_ids.end());
  if (encoded.ids.size() < prefix.size() || !std::equal(prefix.begin(), prefix.end(), encoded.ids.begin())) {
    tokens.ids = prefix;
    tokens.learned.resize(prefix.size());
  }
  tokens.ids.insert(tokens.ids.end(), encoded.ids.begin(), encoded.ids.end());
  tokens.learned.insert(tokens.learned.end(), encoded.learned.begin(), encoded.learned.end());
  if (encoded.ids.empty() || encoded.ids.back() != options_.end_id) {
    tokens.ids.push_back(options_.end_id);
    tokens.learned.push_back(1);
  }
  return tokens;
}

}  // namespace trireme
