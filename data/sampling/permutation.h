// data/sampling/permutation.h
// A pseudo-random order of [0, n) that is computed, not stored.
#ifndef TRIREME_DATA_SAMPLING_PERMUTATION_H_
#define TRIREME_DATA_SAMPLING_PERMUTATION_H_

#include <array>
#include <cstdint>
#include <initializer_list>

namespace trireme {

// One 64-bit key from several numbers; every number, and their order, matters.
uint64_t MixKeys(std::initializer_list<uint64_t> numbers);

// A bijection of [0, size): a balanced Feistel network over the smallest even number of bits that holds size - 1,
// walked along its cycle until it lands in range (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002):
// fewer than 4 steps on average once size > 16. The order is part of what a resumed run relies on: it never changes.
class Permutation {
 public:
  Permutation(int64_t size, uint64_t key);  // 0 < size <= 2^62
  int64_t operator()(int64_t index) const;  // 0 <= index < size
  int64_t size() const { return size_; }

 private:
  static constexpr int kRounds = 8;

  int64_t size_;
  int half_bits_;
  std::array<uint64_t, kRounds> round_keys_;
};

}  // namespace trireme

#endif  // TRIREME_DATA_SAMPLING_PERMUTATION_H_
