#include "data/tokenizer/bpe_trainer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "data/tokenizer/bpe_word_counter.h"
#include "data/unicode/bpe_bytes.h"

namespace trireme {
namespace {

DocumentSource FromList(std::vector<std::string> documents) {
  return [documents = std::move(documents), next = size_t{0}](std::string* document) mutable -> absl::StatusOr<bool> {
    if (next == documents.size()) return false;
    *document = documents[next++];
    return true;
  };
}

nlohmann::json Train(const std::vector<std::string>& documents, int64_t vocab_size, int64_t min_frequency = 2,
                     int num_threads = 2) {
  auto contents = TrainBpe(FromList(documents),
                           {.vocab_size = vocab_size, .min_frequency = min_frequency, .num_threads = num_threads});
  EXPECT_TRUE(contents.ok()) << contents.status();
  return nlohmann::json::parse(*contents);
}

using Merges = std::vector<std::vector<std::string>>;

// The definition, without any bookkeeping: count all pairs, merge the best everywhere, again.
Merges PlainMerges(const std::vector<std::string>& documents, int64_t vocab_size, int64_t min_frequency) {
  auto words = CountWords(FromList(documents), 1);
  std::map<std::string, int> ids;
  std::vector<std::string> characters;
  for (int byte = 0; byte < 256; ++byte) characters.push_back(SpellBytes(std::string(1, static_cast<char>(byte))));
  std::sort(characters.begin(), characters.end());  // UTF-8 sorts by code point
  for (const std::string& c : characters) ids.emplace(c, 1 + ids.size());
  std::vector<std::vector<std::string>> split;
  for (const auto& [word, count] : *words) {
    split.emplace_back();
    for (const char byte : word) split.back().push_back(SpellBytes(std::string(1, byte)));
  }
  Merges merges;
  while (static_cast<int64_t>(ids.size()) + 1 < vocab_size) {
    std::map<std::pair<int, int>, std::pair<int64_t, std::vector<std::string>>> counts;
    for (size_t w = 0; w < split.size(); ++w) {
      for (size_t i = 0; i + 1 < split[w].size(); ++i) {
        auto& entry = counts[{ids[split[w][i]], ids[split[w][i + 1]]}];
        entry.first += (*words)[w].second;
        entry.second = {split[w][i], split[w][i + 1]};
      }
    }
    auto best = counts.end();
    for (auto it = counts.begin(); it != counts.end(); ++it) {
      if (best == counts.end() || it->second.first > best->second.first) best = it;
    }
    if (best == counts.end() || best->second.first < min_frequency) break;
    const std::vector<std::string> pair = best->second.second;
    merges.push_back(pair);
    ids.emplace(pair[0] + pair[1], 1 + ids.size());
    for (std::vector<std::string>& word : split) {
      for (size_t i = 0; i + 1 < word.size(); ++i) {
        if (word[i] != pair[0] || word[i + 1] != pair[1]) continue;
        word[i] += pair[1];
        word.erase(word.begin() + i + 1);
      }
    }
  }
  return merges;
}

std::vector<std::string> RandomDocuments(uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::string> syllables;
  for (int i = 0; i < 40; ++i) {
    std::string syllable;
    for (uint32_t n = 1 + random() % 3; n > 0; --n) syllable.push_back(static_cast<char>('a' + random() % 12));
    syllables.push_back(syllable);
  }
  std::vector<std::string> documents;
  for (int d = 0; d < 20; ++d) {
    std::string document;
    for (int w = 0; w < 60; ++w) {
      for (uint32_t n = 1 + random() % 3; n > 0; --n) document += syllables[random() % 40];
      document += ' ';
    }
    documents.push_back(document);
  }
  return documents;
}

TEST(BpeTrainer, FindsTheMergesOfThePlainDefinition) {
  for (uint32_t seed = 0; seed < 4; ++seed) {
    const std::vector<std::string> documents = RandomDocuments(seed);
    const Merges merges = Train(documents, 400)["model"]["merges"].get<Merges>();
    EXPECT_EQ(merges.size(), 143);
    EXPECT_EQ(merges, PlainMerges(documents, 400, 2)) << "seed " << seed;
  }
}

TEST(BpeTrainer, BreaksTiesBySmallerIds) {
  // "lo", "ol", "ld" ... : l=76, o=79 in the alphabet's order; ("e","l") is the smallest among the pairs seen three
  // times.
  const Merges merges = Train({"hello hello hello world world"}, 262)["model"]["merges"].get<Merges>();
  EXPECT_EQ(merges, (Merges{{"e", "l"}, {"h", "el"}, {"l", "o"}, {"hel", "lo"}, {"l", "d"}}));
}

TEST(BpeTrainer, OrdersTheVocabularySpecialThenBytesThenMerges) {
  const nlohmann::json vocab = Train({"aaab aaab"}, 258)["model"]["vocab"];
  EXPECT_EQ(vocab["<|endoftext|>"], 0);
  EXPECT_EQ(vocab["!"], 1);
  EXPECT_EQ(vocab["~"], 94);
  EXPECT_EQ(vocab["\u0143"], 256);
  EXPECT_EQ(vocab["aa"], 257);
  EXPECT_EQ(vocab.size(), 258);
}

TEST(BpeTrainer, DoesNotDependOnThreadsOrDocumentOrder) {
  std::vector<std::string> documents = RandomDocuments(7);
  const nlohmann::json expected = Train(documents, 500, 2, 1);
  std::reverse(documents.begin(), documents.end());
  EXPECT_EQ(Train(documents, 500, 2, 4), expected);
}

TEST(BpeTrainer, StopsAtMinFrequency) {
  EXPECT_EQ(Train({"ab ab cd"}, 300, 2)["model"]["merges"].size(), 1);  // "ab"; " ab" is seen once
  EXPECT_EQ(Train({"ab ab cd"}, 300, 3)["model"]["merges"].size(), 0);
}

TEST(BpeTrainer, RefusesImpossibleRequests) {
  EXPECT_EQ(ExitCodeOf(TrainBpe(FromList({"a"}), {.vocab_size = 256}).status()), ExitCode::kConfig);
  EXPECT_EQ(ExitCodeOf(TrainBpe(FromList({"a"}), {.vocab_size = 300, .special_token = "a"}).status()),
            ExitCode::kConfig);
  EXPECT_EQ(ExitCodeOf(TrainBpe(FromList({}), {.vocab_size = 300}).status()), ExitCode::kData);
  const auto failing = [](std::string*) -> absl::StatusOr<bool> { return Error(ExitCode::kData, "no such file"); };
  EXPECT_EQ(ExitCodeOf(TrainBpe(failing, {.vocab_size = 300}).status()), ExitCode::kData);
}

}  // namespace
}  // namespace trireme
