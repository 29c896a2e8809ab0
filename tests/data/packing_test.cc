#include "data/sampling/packing.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "data/sampling/loader.h"
#include "data/sampling/packed_sequences.h"
#include "launch/base/file.h"

namespace trireme {
namespace {

using Sequences = std::vector<std::vector<int32_t>>;

size_t FirstFit(const std::vector<int32_t>& lengths, int32_t capacity) {
  std::vector<int32_t> room;
  for (const int32_t length : lengths) {
    size_t i = 0;
    while (i < room.size() && room[i] < length) ++i;
    if (i == room.size()) room.push_back(capacity);
    room[i] -= length;
  }
  return room.size();
}

TEST(PackBestFit, EverySampleOnceWithinTheLimitAndNoWorseThanFirstFit) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    const auto capacity = static_cast<int32_t>(1 + random() % 200);
    std::vector<int32_t> lengths(random() % 300);
    for (int32_t& length : lengths) length = static_cast<int32_t>(1 + random() % capacity);
    if (round % 3 == 0) {
      for (int32_t& length : lengths) length = 1 + (length - 1) / 4;
    }
    const Sequences packed = PackBestFit(lengths, capacity);
    std::vector<int> seen(lengths.size());
    for (const auto& sequence : packed) {
      int64_t filled = 0;
      EXPECT_FALSE(sequence.empty());
      for (const int32_t i : sequence) {
        filled += lengths[i];
        ++seen[i];
      }
      EXPECT_LE(filled, capacity);
    }
    EXPECT_EQ(seen, std::vector<int>(lengths.size(), 1));
    EXPECT_LE(packed.size(), FirstFit(lengths, capacity)) << "round " << round;
    EXPECT_EQ(packed, PackBestFit(lengths, capacity));
  }
}

TEST(PackBestFit, FillsTheFullestSequenceThatStillTakesIt) {
  // 6 leaves 4, 7 leaves 3: 3 goes to the 7.
  EXPECT_EQ(PackBestFit({3, 6, 7, 4}, 10), (Sequences{{2, 0}, {1, 3}}));
  EXPECT_EQ(PackBestFit({}, 10), Sequences());
  EXPECT_EQ(PackBestFit({5, 5, 5}, 5), (Sequences{{0}, {1}, {2}}));
}

// Documents of 3, 4 and 2 tokens; the first token of each has a mask of 1 that must not count.
std::shared_ptr<PackedSequences> Three(ConversationData::Packing packing) {
  auto packed = std::make_shared<PackedSequences>(6, 99);
  const std::vector<int32_t> a = {10, 11, 12}, b = {20, 21, 22, 23}, c = {30, 31};
  const std::vector<uint8_t> learned_a = {1, 0, 1}, learned_b = {1, 1, 1, 1}, learned_c = {0, 1};
  packed->Add(a.data(), learned_a.data(), 3, 0);
  packed->Add(b.data(), learned_b.data(), 4, 1);
  packed->Add(c.data(), learned_c.data(), 2, 2);
  packed->Pack(packing);
  return packed;
}

TEST(PackedSequences, DocumentsStandApartAndPaddingCarriesNoLoss) {
  const auto packed = Three(ConversationData::BEST_FIT);
  ASSERT_EQ(packed->size(), 2);
  EXPECT_EQ(packed->num_targets(), 1 + 3 + 1);
  Microbatch microbatch;
  AppendSequence(packed->Get(0), /*document_mask=*/true, &microbatch);
  AppendSequence(packed->Get(1), /*document_mask=*/true, &microbatch);
  const int64_t x = kIgnoredTarget;
  EXPECT_EQ(microbatch.tokens, (std::vector<int64_t>{20, 21, 22, 23, 30, 31, 10, 11, 12, 99, 99, 99}));
  EXPECT_EQ(microbatch.targets, (std::vector<int64_t>{21, 22, 23, x, 31, x, x, 12, x, x, x, x}));
  EXPECT_EQ(microbatch.positions, (std::vector<int64_t>{0, 1, 2, 3, 0, 1, 0, 1, 2, 0, 1, 2}));
  EXPECT_EQ(microbatch.cu_seqlens, (std::vector<int32_t>{0, 4, 6, 9, 12}));
  EXPECT_EQ(microbatch.num_targets, 5);
}

