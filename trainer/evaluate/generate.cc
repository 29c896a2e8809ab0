#include "trainer/evaluate/generate.h"

#include <absl/strings/str_format.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <nlohmann/json.hpp>
#include <set>

#include "launch/base/log.h"
#include "launch/base/terminal_text.h"
#include "models/source/end_ids.h"
#include "models/source/prompt.h"
#include "parallel/comm/agreement.h"

namespace trireme {
namespace {

absl::StatusOr<std::vector<int64_t>> PromptIds(const GenerateOptions& options, const Session& session) {
  std::vector<int64_t> ids = options.prompt_ids;
  if (options.prompt.has_value()) {
    RETURN_IF_ERROR(session.text.status());
    std::string text = *options.prompt;
    if (options.chat) {
      ASSIGN_OR_RETURN(text, ChatPrompt(session.text->chat_template, options.system, text));
    } else {
      ids = session.text->prefix_ids;
    }
    std::vector<int32_t> encoded;
    RETURN_IF_ERROR(session.text->tokenizer->Encode(text, &encoded));
    ids.insert(ids.end(), encoded.begin(), encoded.end());
  }
  if (ids.empty())
    return Error(ExitCode::kConfig, "generate: the prompt has no tokens; give --prompt some text to go on from");
  const int64_t vocab = session.recipe.engine.model.vocab_size, positions = session.recipe.engine.model.max_positions;
  for (const int64_t id : ids) {
    if (id < 0 || id >= vocab)
      return Error(ExitCode::kConfig, "generate: token id ", id, " is outside the model's vocabulary of ", vocab);
  }
  if (static_cast<int64_t>(ids.size()) >= positions)
    return Error(ExitCode::kConfig, "generate: the prompt has ", ids.size(), " tokens, the model is meant for ",
                 positions, " in all; shorten it");
  return ids;
}

std::set<int64_t> Ends(const GenerateOptions& options, const Session& session) {
  if (options.ignore_eos) return {};
  const bool turns = options.chat || session.source.text.ends_by_template;
  const bool has_template = session.text.ok() && session.text->chat_template.ok();
  const std::vector<int64_t> ids = EndIds(session.source, session.text.ok() ? session.text->tokenizer.get() : nullptr,
                                          turns && has_template ? &*session.text->chat_template : nullptr);
  return {ids.begin(), ids.end()};
}

absl::Status Run(const GenerateOptions& options, Session& session) {
  absl::StatusOr<std::vector<int64_t>> prompt = PromptIds(options, session);
  if (!prompt.ok()) return MarkAgreed(prompt.status());
  const bool as_text = !options.print_ids && !options.json;
  if (as_text && !session.text.ok()) return MarkAgreed(session.text.status());
  const std::set<int64_t> ends = Ends(options, session);
  const auto prompt_tokens = static_cast<int64_t>(prompt->size());
  // The last token is never read again, so it needs no place.
  const int64_t length =
      prompt_tokens + std::min(options.max_tokens, session.recipe.engine.model.max_positions - prompt_tokens);
  KvCache cache = KvCache::Contiguous(length, session.mesh.device());
  std::optional<TextStream> stream;
  if (session.text.ok()) stream.emplace(*session.text->tokenizer);
  const bool speaks = session.process.rank() == 0;
  std::vector<int64_t> ids;
  std::vector<double> log_probabilities;
  std::string text;
  bool ended = false;
  const double start = MonotonicSeconds();
  double first_token = start;
  bool finite = true;
  const auto next = [&](const GeneratedToken& token) {
    if (ids.empty()) first_token = MonotonicSeconds();
    session.mesh.log().Beat("generating");
    finite = std::isfinite(token.log_probability);
    ended = ends.count(token.id) > 0;
    if (ended || !finite) return false;
    ids.push_back(token.id);
    log_probabilities.push_back(token.log_probability);
    const std::string piece = stream.has_value() ? stream->Push(token.id) : "";
    text += piece;
    if (speaks && as_text) std::cout << ForOutput(piece) << std::flush;
    if (speaks && options.print_ids) std::cout << (ids.size() > 1 ? "," : "") << token.id << std::flush;
    return true;
  };
  GenerateTokens(session.model, session.mesh, cache, *prompt, options.max_tokens, options.sampling, next);
  if (!finite)
    return MarkAgreed(Error(ExitCode::kNonFinite, "generate: after ", prompt_tokens + static_cast<int64_t>(ids.size()),
                            " tokens the model's answer is not a finite number; are its weights?"));
  const double end = MonotonicSeconds();
  if (!speaks) return absl::OkStatus();
  const std::string rest = stream.has_value() ? stream->Finish() : "";
  const double decoded = std::max<double>(0, static_cast<double>(ids.size()) - (ended ? 0 : 1));
  const double rate = end > first_token ? decoded / (end - first_token) : 0;
  if (as_text) std::cout << ForOutput(rest) << std::endl;
  if (options.print_ids) std::cout << std::endl;
  if (options.json) {
    nlohmann::ordered_json line = {{"prompt_ids", *prompt},
                                   {"ids", ids},
                                   {"log_probabilities", log_probabilities},
                                   {"finish", ended ? "end" : "length"},
                                   {"prompt_seconds", first_token - start},
                                   {"tokens_per_second", rate}};
    if (stream.has_value()) line["text"] = text + rest;
    std::cout << DumpJson(line) << std::endl;
  }
  Info(absl::StrFormat("prompt: %d tokens in %s; %d tokens after it%s, %.1f tokens/s", prompt_tokens,
                       HumanSeconds(first_token - start), ids.size(), ended ? " up to the model's own end" : "", rate));
  if (!ended && static_cast<int64_t>(ids.size()) < options.max_tokens)
    Info("stopped at the ", session.recipe.engine.model.max_positions, " tokens that the model is meant for");
  return absl::OkStatus();
}

}  // namespace

absl::Status Generate(const GenerateOptions& options, const Extensions& extensions) {
  SessionOptions opening = options.session;
  const SamplingOptions& sampling = options.sampling;
  opening.asked = {{"the prompt", absl::StrCat(options.prompt.value_or("none"), " ", options.system.value_or(""), " ",
                                               absl::StrJoin(options.prompt_ids, ","), options.chat ? " (chat)" : "")},
                   {"--max-tokens", absl::StrCat(options.max_tokens)},
                   {"--ignore-eos", options.ignore_eos ? "true" : "false"},
                   {"sampling", absl::StrCat("temperature ", sampling.temperature, ", top-k ", sampling.top_k,
                                             ", top-p ", sampling.top_p, ", seed ", sampling.seed)}};
  return WithSession(opening, extensions, [&](Session& session) { return Run(options, session); });
}

}  // namespace trireme
