// trainer/requantized.h
// A base model as a run saw it that quantized its matrices while loading them.
#ifndef TRIREME_TRAINER_REQUANTIZED_H_
#define TRIREME_TRAINER_REQUANTIZED_H_

#include "models/decoder_spec.h"
#include "trainer/weight_source.h"

namespace trireme {

// `plain` with the matrices that `spec` quantizes replaced by what their quantized forms stand for, in float32. One
// matrix at a time is in memory.
WeightSource Requantized(const WeightSource& plain, const DecoderSpec& spec);

}  // namespace trireme

#endif  // TRIREME_TRAINER_REQUANTIZED_H_
