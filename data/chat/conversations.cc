#include "data/chat/conversations.h"

#include <absl/strings/numbers.h>
#include <absl/strings/str_format.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "data/chat/conversation.h"
#include "data/text/start_threads.h"
#include "launch/base/exception.h"
#include "launch/base/log.h"

namespace trireme {
namespace {

constexpr size_t kBlockSamples = 1024;  // Parsed samples in memory at a time.
constexpr unsigned kMaxThreads = 8;

// A number in [0, 1) that depends on the sample alone.
double Fraction(const ConversationSample& sample, SplitBy split_by) {
  const std::string& hash = split_by == SplitBy::kLine ? sample.line_hash : sample.content_hash;
  uint64_t number = 0;
  TRIREME_CHECK(absl::SimpleHexAtoi(hash.substr(0, 13), &number));  // 52 bits: exact in a double.
  return static_cast<double>(number) / static_cast<double>(uint64_t{1} << 52);
}

// Whether a token that something precedes carries loss.
bool HasTarget(const uint8_t* learned, int64_t count) {
  return std::any_of(learned + std::min<int64_t>(1, count), learned + count, [](uint8_t one) { return one != 0; });
}

class SplitBuilder {
 public:
  SplitBuilder(const ConversationData& config, int64_t sequence_length, const SampleTokenizer& tokenizer)
      : config_(config),
        tokenizer_(tokenizer),
        length_(sequence_length),
        sequences_(std::make_shared<PackedSequences>(sequence_length, std::max(0, tokenizer.end_id()))) {}

  void AddEmpty() {
    ++counts_.read;
    ++counts_.empty;
  }

  void Add(const MaskedTokens& tokens, int64_t sample) {
    ++counts_.read;
    const auto count = static_cast<int64_t>(tokens.ids.size());
    if (!HasTarget(tokens.learned.data(), count)) {
      ++counts_.unlearned;
      counts_.dropped_tokens += count;
      return;
    }
    const bool over_long = count > length_;
    counts_.over_long += over_long;
    bool kept = false;
    if (!over_long) {
      kept = AddPart(tokens, 0, count, sample);
    } else if (config_.over_long() == ConversationData::TRUNCATE) {
      kept = AddPart(tokens, 0, length_, sample);
      counts_.dropped_tokens += count - length_;
    } else if (config_.over_long() == ConversationData::SPLIT) {
      // A piece begins with the last token of the one before, so that no target is lost.
      for (int64_t begin = 0; begin + 1 < count; begin += length_ - 1)
        kept = AddPart(tokens, begin, std::min(begin + length_, count), sample) || kept;
    } else {
      counts_.dropped_tokens += count;
    }
    counts_.dropped_over_long += !kept;
    counts_.kept += kept;
    if (!kept) return;
    const bool cut = over_long && config_.over_long() == ConversationData::TRUNCATE;
    if (!AddEnds(tokens, cut ? length_ : count)) ++counts_.without_end;
  }

  ConversationSplit Finish() {
    sequences_->Pack(config_.packing());
    ConversationSplit split;
    split.counts = counts_;
    split.ends = std::move(ends_);
    if (sequences_->size() > 0) split.sequences = std::move(sequences_);
    return split;
  }

 private:
  // Looks at the first `count` tokens. False when the last that is learned is no end, so that nothing teaches to stop
  // there.
  bool AddEnds(const MaskedTokens& tokens, int64_t count) {
    int32_t last = -1;
    for (int64_t i = 0; i < count; ++i) {
      if (tokens.learned[i] == 0 || (i + 1 < count && tokens.learned[i + 1] != 0)) continue;
      last = LearnedEnd(tokenizer_.tokenizer(), tokens, i + 1, tokenizer_.end_id());
      // Where a sample was cut off, what comes last ends nothing.
      const bool is_whole = i + 1 < static_cast<int64_t>(tokens.ids.size()) ? tokens.learned[i + 1] == 0 : true;
      if (last >= 0 && is_whole) ends_.insert(last);
    }
    return last >= 0;
  }

  bool AddPart(const MaskedTokens& tokens, int64_t begin, int64_t end, int64_t sample) {
    if (!HasTarget(tokens.learned.data() + begin, end - begin)) {
      counts_.dropped_tokens += end - begin - (begin > 0 ? 1 : 0);
      return false;
    }
    sequences_->Add(tokens.ids.data() + begin, tokens.learned.data() + begin, end - begin, sample);
    return true;
  }

