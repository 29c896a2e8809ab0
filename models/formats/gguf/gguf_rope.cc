#include "models/formats/gguf/gguf_rope.h"

#include <algorithm>
#include <cmath>

namespace trireme {
namespace {

std::vector<float> Frequencies(size_t pairs, double theta) {
  std::vector<float> frequencies(pairs);
  for (size_t i = 0; i < pairs; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(2 * pairs);
    frequencies[i] = 1.0f / std::pow(static_cast<float>(theta), exponent);
  }
  return frequencies;
}

std::vector<float> Llama3Factors(size_t pairs, double theta, const RopeScaling& s) {
  std::vector<float> factors;
  const double original = s.original_max_position_embeddings();
  for (const float frequency : Frequencies(pairs, theta)) {
    const double wavelength = 2 * M_PI / frequency;
    double factor = 1;
    if (wavelength > original / s.low_freq_factor()) {
      factor = s.factor();
    } else if (wavelength >= original / s.high_freq_factor()) {
      const double smooth =
          (original / wavelength - s.low_freq_factor()) / (s.high_freq_factor() - s.low_freq_factor());
      factor = 1 / ((1 - smooth) / s.factor() + smooth);
    }
    factors.push_back(static_cast<float>(factor));
  }
  return factors;
}

}  // namespace

GgufFactors GgufPositionFactors(const ModelConfig& model, int64_t head_dim) {
  if (!model.has_rope_scaling()) return {};
  const RopeScaling& s = model.rope_scaling();
  if (s.rope_type() == RopeScaling::LLAMA3)
    return {{kGgufRopeFactors, Llama3Factors(static_cast<size_t>(head_dim / 2), model.rope_theta(), s)}};
  if (s.rope_type() == RopeScaling::LONGROPE)
    return {{kGgufLongFactors, {s.long_factor().begin(), s.long_factor().end()}},
            {kGgufShortFactors, {s.short_factor().begin(), s.short_factor().end()}}};
  return {};
}

// The largest factor is the scale; between it and 1 the inverse factors are linear in the frequency, which gives two
// more numbers; low_freq_factor is 1, as it is in every published model, because multiplying it, high_freq_factor and
// the original length by the same number changes nothing.
std::optional<RopeScaling> InferLlama3Scaling(const std::vector<float>& factors, double theta,
                                              const RopeScaling* known) {
  const auto if_it_fits = [&](const RopeScaling& scaling) -> std::optional<RopeScaling> {
    const std::vector<float> again = Llama3Factors(factors.size(), theta, scaling);
    // Factors are written in 32 bits after a few roundings; a wrong guess is off by far more.
    const bool fits = std::equal(again.begin(), again.end(), factors.begin(),
                                 [](float a, float b) { return std::fabs(a - b) <= 1e-5f * b; });
    return fits ? std::optional<RopeScaling>(scaling) : std::nullopt;
  };
  if (factors.empty()) return std::nullopt;
  if (known != nullptr) return if_it_fits(*known);
  const std::vector<float> frequencies = Frequencies(factors.size(), theta);
  const double scale = *std::max_element(factors.begin(), factors.end());
  std::vector<std::pair<double, double>> ramp;  // turns per position, weight of the unscaled frequency
  for (size_t i = 0; i < factors.size(); ++i) {
    if (!(factors[i] >= 1)) return std::nullopt;
    if (factors[i] > 1 && factors[i] < scale)
      ramp.emplace_back(frequencies[i] / (2 * M_PI), (1 / factors[i] - 1 / scale) / (1 - 1 / scale));
  }
  if (ramp.size() < 2) return std::nullopt;
  const double slope = (ramp.front().second - ramp.back().second) / (ramp.front().first - ramp.back().first);
  const double intercept = ramp.back().second - slope * ramp.back().first;
  const double original = std::round(-slope / intercept);
  double high = 1 - 1 / intercept;
  // Undo the noise of 32-bit factors where a round number was meant.
  const double round_number = std::round(high * 100) / 100;
  if (std::fabs(high - round_number) < 1e-3) high = round_number;
  if (!(original >= 1) || !(original < 1 << 30) || !(high > 1)) return std::nullopt;
  RopeScaling scaling;
  scaling.set_rope_type(RopeScaling::LLAMA3);
  scaling.set_factor(scale);
  scaling.set_low_freq_factor(1);
  scaling.set_high_freq_factor(high);
  scaling.set_original_max_position_embeddings(static_cast<int32_t>(original));
  return if_it_fits(scaling);
}

double LongRopeAttention(const RopeScaling& scaling, int64_t max_positions) {
  if (scaling.has_attention_factor()) return scaling.attention_factor();
  const double original = scaling.original_max_position_embeddings();
  const double factor = scaling.has_factor() ? scaling.factor() : static_cast<double>(max_positions) / original;
  return factor <= 1 ? 1 : std::sqrt(1 + std::log(factor) / std::log(original));
}

double YarnMagnitude(const RopeScaling& scaling, double mscale) {
  return scaling.factor() <= 1 ? 1 : 0.1 * mscale * std::log(scaling.factor()) + 1;
}

double YarnAttention(const RopeScaling& scaling) {
  if (scaling.has_attention_factor()) return scaling.attention_factor();
  if (scaling.mscale() == 0 || scaling.mscale_all_dim() == 0) return YarnMagnitude(scaling, 1);
  return YarnMagnitude(scaling, scaling.mscale()) / YarnMagnitude(scaling, scaling.mscale_all_dim());
}

}  // namespace trireme
