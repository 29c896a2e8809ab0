#include "models/weights/run_text.h"

#include <absl/strings/match.h>

namespace trireme {
namespace {

constexpr uint64_t kMaxTemplateBytes = uint64_t{1} << 20;

bool HoldsJinja(const std::string& text) { return absl::StrContains(text, "{{") || absl::StrContains(text, "{%"); }

}  // namespace

RunTextRecord RecordOf(const RunText& text) {
  RunTextRecord record;
  if (!text.tokenizer.empty()) record.set_tokenizer(text.tokenizer);
  if (!text.tokenizer_digest.empty()) record.set_tokenizer_digest(text.tokenizer_digest);
  if (!text.chat_template.empty()) record.set_chat_template(text.chat_template);
  for (const int64_t id : text.ends) record.add_end_id(static_cast<int32_t>(id));
  record.set_split_by_content(text.split_by_content);
  return record;
}

absl::StatusOr<RunText> RunTextOf(const CheckpointManifest& manifest) {
  RunText text;
  if (manifest.has_text()) {
    const RunTextRecord& record = manifest.text();
    text.tokenizer = record.tokenizer();
    text.tokenizer_digest = record.tokenizer_digest();
    text.chat_template = record.chat_template();
    text.ends.assign(record.end_id().begin(), record.end_id().end());
    text.split_by_content = record.split_by_content();
    return text;
  }
  if (!manifest.config().data().has_conversations()) return text;
  const ConversationData& data = manifest.config().data().conversations();
  text.tokenizer = data.tokenizer();
  text.ends_by_template = true;
  text.split_by_content = false;
  if (data.chat_template().empty()) return text;
  absl::StatusOr<std::string> given = ReadGivenTemplate(data.chat_template());
  if (!given.ok())
    return Annotate(given.status(), "the chat template that the run was trained with, which belongs to its model");
  text.chat_template = *std::move(given);
  return text;
}

absl::StatusOr<std::string> ReadGivenTemplate(const std::string& given) {
  if (HoldsJinja(given)) return given;
  absl::StatusOr<std::string> text = ReadFile(given, kMaxTemplateBytes);
  if (!text.ok()) return Error(ExitCode::kData, "chat_template ", given, ": ", text.status().message());
  if (!HoldsJinja(*text))
    return Error(ExitCode::kData, "chat_template ", given,
                 ": holds no Jinja ({{ ... }} or {% ... %}); is it a template?");
  return text;
}

}  // namespace trireme
