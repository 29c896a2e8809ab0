#include "data/sampling/mixture.h"

#include <algorithm>
#include <cmath>

#include "data/sampling/permutation.h"

namespace trireme {
namespace {

constexpr int64_t kBlockSamples = 1024;
constexpr double kResolution = 1ull << 40;

}  // namespace

absl::StatusOr<Mixture> Mixture::Create(const std::vector<double>& weights, uint64_t seed, bool shuffle) {
  double sum = 0;
  for (const double weight : weights) {
    if (!(weight > 0) || !std::isfinite(weight)) {
      return Error(ExitCode::kConfig, "data: the weight of a source is ", weight,
                   "; it must be positive (remove a source to leave it out)");
    }
    sum += weight;
  }
  if (!std::isfinite(sum) || weights.empty())
    return Error(ExitCode::kConfig, "data: the weights of ", weights.size(), " sources add up to ", sum);
  std::vector<int64_t> parts;
  int64_t total = 0;
  for (const double weight : weights) {
    parts.push_back(std::max<int64_t>(1, std::llround(weight / sum * kResolution)));
    total += parts.back();
  }
  return Mixture(std::move(parts), total, seed, shuffle);
}

int64_t Mixture::DrawnBefore(int source, int64_t block) const {
  return static_cast<int64_t>(static_cast<__int128>(block) * kBlockSamples * parts_[source] / total_);
}

int64_t Mixture::BlockBegin(int64_t block) const {
  int64_t begin = 0;
  for (size_t source = 0; source < parts_.size(); ++source) begin += DrawnBefore(source, block);
  return begin;
}

Mixture::Draw Mixture::At(int64_t sample) const {
  TRIREME_CHECK(sample >= 0);
  // Rounding down moves block starts forward by less than one sample per source, never back.
  int64_t block = sample / kBlockSamples;
  while (BlockBegin(block + 1) <= sample) ++block;
  const int64_t begin = BlockBegin(block);
  int64_t slot = sample - begin;
  if (shuffle_) slot = Permutation(BlockBegin(block + 1) - begin, MixKeys({seed_, static_cast<uint64_t>(block)}))(slot);
  for (size_t source = 0;; ++source) {
    const int64_t before = DrawnBefore(source, block);
    const int64_t quota = DrawnBefore(source, block + 1) - before;
    if (slot < quota) return {static_cast<int>(source), before + slot};
    slot -= quota;
  }
}

}  // namespace trireme
