#include "data/sampling/permutation.h"

#include "launch/base/status.h"

namespace trireme {
namespace {

// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): every input bit reaches every output bit.
uint64_t Mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebu;
  x ^= x >> 31;
  return x;
}

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;

}  // namespace

uint64_t MixKeys(std::initializer_list<uint64_t> numbers) {
  uint64_t key = kGolden;
  for (const uint64_t number : numbers) key = Mix(key + kGolden) ^ Mix(number * kGolden + key);
  return Mix(key);
}

Permutation::Permutation(int64_t size, uint64_t key) : size_(size), half_bits_(2) {
  TRIREME_CHECK(size > 0 && size <= int64_t{1} << 62, "size ", size);
  while (uint64_t{1} << (2 * half_bits_) < static_cast<uint64_t>(size)) ++half_bits_;
  for (int round = 0; round < kRounds; ++round) round_keys_[round] = Mix(key + kGolden * (round + 1));
}

int64_t Permutation::operator()(int64_t index) const {
  TRIREME_CHECK(index >= 0 && index < size_, index, " of ", size_);
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t value = static_cast<uint64_t>(index);
  do {
    uint64_t left = value >> half_bits_;
    uint64_t right = value & mask;
    for (const uint64_t round_key : round_keys_) {
      const uint64_t next = left ^ (Mix(right + round_key) & mask);
      left = right;
      right = next;
    }
    value = left << half_bits_ | right;
  } while (value >= static_cast<uint64_t>(size_));
  return static_cast<int64_t>(value);
}

}  // namespace trireme
