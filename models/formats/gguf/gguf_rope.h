// models/formats/gguf/gguf_rope.h
// The vectors by which GGUF files rescale positions: what each frequency is divided by.
#ifndef TRIREME_MODELS_FORMATS_GGUF_GGUF_ROPE_H_
#define TRIREME_MODELS_FORMATS_GGUF_GGUF_ROPE_H_

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "configs/run_config.pb.h"

namespace trireme {

inline constexpr char kGgufRopeFactors[] = "rope_freqs.weight", kGgufShortFactors[] = "rope_factors_short.weight",
                      kGgufLongFactors[] = "rope_factors_long.weight";

using GgufFactors = std::vector<std::pair<std::string, std::vector<float>>>;  // tensors by name

// Those of a model with heads of this width: Llama 3's in one vector, LongRoPE's in two; others have none.
GgufFactors GgufPositionFactors(const ModelConfig& model, int64_t head_dim);

// Llama 3's scaling that gives these factors; none gives them: nullopt. known: must be it, since some scalings cannot
// be told from their factors.
std::optional<RopeScaling> InferLlama3Scaling(const std::vector<float>& factors, double theta,
                                              const RopeScaling* known = nullptr);

// What LongRoPE and YaRN multiply cosines and sines by.
double LongRopeAttention(const RopeScaling& scaling, int64_t max_positions);
double YarnAttention(const RopeScaling& scaling);
// What YaRN makes of its factor: 0.1 mscale ln(factor) + 1.
double YarnMagnitude(const RopeScaling& scaling, double mscale);

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_GGUF_GGUF_ROPE_H_
