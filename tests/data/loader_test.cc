#include "data/sampling/loader.h"

#include <gtest/gtest.h>

#include <new>

#include "tests/data/test_corpus.h"

namespace trireme {
namespace {

std::shared_ptr<const Sampler> MakeSampler(std::shared_ptr<const TokenStream> stream, int64_t sequence_length,
                                           bool shuffle) {
  return Sampler::Create({std::move(stream)}, {}, sequence_length, 1, shuffle).value();
}

LoaderOptions MakeOptions(int64_t sequence_length, int64_t global_batch_size, int64_t micro_batch_size) {
  LoaderOptions options;
  options.sequence_length = sequence_length;
  options.global_batch_size = global_batch_size;
  options.micro_batch_size = micro_batch_size;
  return options;
}

// All tokens of `steps` steps, ranks one after another within each step.
std::vector<int64_t> TokensOf(std::shared_ptr<const Sampler> sampler, LoaderOptions options, int num_ranks, int steps) {
  std::vector<std::unique_ptr<Loader>> loaders;
  options.num_data_ranks = num_ranks;
  for (options.data_rank = 0; options.data_rank < num_ranks; ++options.data_rank) {
    loaders.push_back(Loader::Create(sampler, options).value());
  }
  std::vector<int64_t> tokens;
  for (int step = 0; step < steps; ++step) {
    for (const auto& loader : loaders) {
      const StepBatch batch = loader->Next().value();
      for (const Microbatch& microbatch : batch.microbatches) {
        tokens.insert(tokens.end(), microbatch.tokens.begin(), microbatch.tokens.end());
      }
    }
  }
  return tokens;
}

TEST(Loader, SameSamplesOnAnyNumberOfRanks) {
  const auto sampler = MakeSampler(std::make_shared<CountingStream>(801, 13), 8, /*shuffle=*/true);
  const LoaderOptions options = MakeOptions(8, 12, 1);
  const std::vector<int64_t> expected = TokensOf(sampler, options, 1, 20);  // More than two epochs.
  ASSERT_EQ(expected.size(), 20u * 12 * 8);
  for (const int ranks : {2, 3, 4, 6, 12}) EXPECT_EQ(TokensOf(sampler, options, ranks, 20), expected) << ranks;
}

TEST(Loader, ContinuingFromACursorEqualsTheUninterruptedOrder) {
  const auto sampler = MakeSampler(std::make_shared<CountingStream>(801, 13), 8, /*shuffle=*/true);
  LoaderOptions options = MakeOptions(8, 12, 2);
  const std::vector<int64_t> whole = TokensOf(sampler, options, 1, 20);
  options.first_sample = 7 * 12;
  const std::vector<int64_t> rest = TokensOf(sampler, options, 3, 13);
  EXPECT_EQ(rest, std::vector<int64_t>(whole.begin() + 7 * 12 * 8, whole.end()));
}

TEST(Loader, WithoutDocumentMaskASequenceIsOneSegment) {
  const auto sampler = MakeSampler(std::make_shared<CountingStream>(100, 3), 5, /*shuffle=*/false);
  const auto loader = Loader::Create(sampler, MakeOptions(5, 4, 2)).value();
  const StepBatch batch = loader->Next().value();
  ASSERT_EQ(batch.microbatches.size(), 2u);
  EXPECT_GE(batch.wait_ms, 0);
  const Microbatch& second = batch.microbatches[1];
  EXPECT_EQ(second.tokens, (std::vector<int64_t>{10, 11, 12, 13, 14, 15, 16, 17, 18, 19}));
  EXPECT_EQ(second.targets, (std::vector<int64_t>{11, 12, 13, 14, 15, 16, 17, 18, 19, 20}));
  EXPECT_EQ(second.positions, (std::vector<int64_t>{0, 1, 2, 3, 4, 0, 1, 2, 3, 4}));
  EXPECT_EQ(second.cu_seqlens, (std::vector<int32_t>{0, 5, 10}));
  EXPECT_EQ(second.max_seqlen, 5);
  EXPECT_EQ(second.num_targets, 10);
}

TEST(Loader, DocumentMaskCutsSegmentsAndTargetsAtBoundaries) {
  // Documents begin at 0, 4, 8, 12, ...; windows at 0, 6.
  const auto sampler = MakeSampler(std::make_shared<CountingStream>(100, 4), 6, /*shuffle=*/false);
  LoaderOptions options = MakeOptions(6, 2, 2);
  options.document_mask = true;
  const auto loader = Loader::Create(sampler, options).value();
  const Microbatch microbatch = loader->Next().value().microbatches.at(0);
  const int64_t x = kIgnoredTarget;
  EXPECT_EQ(microbatch.tokens, (std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}));
  // 3 ends a document inside the first window; 11 ends one at the end of the second, where only its target lies
  // outside.
  EXPECT_EQ(microbatch.targets, (std::vector<int64_t>{1, 2, 3, x, 5, 6, 7, x, 9, 10, 11, x}));
  EXPECT_EQ(microbatch.positions, (std::vector<int64_t>{0, 1, 2, 3, 0, 1, 0, 1, 0, 1, 2, 3}));
  EXPECT_EQ(microbatch.cu_seqlens, (std::vector<int32_t>{0, 4, 6, 8, 12}));
  EXPECT_EQ(microbatch.max_seqlen, 4);
  EXPECT_EQ(microbatch.num_targets, 9);
}

TEST(Loader, AnErrorComesFromTheStepThatHasItAndStays) {
  const auto sampler = MakeSampler(std::make_shared<CountingStream>(1000, 10, /*broken_at=*/55), 10, /*shuffle=*/false);
  const auto loader = Loader::Create(sampler, MakeOptions(10, 2, 1)).value();
  EXPECT_TRUE(loader->Next().ok());
  EXPECT_TRUE(loader->Next().ok());
  EXPECT_ERROR(loader->Next().status(), ExitCode::kData, "broken at 55");  // Tokens 40 to 60.
  EXPECT_ERROR(loader->Next().status(), ExitCode::kData, "broken at 55");
}

TEST(Loader, RefusesBatchSizesThatDoNotDivide) {
  const auto sampler = MakeSampler(std::make_shared<CountingStream>(1000, 10), 10, /*shuffle=*/false);
  LoaderOptions options = MakeOptions(10, 12, 2);
  options.num_data_ranks = 4;
  EXPECT_ERROR(Loader::Create(sampler, options).status(), ExitCode::kConfig, "global_batch_size 12 is not a multiple");
  options.num_data_ranks = 3;
  EXPECT_TRUE(Loader::Create(sampler, options).ok());
  options.sequence_length = 20;
  EXPECT_ERROR(Loader::Create(sampler, options).status(), ExitCode::kConfig, "sequence_length");
}

// Runs out of memory at sample `at`.
class ExhaustedSampler : public Sampler {
 public:
  ExhaustedSampler(std::shared_ptr<const Sampler> sampler, int64_t at) : sampler_(std::move(sampler)), at_(at) {}
  absl::StatusOr<Sample> Get(int64_t index) const override {
    if (index >= at_) throw std::bad_alloc();
    return sampler_->Get(index);
  }
  int64_t num_windows() const override { return sampler_->num_windows(); }
  int64_t sequence_length() const override { return sampler_->sequence_length(); }

 private:
  const std::shared_ptr<const Sampler> sampler_;
  const int64_t at_;
};

TEST(Loader, OutOfMemoryInItsThreadIsAnErrorOfTheStep) {
  const auto sampler = MakeSampler(std::make_shared<CountingStream>(1000, 10), 10, /*shuffle=*/false);
  const auto loader = Loader::Create(std::make_shared<ExhaustedSampler>(sampler, 9), MakeOptions(10, 4, 2)).value();
  EXPECT_TRUE(loader->Next().ok());
  EXPECT_TRUE(loader->Next().ok());
  for (int call = 0; call < 2; ++call)
    EXPECT_ERROR(loader->Next().status(), ExitCode::kOutOfMemory, "data: out of host memory");
  // One that nobody asks ends all the same.
  (void)Loader::Create(std::make_shared<ExhaustedSampler>(sampler, 0), MakeOptions(10, 4, 2)).value();
}

}  // namespace
}  // namespace trireme
