// models/weights/requantized.h
// A base model as a run saw it that quantized its matrices while loading them.
#ifndef TRIREME_MODELS_WEIGHTS_REQUANTIZED_H_
#define TRIREME_MODELS_WEIGHTS_REQUANTIZED_H_

#include "models/spec/decoder_spec.h"
#include "models/weights/weight_source.h"

namespace trireme {

// `plain` with the matrices that `spec` quantizes replaced by what their quantized forms stand for, in float32. One
// matrix at a time is in memory.
WeightSource Requantized(const WeightSource& plain, const DecoderSpec& spec);

}  // namespace trireme

#endif  // TRIREME_MODELS_WEIGHTS_REQUANTIZED_H_
