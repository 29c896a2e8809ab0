#include "trainer/evaluate/evaluate.h"

#include <absl/strings/str_format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "data/tokenizer/tokenizer.h"
#include "launch/base/json.h"
#include "launch/base/log.h"
#include "parallel/comm/agreement.h"
#include "trainer/loop/evaluation.h"

namespace trireme {
namespace {

// Bytes of text that each token id stands for; empty when no tokenizer is at hand.
absl::StatusOr<std::vector<int64_t>> BytesOfIds(const Session& session, const std::string& corpus) {
  std::unique_ptr<Tokenizer> own;
  const std::string path = FindTokenizer(corpus);
  if (!path.empty()) {
    ASSIGN_OR_RETURN(own, Tokenizer::Load(path));
    if (session.text.ok() && own->digest() != session.text->tokenizer->digest() && session.process.rank() == 0)
      Warning("evaluate: ", path, " is not the tokenizer of ", session.source.description,
              "; unless both give a text the same ids, the loss says nothing");
  }
  const Tokenizer* tokenizer = own != nullptr ? own.get() : session.text.ok() ? session.text->tokenizer.get() : nullptr;
  std::vector<int64_t> bytes;
  if (tokenizer == nullptr) return bytes;
  for (int32_t id = 0; id < tokenizer->vocab_size(); ++id)
    bytes.push_back(id == tokenizer->end_of_document() ? 0 : static_cast<int64_t>(tokenizer->Decode({id}).size()));
  return bytes;
}

absl::Status EvaluateCorpus(const EvaluateOptions& options, Session& session) {
  const DataConfig& given = options.session.data;
  const std::string& corpus = given.has_conversations() ? given.conversations().path(0) : given.source(0).path();
  const std::shared_ptr<const Sampler> split = options.train_split ? session.corpora.train : session.corpora.validation;
  if (split == nullptr) {
    return MarkAgreed(Error(ExitCode::kData, "evaluate: ", corpus, " has no validation split of at least ",
                            session.recipe.config.data().sequence_length(),
                            " tokens; give --split train, or `trireme prepare --validation-fraction`"));
  }
  absl::StatusOr<std::vector<int64_t>> bytes_of_id = BytesOfIds(session, corpus);
  RETURN_IF_ERROR(Agree(session.mesh.control(), bytes_of_id.status()));
  double tokens = 0, bytes = 0;
  const auto count = [&](const Microbatch& microbatch) {
    for (const int64_t target : microbatch.targets) {
      if (target < 0) continue;
      ++tokens;
      if (target < static_cast<int64_t>(bytes_of_id->size())) bytes += static_cast<double>((*bytes_of_id)[target]);
    }
  };
  ASSIGN_OR_RETURN(const double loss,
                   EvaluateSplit(session.model, session.mesh, *split, session.recipe, options.max_sequences, count));
  ProcessGroup& data = *session.mesh.host_group({Axis::kDataReplicate, Axis::kDataShard});
  tokens = SumOverRanks(data, tokens);
  bytes = SumOverRanks(data, bytes);
  if (!std::isfinite(loss))
    return MarkAgreed(Error(ExitCode::kNonFinite, "evaluate: the loss is ", loss, "; are the model's weights finite?"));
  if (session.process.rank() != 0) return absl::OkStatus();
  const double bits_per_byte = bytes > 0 ? loss * tokens / M_LN2 / bytes : 0;
  if (options.json) {
    nlohmann::ordered_json line = {{"loss", loss},
                                   {"perplexity", std::exp(loss)},
                                   {"tokens", static_cast<int64_t>(tokens)},
                                   {"sequence_length", session.recipe.config.data().sequence_length()}};
    if (bytes > 0) {
      line["bits_per_byte"] = bits_per_byte;
      line["bytes"] = static_cast<int64_t>(bytes);
    }
    std::cout << DumpJson(line) << std::endl;
    return absl::OkStatus();
  }
  std::cout << absl::StrFormat("loss %.4f nat per token, perplexity %.4g", loss, std::exp(loss))
            << (bytes > 0 ? absl::StrFormat(", %.4f bits per byte", bits_per_byte) : "")
            << absl::StrFormat(" (%d tokens in windows of %d%s%s)", static_cast<int64_t>(tokens),
                               session.recipe.config.data().sequence_length(),
                               session.recipe.config.data().document_mask() ? ", each document by itself" : "",
                               bytes > 0 ? absl::StrFormat(", %d bytes", static_cast<int64_t>(bytes)) : "")
            << std::endl;
  return absl::OkStatus();
}

// The highest; of equals the first.
int64_t Best(const std::vector<double>& scores) {
  return std::max_element(scores.begin(), scores.end()) - scores.begin();
}

absl::Status EvaluateChoices(const EvaluateOptions& options, Session& session) {
  absl::StatusOr<std::vector<Question>> questions = ReadQuestions(options.choices);
  RETURN_IF_ERROR(Agree(session.mesh.control(), questions.status()));
  ASSIGN_OR_RETURN(const std::vector<std::vector<double>> scores, ScoreQuestions(session, *questions));
  if (session.process.rank() != 0) return absl::OkStatus();
  double right = 0, right_normalized = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    const Question& question = (*questions)[i];
    std::vector<double> per_byte = scores[i];
    for (size_t c = 0; c < per_byte.size(); ++c)
      per_byte[c] /= static_cast<double>(std::max<size_t>(1, question.choices[c].size()));
    right += Best(scores[i]) == question.answer ? 1 : 0;
    right_normalized += Best(per_byte) == question.answer ? 1 : 0;
  }
  const auto count = static_cast<double>(scores.size());
  if (options.json) {
    const nlohmann::ordered_json line = {{"accuracy", right / count},
                                         {"accuracy_normalized", right_normalized / count},
                                         {"questions", scores.size()},
                                         {"log_likelihoods", scores}};
    std::cout << DumpJson(line) << std::endl;
    return absl::OkStatus();
  }
  std::cout << absl::StrFormat("accuracy %.4f by log-likelihood, %.4f by log-likelihood per byte (%d questions)",
                               right / count, right_normalized / count, scores.size())
            << std::endl;
  return absl::OkStatus();
}

}  // namespace

absl::Status Evaluate(const EvaluateOptions& options, const Extensions& extensions) {
  SessionOptions opening = options.session;
  opening.asked = {{"--split", options.train_split ? "train" : "validation"},
                   {"--max-sequences", absl::StrCat(options.max_sequences)}};
  if (!options.choices.empty())
    opening.asked.push_back({"the content of --choices", DigestOrError(HashFile(options.choices)), ExitCode::kData});
  return WithSession(opening, extensions, [&](Session& session) {
    return options.choices.empty() ? EvaluateCorpus(options, session) : EvaluateChoices(options, session);
  });
}

}  // namespace trireme