  const ConversationData& config_;
  const SampleTokenizer& tokenizer_;
  const int64_t length_;
  std::shared_ptr<PackedSequences> sequences_;
  SampleCounts counts_;
  std::set<int32_t> ends_;
};

// The tokens of each sample, empty for empty samples. The error of the first sample that has one.
absl::StatusOr<std::vector<MaskedTokens>> Tokenize(const std::vector<ConversationSample>& samples,
                                                   const SampleTokenizer& tokenizer) {
  std::vector<MaskedTokens> tokens(samples.size());
  std::vector<absl::Status> errors(samples.size());
  std::atomic<size_t> next = 0;
  FirstException exception;
  const auto encode = [&] {
    for (size_t i = next++; i < samples.size(); i = next++) {
      if (samples[i].empty()) continue;
      absl::StatusOr<MaskedTokens> result = tokenizer.Encode(samples[i]);
      if (result.ok()) {
        tokens[i] = *std::move(result);
      } else {
        errors[i] = result.status();
      }
    }
  };
  const auto work = [&](int) {
    try {
      encode();
    } catch (...) {
      exception.Keep();
    }
  };
  const size_t wanted =
      std::min<size_t>(std::clamp(std::thread::hardware_concurrency(), 1u, kMaxThreads), samples.size() / 16 + 1);
  if (wanted > 1) {
    std::vector<std::thread> threads = StartThreads(static_cast<int>(wanted), work);
    for (std::thread& thread : threads) thread.join();
  } else {
    work(0);
  }
  RETURN_IF_ERROR(exception.status("give the conversations fewer or shorter lines"));
  for (const absl::Status& error : errors) RETURN_IF_ERROR(error);
  return tokens;
}

// Passes every sample of the files, in order, to the split that `split_of` names.
template <typename SplitOf>
absl::Status ReadAll(std::vector<std::string> paths, const SampleTokenizer& tokenizer, const SplitOf& split_of) {
  ASSIGN_OR_RETURN(ConversationReader reader, ConversationReader::Open(std::move(paths)));
  Progress progress("tokenize samples", reader.bytes_total(), "B");
  std::vector<ConversationSample> block;
  for (int64_t number = 0;;) {
    block.clear();
    bool more = true;
    while (more && block.size() < kBlockSamples) {
      ConversationSample sample;
      ASSIGN_OR_RETURN(more, reader.Next(&sample));
      if (more) block.push_back(std::move(sample));
    }
    ASSIGN_OR_RETURN(const std::vector<MaskedTokens> tokens, Tokenize(block, tokenizer));
    for (size_t i = 0; i < block.size(); ++i, ++number) {
      SplitBuilder& split = split_of(block[i]);
      block[i].empty() ? split.AddEmpty() : split.Add(tokens[i], number);
    }
    progress.Update(reader.bytes_done());
    if (!more) return absl::OkStatus();
  }
}

absl::Status CheckSettings(const ConversationData& config, int64_t sequence_length) {
  if (config.path_size() == 0)
    return Error(ExitCode::kConfig, "data.conversations.path: none given; name at least one JSONL file");
  if (sequence_length < 2 || sequence_length >= INT32_MAX)
    return Error(ExitCode::kConfig, "data.sequence_length: is ", sequence_length, "; give 2 or more tokens");
  const double fraction = config.validation_fraction();
  if (!(fraction >= 0 && fraction < 1))
    return Error(ExitCode::kConfig, "data.conversations.validation_fraction: is ", fraction, "; must be in [0, 1)");
  if (config.validation_path_size() > 0 && fraction > 0) {
    return Error(ExitCode::kConfig,
                 "data.conversations: validation_path and validation_fraction are both set; give "
                 "one of them");
  }
  return absl::OkStatus();
}

std::string Dropped(const SampleCounts& counts) {
  std::vector<std::string> parts;
  const auto add = [&parts](int64_t count, const char* what) {
    if (count > 0) parts.push_back(absl::StrCat(count, " ", what));
  };
  add(counts.dropped_over_long, "too long");
  add(counts.empty, "empty");
  add(counts.unlearned, "without a trained token");
  return absl::StrJoin(parts, ", ");
}

}  // namespace

absl::StatusOr<ConversationSet> OpenConversations(const ConversationData& config, int64_t sequence_length,
                                                  const SampleTokenizer& tokenizer, SplitBy split_by) {
  RETURN_IF_ERROR(CheckSettings(config, sequence_length));
  SplitBuilder train(config, sequence_length, tokenizer), validation(config, sequence_length, tokenizer);
  RETURN_IF_ERROR(ReadAll({config.path().begin(), config.path().end()}, tokenizer,
                          [&](const ConversationSample& sample) -> SplitBuilder& {
                            return Fraction(sample, split_by) < config.validation_fraction() ? validation : train;
                          }));
  if (config.validation_path_size() > 0) {
    RETURN_IF_ERROR(ReadAll({config.validation_path().begin(), config.validation_path().end()}, tokenizer,
                            [&](const ConversationSample&) -> SplitBuilder& { return validation; }));
  }
  ConversationSet set{train.Finish(), validation.Finish()};
  if (set.train.sequences == nullptr) {
    return Error(ExitCode::kData, "data.conversations: no token of ", absl::StrJoin(config.path(), ", "),
                 " carries loss: of ", set.train.counts.read, " samples there is nothing left; dropped: ",
                 set.train.counts.read > 0 ? Dropped(set.train.counts) : "none");
  }
  return set;
}

std::string Describe(const ConversationSplit& split) {
  const SampleCounts& counts = split.counts;
  if (split.sequences == nullptr) return absl::StrCat("nothing kept of ", counts.read, " samples");
  const PackedSequences& packed = *split.sequences;
  const int64_t room = packed.size() * packed.sequence_length();
  std::string text = absl::StrFormat("%d samples in %d sequences of %d tokens (%.1f %% full), %d of %d tokens trained",
                                     counts.kept, packed.size(), packed.sequence_length(),
                                     100.0 * static_cast<double>(packed.num_tokens()) / static_cast<double>(room),
                                     packed.num_targets(), packed.num_tokens());
  if (const int64_t cut = counts.over_long - counts.dropped_over_long; cut > 0)
    absl::StrAppend(&text, ", ", cut, " samples were too long and cut");
  if (const std::string dropped = Dropped(counts); !dropped.empty())
    absl::StrAppend(&text, "; dropped: ", dropped, " (", counts.dropped_tokens, " tokens)");
  return text;
}

}  // namespace trireme
