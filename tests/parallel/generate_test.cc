// Tokens one by one against tokens all at once, on one rank and on every mesh; what the block table must not change.
#include <ATen/ops/cat.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "serving/generation.h"
#include "tests/kernels/test_tensors.h"
#include "tests/parallel/multi_rank.h"
#include "tests/parallel/tiny_run.h"

namespace trireme {
namespace {

constexpr int64_t kVocab = 211, kLength = 29;

std::vector<int64_t> Tokens(uint64_t seed, int64_t count) {
  const at::Tensor ids = TestTensors(seed).Ids(count, kVocab);
  return {ids.const_data_ptr<int64_t>(), ids.const_data_ptr<int64_t>() + count};
}

std::vector<int64_t> Part(const std::vector<int64_t>& tokens, int64_t begin, int64_t end) {
  return {tokens.begin() + begin, tokens.begin() + end};
}

std::unique_ptr<TinyRun> Start(const std::vector<std::string>& fragments, bool alone) {
  auto run = std::make_unique<TinyRun>(fragments, alone);
  run->Initialize();
  return run;
}

double LargestDifference(const at::Tensor& a, const at::Tensor& b) { return a.sub(b).abs().max().item<double>(); }

// Of logits of a whole text.
constexpr double kTolerance = 1e-5;

// Logits [kLength, vocab] of a text, its tokens brought in pieces that end at `ends`; undefined without the head.
at::Tensor LogitsInPieces(TinyRun& run, const std::vector<int64_t>& text, const std::vector<int64_t>& ends) {
  KvCache cache = KvCache::Contiguous(kLength, at::kCPU);
  std::vector<at::Tensor> pieces;
  int64_t begin = 0;
  for (const int64_t end : ends) {
    pieces.push_back(run.model().Logits({Part(text, begin, end)}, cache, /*every_token=*/true));
    EXPECT_EQ(cache.length(0), end);
    begin = end;
  }
  return pieces[0].defined() ? at::cat(pieces) : at::Tensor();
}

std::vector<int64_t> OneByOneFrom(int64_t first) {
  std::vector<int64_t> ends(kLength - first + 1);
  std::iota(ends.begin(), ends.end(), first);
  return ends;
}

// The layouts that this many ranks allow.
std::vector<std::string> Layouts() {
  const int world = TestProcess().size();
  std::vector<std::string> layouts = {"parallel { shard: PARAMETERS }", "parallel { shard: NONE }"};
  if (world == 1) return layouts;
  if (world <= 8) layouts.push_back(absl::StrCat("parallel { tensor: ", world, " }"));
  if (world <= 4) layouts.push_back(absl::StrCat("parallel { pipeline: ", world, " }"));
  layouts.push_back(absl::StrCat("parallel { context: ", world, " }"));
  if (world >= 4) layouts.push_back("parallel { tensor: 2 pipeline: 2 }");
  if (world == 2) {
    layouts.push_back("model { num_hidden_layers: 6 } parallel { pipeline: 2 pipeline_schedule: \"Interleaved1F1B\" }");
  }
  return layouts;
}

TEST(Generation, OneByOneIsAllAtOnceOnEveryMesh) {
  REQUIRE_RANKS(TestProcess().size() <= 8, "16 sequences serve 8 data ranks");
  const std::vector<int64_t> text = Tokens(3, kLength);
  for (const char* numbers : {"model { tie_word_embeddings: true }",
                              "model { sliding_window: 5 num_key_value_heads: 2 }", "model { vocab_size: 213 }"}) {
    for (const std::string& layout : Layouts()) {
      SCOPED_TRACE(absl::StrCat(numbers, " | ", layout));
      const auto alone =
          Start({numbers, layout, "parallel { tensor: 1 pipeline: 1 context: 1 pipeline_schedule: \"1F1B\" }"},
                /*alone=*/true);
      const at::Tensor expected = LogitsInPieces(*alone, text, {kLength});
      const auto run = Start({numbers, layout}, /*alone=*/false);
      for (const std::vector<int64_t>& ends :
           {std::vector<int64_t>{kLength}, OneByOneFrom(1), OneByOneFrom(11), {3, 4, 20, kLength}}) {
        const at::Tensor logits = LogitsInPieces(*run, text, ends);
        if (!logits.defined()) continue;
        EXPECT_LE(LargestDifference(logits, expected), kTolerance) << ends.size() << " pieces";
      }
      EXPECT_GT(expected.abs().max().item<double>(), 0.1);
    }
  }
}

// The loss of training and evaluation, by another path through the model.
TEST(Generation, LogitsAreThoseOfTheLoss) {
  REQUIRE_RANKS(TestProcess().size() <= 8, "16 sequences serve 8 data ranks");
  const std::vector<int64_t> text = Tokens(4, kLength + 1), tokens = Part(text, 0, kLength);
  std::vector<int64_t> targets = Part(text, 1, kLength + 1);
  std::fill(targets.begin(), targets.begin() + 7, kIgnoredTarget);
  for (const std::string& layout : Layouts()) {
    SCOPED_TRACE(layout);
    const auto run = Start({layout}, /*alone=*/false);
    const double loss = run->model().SequenceLoss(tokens, targets);
    const at::Tensor logits = LogitsInPieces(*run, tokens, {kLength});
    if (!logits.defined()) {
      EXPECT_EQ(loss, 0);
      continue;
    }
    double expected = 0;
    for (int64_t i = 7; i < kLength; ++i)
      expected -= LogProbability(logits.const_data_ptr<float>() + i * kVocab, kVocab, targets[i]);
    EXPECT_NEAR(loss / expected, 1, 1e-6);
  }
}

TEST(Generation, TheSameTextOnEveryMesh) {
  REQUIRE_RANKS(TestProcess().size() <= 8, "16 sequences serve 8 data ranks");
  const std::vector<int64_t> prompt = Tokens(5, 7);
  SamplingOptions greedy, sampled;
  sampled.temperature = 1.3;
  sampled.top_k = 60;
  sampled.top_p = 0.95;
  const auto generate = [&](TinyRun& run, const SamplingOptions& sampling) {
    KvCache cache = KvCache::Contiguous(32, at::kCPU);
    std::vector<int64_t> ids;
    GenerateTokens(run.model(), run.mesh(), cache, prompt, 1000, sampling, [&](const GeneratedToken& token) {
      ids.push_back(token.id);
      return true;
    });
    return ids;
  };
  for (const std::string& layout : Layouts()) {
    SCOPED_TRACE(layout);
    const auto alone =
        Start({layout, "parallel { tensor: 1 pipeline: 1 context: 1 pipeline_schedule: \"1F1B\" }"}, /*alone=*/true);
    const auto run = Start({layout}, /*alone=*/false);
    for (const SamplingOptions& sampling : {greedy, sampled}) {
      const std::vector<int64_t> ids = generate(*run, sampling);
      EXPECT_EQ(ids, generate(*alone, sampling));
      EXPECT_EQ(ids.size(), 32u - 7 + 1) << "up to the cache's end; the last token needs no place in it";
    }
    EXPECT_NE(generate(*run, greedy), generate(*run, sampled));
  }
}

TEST(Generation, StopsWhereItIsTold) {
  REQUIRE_RANKS(TestProcess().size() == 1, "one rank is enough");
  const auto run = Start({}, /*alone=*/true);
  for (const int64_t most : {1, 3}) {
    KvCache cache = KvCache::Contiguous(32, at::kCPU);
    int64_t heard = 0;
    GenerateTokens(run->model(), run->mesh(), cache, {1, 2}, most, {}, [&](const GeneratedToken&) {
      ++heard;
      return true;
    });
    EXPECT_EQ(heard, most);
  }
  KvCache cache = KvCache::Contiguous(32, at::kCPU);
  int64_t heard = 0;
  GenerateTokens(run->model(), run->mesh(), cache, {1, 2}, 20, {}, [&](const GeneratedToken&) { return ++heard < 2; });
  EXPECT_EQ(heard, 2);
}

// ---- Block tables ----

TEST(BlockTable, WhichPagesChangesNoBit) {
  REQUIRE_RANKS(TestProcess().size() == 1, "one rank is enough");
  const std::vector<int64_t> text = Tokens(6, kLength);
  for (const char* precision : {"", "precision { compute: BF16 }"}) {
    const auto run = Start({"model { sliding_window: 9 }", precision}, /*alone=*/true);
    const at::Tensor expected = LogitsInPieces(*run, text, OneByOneFrom(9));
    for (const BlockTable& table : {BlockTable{{0, 1, 2, 3, 4, 5, 6, 7}}, BlockTable{{5, 2, 11, 0, 7, 1, 3, 20}}}) {
      KvCache cache(table, /*page_tokens=*/4, at::kCPU);
      std::vector<at::Tensor> pieces;
      int64_t begin = 0;
      for (const int64_t end : OneByOneFrom(9)) {
        pieces.push_back(run->model().Logits({Part(text, begin, end)}, cache, /*every_token=*/true));
        begin = end;
      }
      EXPECT_TRUE(at::cat(pieces).equal(expected));
    }
  }
}

TEST(BlockTable, SequencesSideBySideAreEachAlone) {
  REQUIRE_RANKS(TestProcess().size() == 1 || TestProcess().size() == 2, "alone and with padding");
  const bool alone = TestProcess().size() == 1;
  const auto run = Start({alone ? "" : "parallel { tensor: 2 }"}, alone);
  const std::vector<std::vector<int64_t>> texts = {Tokens(7, 20), Tokens(8, 13), Tokens(9, 17)};
  std::vector<at::Tensor> expected;
  for (const std::vector<int64_t>& text : texts) {
    KvCache cache = KvCache::Contiguous(32, at::kCPU);
    expected.push_back(run->model().Logits({text}, cache));
  }
  KvCache cache({{3, 0, 8}, {1, 4}, {9, 2, 6}}, /*page_tokens=*/8, at::kCPU);
  // In three passes, of which not every sequence takes part in each.
  run->model().Logits({Part(texts[0], 0, 5), Part(texts[1], 0, 12), {}}, cache);
  run->model().Logits({Part(texts[0], 5, 6), {}, Part(texts[2], 0, 16)}, cache);
  const at::Tensor logits =
      run->model().Logits({Part(texts[0], 6, 20), Part(texts[1], 12, 13), Part(texts[2], 16, 17)}, cache);
  ASSERT_EQ(logits.size(0), 3);
  for (int64_t s = 0; s < 3; ++s)
    EXPECT_LE(LargestDifference(logits.narrow(0, s, 1), expected[s]), kTolerance) << "sequence " << s;
}

}  // namespace
}  // namespace trireme
