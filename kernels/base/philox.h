// kernels/base/philox.h
// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
// The random number of an element is a function of what it is for, never of how many were drawn before: layouts do not
// matter.
#ifndef TRIREME_KERNELS_BASE_PHILOX_H_
#define TRIREME_KERNELS_BASE_PHILOX_H_

#include <cstdint>

#include "kernels/base/host_device.h"

namespace trireme {

// What a random number is for; part of the key.
enum class RandomPurpose : uint32_t {
  kInitialization = 1,
  kStochasticRounding = 2,
  kDropout = 3,
  kSampling = 4,
  kSynthetic = 5
};

struct RandomKey {
  uint32_t low, high;
};

struct Random4 {
  uint32_t word[4];
};

TRIREME_HOST_DEVICE inline Random4 Philox(RandomKey key, uint64_t counter_low, uint64_t counter_high) {
  uint32_t c0 = static_cast<uint32_t>(counter_low), c1 = static_cast<uint32_t>(counter_low >> 32);
  uint32_t c2 = static_cast<uint32_t>(counter_high), c3 = static_cast<uint32_t>(counter_high >> 32);
  uint32_t k0 = key.low, k1 = key.high;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * c0;
    const uint64_t product1 = uint64_t{0xCD9E8D57} * c2;
    const uint32_t n0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(product1);
    c3 = static_cast<uint32_t>(product0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return {{c0, c1, c2, c3}};
}

// Element `column` of row `token` is dropped where word column % 4 of Philox(key, token, column / 4) is below this.
inline uint32_t DropThreshold(double rate) { return static_cast<uint32_t>(rate * 4294967296.0); }

// Mixes (seed, purpose, id, step) into a key; `id` is a stable hash of a parameter or operation name.
inline RandomKey MakeRandomKey(uint64_t seed, RandomPurpose purpose, uint64_t id, uint64_t step) {
  const Random4 a = Philox({static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}, id,
                           (static_cast<uint64_t>(purpose) << 56) ^ step);
  return {a.word[0], a.word[1]};
}

// FNV-1a of a name: a stable id on every platform.
inline uint64_t StableId(const char* name) {
  uint64_t hash = 0xcbf29ce484222325;
  for (; *name != '\0'; ++name) hash = (hash ^ static_cast<unsigned char>(*name)) * 0x100000001b3;
  return hash;
}

}  // namespace trireme

#endif  // TRIREME_KERNELS_BASE_PHILOX_H_