TEST(PackedSequences, WithoutPackingEachHoldsOneDocument) {
  const auto packed = Three(ConversationData::NONE);
  ASSERT_EQ(packed->size(), 3);
  for (int64_t i = 0; i < 3; ++i) {
    ASSERT_EQ(packed->Documents(i).size(), 1u);
    EXPECT_EQ(packed->Documents(i)[0].sample, i);
  }
  EXPECT_NE(packed->Digest(), Three(ConversationData::BEST_FIT)->Digest());
  EXPECT_EQ(packed->Digest(), Three(ConversationData::NONE)->Digest());
}

std::shared_ptr<PackedSequences> Many(int count) {
  auto packed = std::make_shared<PackedSequences>(6, 0);
  for (int32_t i = 0; i < count; ++i) {
    const std::vector<int32_t> ids = {10 * i, 10 * i + 1, 10 * i + 2, 10 * i + 3};
    const std::vector<uint8_t> learned = {0, static_cast<uint8_t>(i % 2), 1, 1};
    packed->Add(ids.data(), learned.data(), 4, i);
  }
  packed->Pack(ConversationData::BEST_FIT);
  return packed;
}

// Tokens and targets of `steps` steps from `first_step`, ranks one after another within each step.
std::vector<int64_t> Stream(int64_t first_step, int steps, int ranks) {
  LoaderOptions options;
  options.sequence_length = 6;
  options.document_mask = true;
  options.global_batch_size = 12;
  options.micro_batch_size = 1;
  options.num_data_ranks = ranks;
  options.first_sample = first_step * options.global_batch_size;
  const auto sampler = MakePackedSampler(Many(31), 5, /*shuffle=*/true);
  std::vector<std::unique_ptr<Loader>> loaders;
  for (options.data_rank = 0; options.data_rank < ranks; ++options.data_rank)
    loaders.push_back(Loader::Create(sampler, options).value());
  std::vector<int64_t> stream;
  for (int step = 0; step < steps; ++step) {
    for (const auto& loader : loaders) {
      const StepBatch batch = loader->Next().value();
      for (const Microbatch& microbatch : batch.microbatches) {
        stream.insert(stream.end(), microbatch.tokens.begin(), microbatch.tokens.end());
        stream.insert(stream.end(), microbatch.targets.begin(), microbatch.targets.end());
      }
    }
  }
  return stream;
}

TEST(PackedSampler, SameOrderOnAnyNumberOfRanksAndFromAnyCursor) {
  const std::vector<int64_t> whole = Stream(0, 9, 1);
  for (const int ranks : {2, 3, 4}) EXPECT_EQ(Stream(0, 9, ranks), whole) << ranks;
  const std::vector<int64_t> rest = Stream(4, 5, 6);
  EXPECT_EQ(rest, std::vector<int64_t>(whole.begin() + 4 * 12 * 12, whole.end()));
}

TEST(PackedSampler, EveryEpochHoldsEverySequenceOnceInAnotherOrder) {
  const auto sampler = MakePackedSampler(Many(31), 5, /*shuffle=*/true);
  std::vector<std::vector<int64_t>> epochs(3);
  for (int64_t i = 0; i < 3 * 31; ++i) {
    const Sample sample = sampler->Get(i).value();
    EXPECT_EQ(sample.epoch, i / 31);
    epochs[sample.epoch].push_back(sample.window);
  }
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_NE(epochs[1], epochs[2]);
  for (std::vector<int64_t>& epoch : epochs) {
    std::sort(epoch.begin(), epoch.end());
    std::vector<int64_t> all(31);
    std::iota(all.begin(), all.end(), 0);
    EXPECT_EQ(epoch, all);
  }
}

}  // namespace
}  // namespace trireme
