// kernels/optimizer/random_bits.h
// The random bits of stochastic rounding on the CPU. Included by .cc files only.
#ifndef TRIREME_KERNELS_OPTIMIZER_RANDOM_BITS_H_
#define TRIREME_KERNELS_OPTIMIZER_RANDOM_BITS_H_

#include <cstdint>

#include "kernels/base/philox.h"
#include "kernels/base/update_decision.h"
#include "kernels/cpu/loops.h"

namespace trireme {

// bits [end - begin]: those of elements [begin, end) of a part, which belong to their places in the whole.
inline void RandomBits(const WholeIndex& index, RandomKey key, int64_t begin, int64_t end, uint16_t* bits) {
  for (int64_t i = begin; i < end;) {
    const int64_t run = index.RunFrom(i, end - i);
    Loops().philox_bits(index.Of(i), run, key.low, key.high, bits + (i - begin));
    i += run;
  }
}

}  // namespace trireme

#endif  // TRIREME_KERNELS_OPTIMIZER_RANDOM_BITS_H_
