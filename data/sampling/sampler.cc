#include "data/sampling/sampler.h"

#include <utility>

#include "data/sampling/mixture.h"
#include "data/sampling/permutation.h"

namespace trireme {
namespace {

class WindowSampler : public Sampler {
 public:
  WindowSampler(std::vector<std::shared_ptr<const TokenStream>> sources, std::vector<int64_t> windows, Mixture mixture,
                int64_t sequence_length, uint64_t seed, bool shuffle)
      : sources_(std::move(sources)),
        windows_(std::move(windows)),
        mixture_(std::move(mixture)),
        sequence_length_(sequence_length),
        seed_(seed),
        shuffle_(shuffle) {
    for (const int64_t windows_of_source : windows_) num_windows_ += windows_of_source;
  }

  absl::StatusOr<Sample> Get(int64_t index) const override {
    TRIREME_CHECK(index >= 0, "sample ", index);
    const Mixture::Draw draw = sources_.size() == 1 ? Mixture::Draw{0, index} : mixture_.At(index);
    const int64_t windows = windows_[draw.source];
    Sample sample;
    sample.source = draw.source;
    sample.epoch = draw.index / windows;
    sample.window = draw.index % windows;
    if (shuffle_) {
      const uint64_t key = MixKeys({seed_, static_cast<uint64_t>(draw.source), static_cast<uint64_t>(sample.epoch)});
      sample.window = Permutation(windows, key)(sample.window);
    }
    const TokenStream& source = *sources_[draw.source];
    const int64_t begin = sample.window * sequence_length_;
    sample.tokens.resize(sequence_length_ + 1);
    RETURN_IF_ERROR(source.ReadWithStarts(begin, sequence_length_ + 1, sample.tokens.data(), &sample.document_starts));
    return sample;
  }

  int64_t num_windows() const override { return num_windows_; }
  int64_t sequence_length() const override { return sequence_length_; }

 private:
  const std::vector<std::shared_ptr<const TokenStream>> sources_;
  const std::vector<int64_t> windows_;  // of each source, > 0
  const Mixture mixture_;
  const int64_t sequence_length_;
  const uint64_t seed_;
  const bool shuffle_;
  int64_t num_windows_ = 0;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const Sampler>> Sampler::Create(std::vector<std::shared_ptr<const TokenStream>> sources,
                                                               std::vector<double> weights, int64_t sequence_length,
                                                               uint64_t seed, bool shuffle) {
  if (sources.empty()) return Error(ExitCode::kConfig, "data: there is no source; give at least one data.source");
  if (sequence_length <= 0 || sequence_length >= INT32_MAX) {
    return Error(ExitCode::kConfig, "data: sequence_length is ", sequence_length, "; it must be positive");
  }
  if (weights.empty()) weights.assign(sources.size(), 1.0);
  if (weights.size() != sources.size()) {
    return Error(ExitCode::kConfig, "data: ", weights.size(), " weights for ", sources.size(), " sources");
  }
  std::vector<int64_t> windows;
  for (const auto& source : sources) {
    windows.push_back((source->num_tokens() - 1) / sequence_length);
    if (windows.back() > 0) continue;
    return Error(ExitCode::kData, "data: ", source->description(), " holds ", source->num_tokens(),
                 " tokens, fewer than one window of sequence_length + 1 = ", sequence_length + 1,
                 "; lower data.sequence_length or use more text");
  }
  constexpr uint64_t kMixtureStream = 0x6d6978;  // Keeps the order of sources apart from the order of windows.
  ASSIGN_OR_RETURN(Mixture mixture, Mixture::Create(weights, MixKeys({seed, kMixtureStream}), shuffle));
  return std::make_shared<const WindowSampler>(std::move(sources), std::move(windows), std::move(mixture),
                                               sequence_length, seed, shuffle);
}

}  // namespace trireme
