// Questions with choices, scored as lm-evaluation-harness scores them.
#include <ATen/ops/zeros.h>
#include <absl/strings/ascii.h>
#include <absl/strings/str_split.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "launch/base/file.h"
#include "launch/base/json.h"
#include "launch/base/log.h"
#include "models/source/prompt.h"
#include "parallel/comm/agreement.h"
#include "trainer/evaluate/evaluate.h"

namespace trireme {
namespace {

using Json = nlohmann::json;

// A prompt with one of its choices.
struct Candidate {
  std::vector<int64_t> tokens, targets;  // targets of the choice's tokens only
};

absl::StatusOr<Question> ParseQuestion(const Json& line) {
  Question question;
  const char* key = line.contains("prompt") ? "prompt" : "question";
  const std::string* prompt = JsonText(JsonMember(line, key));
  if (prompt == nullptr) return absl::InvalidArgumentError("has no \"prompt\" text");
  question.prompt = *prompt;
  const Json::array_t& choices = JsonList(JsonMember(line, "choices"));
  if (choices.empty()) return absl::InvalidArgumentError("has no \"choices\" list");
  for (const Json& choice : choices) {
    question.choices.push_back(JsonTextOr(choice, ""));
    if (question.choices.back().empty()) return absl::InvalidArgumentError("has a choice that is no text");
  }
  const std::optional<int64_t> answer = JsonInteger(JsonMember(line, "answer"));
  if (!answer.has_value()) return absl::InvalidArgumentError("has no \"answer\" index");
  question.answer = *answer;
  if (question.answer < 0 || question.answer >= static_cast<int64_t>(question.choices.size()))
    return absl::InvalidArgumentError(absl::StrCat("has the answer ", question.answer, " for ", question.choices.size(),
                                                   " choices, which count from 0"));
  return question;
}

absl::StatusOr<std::vector<Candidate>> Candidates(const Session& session, const std::vector<Question>& questions) {
  RETURN_IF_ERROR(session.text.status());
  const auto encode = [&](const std::string& text) -> absl::StatusOr<std::vector<int64_t>> {
    std::vector<int32_t> ids;
    RETURN_IF_ERROR(session.text->tokenizer->Encode(text, &ids));
    std::vector<int64_t> all = session.text->prefix_ids;
    all.insert(all.end(), ids.begin(), ids.end());
    return all;
  };
  std::vector<Candidate> candidates;
  for (size_t i = 0; i < questions.size(); ++i) {
    for (const std::string& choice : questions[i].choices) {
      const auto [context, continuation] = JoinChoice(questions[i].prompt, choice);
      ASSIGN_OR_RETURN(std::vector<int64_t> ids, encode(context + continuation));
      ASSIGN_OR_RETURN(const std::vector<int64_t> before, encode(context));
      const auto own = static_cast<int64_t>(ids.size()) - 1, positions = session.recipe.engine.model.max_positions;
      // Where the choice's tokens begin. Its first may have melted into the prompt's last.
      const int64_t begin = std::min<int64_t>(static_cast<int64_t>(before.size()), own);
      if (begin < 1)
        return Error(ExitCode::kData, "evaluate --choices: question ", i + 1,
                     " has an empty prompt; nothing would come before the choice");
      for (const int64_t id : ids) {
        if (id < 0 || id >= session.recipe.engine.model.vocab_size)
          return Error(ExitCode::kData, "evaluate --choices: question ", i + 1, " has the token id ", id,
                       ", which is outside the model's vocabulary of ", session.recipe.engine.model.vocab_size);
      }
      if (own > positions)
        return Error(ExitCode::kData, "evaluate --choices: question ", i + 1, " has ", own + 1,
                     " tokens with a choice, the model is meant for ", positions);
      Candidate& candidate = candidates.emplace_back();
      candidate.targets.assign(own, kIgnoredTarget);
      std::copy(ids.begin() + begin, ids.end(), candidate.targets.begin() + begin - 1);
      ids.pop_back();
      candidate.tokens = std::move(ids);
    }
  }
  return candidates;
}

}  // namespace

std::pair<std::string, std::string> JoinChoice(const std::string& prompt, const std::string& choice) {
  const std::string context(absl::StripTrailingAsciiWhitespace(prompt));
  std::string between = prompt.substr(context.size());
  if (between.empty() && !absl::ascii_isspace(static_cast<unsigned char>(choice[0]))) between = " ";
  return {context, between + choice};
}

absl::StatusOr<std::vector<Question>> ReadQuestions(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  std::vector<Question> questions;
  int64_t number = 0;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    JsonProblem problem;
    const std::optional<Json> parsed = ParseJson<Json>(line, {}, &problem);
    absl::StatusOr<Question> question = parsed.has_value() && parsed->is_object()
                                            ? ParseQuestion(*parsed)
                                            : absl::InvalidArgumentError("is no JSON object");
    if (!question.ok())
      return Error(ExitCode::kData, path, ": line ", number, " ", question.status().message(),
                   "; write {\"prompt\": \"...\", \"choices\": [\"...\", \"...\"], \"answer\": 0}");
    questions.push_back(*std::move(question));
  }
  if (questions.empty()) return Error(ExitCode::kData, path, ": holds no question");
  return questions;
}

absl::StatusOr<std::vector<std::vector<double>>> ScoreQuestions(Session& session,
                                                                const std::vector<Question>& questions) {
  absl::StatusOr<std::vector<Candidate>> made = Candidates(session, questions);
  RETURN_IF_ERROR(Agree(session.mesh.control(), made.status()));
  const std::vector<Candidate>& candidates = *made;
  const auto count = static_cast<int64_t>(candidates.size());
  at::Tensor losses = at::zeros({count}, at::TensorOptions().dtype(at::kDouble));
  Progress progress("scoring", count, "choices");
  // Data ranks take turns. Every rank takes part in every turn; what lies beyond the end counts for nothing.
  for (int64_t first = 0; first < count; first += session.mesh.num_data_ranks()) {
    const int64_t index = first + session.mesh.data_rank();
    const Candidate& candidate = candidates[std::min(index, count - 1)];
    const double loss = session.model.SequenceLoss(candidate.tokens, candidate.targets);
    if (index < count) losses.mutable_data_ptr<double>()[index] = loss;
    session.mesh.log().Beat("scoring choices");
    progress.Update(std::min(count, first + session.mesh.num_data_ranks()));
  }
  session.mesh.host_group({Axis::kPipeline, Axis::kDataReplicate, Axis::kDataShard})
      ->AllReduce(losses, ReduceOp::kSum)
      .Wait();
  if (!losses.isfinite().all().item<bool>())
    return MarkAgreed(
        Error(ExitCode::kNonFinite, "evaluate: a choice's loss is not finite; are the model's weights finite?"));
  std::vector<std::vector<double>> scores;
  const double* loss = losses.const_data_ptr<double>();
  for (const Question& question : questions) {
    std::vector<double>& own = scores.emplace_back();
    for (size_t c = 0; c < question.choices.size(); ++c) own.push_back(-*loss++);
  }
  return scores;
}

}  // namespace trireme
