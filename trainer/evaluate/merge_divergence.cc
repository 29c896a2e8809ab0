#include "trainer/evaluate/merge_divergence.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/log_softmax.h>
#include <absl/strings/str_format.h>

#include <algorithm>
#include <cmath>

#include "launch/base/log.h"
#include "parallel/layers/kv_cache.h"
#include "trainer/evaluate/session.h"

namespace trireme {
namespace {

constexpr char kText[] =
    "A trireme was an ancient vessel with three rows of oars on each side, one man to an oar. Light and fast, it was "
    "built to ram: a bronze beak at the waterline could open the hull of an enemy ship. Rowing in time mattered more "
    "than strength. If one bank of oars lost the beat, the whole crew slowed down, so a piper played and everybody "
    "followed him. The timber was fir where weight counted and oak where the ship had to bear a load; ropes ran under "
    "tension from stem to stern and kept the long body from bending in the waves. In 480 BC several hundred of these "
    "ships met in the narrow straits of Salamis. What decided the day was not the number of ships but how well each "
    "of them could turn. When night came, crews pulled their ships ashore to let the wood dry, and cooked a meal of "
    "barley, onions and cheese. How many of them could swim? Nobody knows for certain. The last complete ship has "
    "been gone for two thousand years, and yet a copy that was launched in 1987 reached nine knots under oars alone.";

constexpr size_t kMaxTokens = 192;

absl::StatusOr<std::vector<int64_t>> TokensFor(const Session& session) {
  std::vector<int64_t> tokens;
  if (session.text.ok()) {
    std::vector<int32_t> ids;
    RETURN_IF_ERROR(session.text->tokenizer->Encode(kText, &ids));
    tokens.assign(ids.begin(), ids.end());
  } else {
    for (size_t i = 0; i < kMaxTokens; ++i)
      tokens.push_back(static_cast<int64_t>(i * 7919) % session.recipe.engine.model.vocab_size);
  }
  tokens.resize(std::min({tokens.size(), kMaxTokens, static_cast<size_t>(session.recipe.engine.model.max_positions)}));
  return tokens;
}

// Behind each token: [tokens, vocab] float32.
at::Tensor LogProbabilities(Session& session, const std::vector<int64_t>& tokens) {
  KvCache cache = KvCache::Contiguous(static_cast<int64_t>(tokens.size()), session.mesh.device());
  return at::log_softmax(session.model.Logits({tokens}, cache, /*every_token=*/true), 1);
}

}  // namespace

absl::Status ReportMergeDivergence(const ExportOptions& options, const Extensions& extensions) {
  SessionOptions apart, merged;
  apart.source = options.source;
  apart.adapter = options.adapter;
  merged.source = options.output;
  std::vector<int64_t> tokens;
  at::Tensor expected;
  return WithSessions({apart, merged}, extensions, [&](Session& session) -> absl::Status {
    if (session.process.size() > 1) return Error(ExitCode::kConfig, "export: needs no mpirun; start it as one process");
    if (!expected.defined()) {
      ASSIGN_OR_RETURN(tokens, TokensFor(session));
      expected = LogProbabilities(session, tokens);
      return absl::OkStatus();
    }
    const at::Tensor got = LogProbabilities(session, tokens);
    // Row by row, so that only one is in float64.
    double sum = 0, largest = 0;
    for (int64_t row = 0; row < expected.size(0); ++row) {
      const at::Tensor p = expected[row].to(at::kDouble), q = got[row].to(at::kDouble);
      const double divergence = (p.exp() * (p - q)).sum().item<double>();
      sum += divergence;
      largest = std::max(largest, divergence);
    }
    if (!std::isfinite(sum))
      return Error(ExitCode::kNonFinite, "export: ", options.output, " was written, but what the ",
                   got.isfinite().all().item<bool>() ? "base with its adapter" : "merged model",
                   " answers is not finite, so that the two cannot be compared; are the adapter's numbers?");
    Info(absl::StrFormat("KL(base with adapter || merged): %.3g nats per token over %d tokens, at most %.3g",
                         sum / static_cast<double>(expected.size(0)), expected.size(0), largest));
    return absl::OkStatus();
  });
}

}  // namespace trireme
