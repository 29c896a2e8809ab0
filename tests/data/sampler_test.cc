#include "data/sampling/sampler.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "tests/data/test_corpus.h"

namespace trireme {
namespace {

std::shared_ptr<const Sampler> MakeSampler(std::vector<std::shared_ptr<const TokenStream>> sources,
                                           std::vector<double> weights, int64_t sequence_length, uint64_t seed,
                                           bool shuffle) {
  auto sampler = Sampler::Create(std::move(sources), std::move(weights), sequence_length, seed, shuffle);
  EXPECT_TRUE(sampler.ok()) << sampler.status();
  return *sampler;
}

TEST(Sampler, WindowsCoverTheStreamAndOverlapByTheTarget) {
  const auto sampler = MakeSampler({std::make_shared<CountingStream>(41, 7)}, {}, 10, 1, /*shuffle=*/false);
  ASSERT_EQ(sampler->num_windows(), 4);
  for (int64_t i = 0; i < 4; ++i) {
    const Sample sample = sampler->Get(i).value();
    ASSERT_EQ(sample.tokens.size(), 11u);
    EXPECT_EQ(sample.tokens.front(), 10 * i);
    EXPECT_EQ(sample.tokens.back(), 10 * i + 10);
  }
  EXPECT_EQ(sampler->Get(0).value().document_starts, (std::vector<int32_t>{7}));
  EXPECT_EQ(sampler->Get(1).value().document_starts, (std::vector<int32_t>{4}));
  // Token 28 starts a document; so does 35.
  EXPECT_EQ(sampler->Get(2).value().document_starts, (std::vector<int32_t>{1, 8}));
}

TEST(Sampler, EveryEpochVisitsEveryWindowInAnotherOrder) {
  const auto sampler = MakeSampler({std::make_shared<CountingStream>(1001, 50)}, {}, 10, 1, /*shuffle=*/true);
  ASSERT_EQ(sampler->num_windows(), 100);
  std::vector<std::vector<int64_t>> orders;
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<int64_t>& order = orders.emplace_back();
    for (int64_t i = 0; i < 100; ++i) {
      const Sample sample = sampler->Get(epoch * 100 + i).value();
      EXPECT_EQ(sample.epoch, epoch);
      EXPECT_EQ(sample.tokens[0], 10 * sample.window);
      order.push_back(sample.window);
    }
    EXPECT_EQ(std::set<int64_t>(order.begin(), order.end()).size(), 100u);
  }
  EXPECT_NE(orders[0], orders[1]);
  EXPECT_NE(orders[1], orders[2]);
}

TEST(Sampler, SeedDecidesTheOrder) {
  const auto stream = std::make_shared<CountingStream>(1001, 50);
  const auto order = [&](uint64_t seed) {
    std::vector<int64_t> windows;
    const auto sampler = MakeSampler({stream}, {}, 10, seed, /*shuffle=*/true);
    for (int64_t i = 0; i < 100; ++i) windows.push_back(sampler->Get(i).value().window);
    return windows;
  };
  EXPECT_EQ(order(1), order(1));
  EXPECT_NE(order(1), order(2));
}

TEST(Sampler, SourcesAreDrawnByWeightAndCountEpochsOfTheirOwn) {
  // The small source is passed over many times while the large one is still in its first epoch.
  const auto sampler =
      MakeSampler({std::make_shared<CountingStream>(1001, 50), std::make_shared<CountingStream>(100001, 50)}, {1, 3},
                  10, 1, /*shuffle=*/true);
  std::map<int, int> drawn;
  std::map<std::pair<int, int64_t>, std::set<int64_t>> windows;
  for (int64_t i = 0; i < 4096; ++i) {
    const Sample sample = sampler->Get(i).value();
    ++drawn[sample.source];
    EXPECT_TRUE(windows[std::make_pair(sample.source, sample.epoch)].insert(sample.window).second);
  }
  EXPECT_EQ(drawn[0], 1024);
  EXPECT_EQ(drawn[1], 3072);
  EXPECT_EQ(windows.size(), 12u);  // Epochs 0 to 10 of the small source, 0 of the large one.
}

TEST(Sampler, RefusesWhatCannotBeSampled) {
  const auto stream = std::make_shared<CountingStream>(10, 5);
  EXPECT_ERROR(Sampler::Create({stream}, {}, 10, 1, true).status(), ExitCode::kData, "holds 10 tokens");
  EXPECT_TRUE(Sampler::Create({stream}, {}, 9, 1, true).ok());
  EXPECT_ERROR(Sampler::Create({}, {}, 9, 1, true).status(), ExitCode::kConfig, "no source");
  EXPECT_ERROR(Sampler::Create({stream}, {1, 2}, 9, 1, true).status(), ExitCode::kConfig, "2 weights for 1");
  EXPECT_ERROR(Sampler::Create({stream}, {}, 0, 1, true).status(), ExitCode::kConfig, "sequence_length");
}

}  // namespace
}  // namespace trireme
