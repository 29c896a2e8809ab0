#include <ATen/ops/empty.h>

#include <cmath>
#include <vector>

#include "models/decoder.h"

namespace trireme {
namespace {

// Transformers' rope type "llama3": long wavelengths are stretched by `factor`, short ones kept, a linear ramp between.
float Llama3(float frequency, const RopeScaling& s) {
  const double wavelength = 2 * M_PI / frequency;
  const double low = s.original_max_position_embeddings() / s.low_freq_factor();
  const double high = s.original_max_position_embeddings() / s.high_freq_factor();
  if (wavelength > low) return static_cast<float>(frequency / s.factor());
  if (wavelength < high) return frequency;
  const double smooth = (s.original_max_position_embeddings() / wavelength - s.low_freq_factor()) /
                        (s.high_freq_factor() - s.low_freq_factor());
  return static_cast<float>((1 - smooth) * frequency / s.factor() + smooth * frequency);
}

}  // namespace

RopeTable MakeRopeTable(const DecoderSpec& spec, int64_t positions, at::ScalarType dtype, at::Device device) {
  const int64_t half = spec.head_dim / 2;
  std::vector<float> frequencies(half);
  for (int64_t i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(spec.head_dim);
    frequencies[i] = 1.0f / std::pow(static_cast<float>(spec.rope_theta), exponent);
    if (spec.rope_scaling.has_value()) frequencies[i] = Llama3(frequencies[i], *spec.rope_scaling);
  }
  const at::TensorOptions options = at::TensorOptions().dtype(at::kDouble);
  at::Tensor cosine = at::empty({positions, half}, options), sine = at::empty({positions, half}, options);
  double* c = cosine.mutable_data_ptr<double>();
  double* s = sine.mutable_data_ptr<double>();
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t i = 0; i < half; ++i) {
      // Angles are rounded to float32, as the reference's are.
      const double angle = static_cast<float>(p) * frequencies[i];
      c[p * half + i] = std::cos(angle);
      s[p * half + i] = std::sin(angle);
    }
  }
  return {cosine.to(device, dtype), sine.to(device, dtype)};
}

}  // namespace trireme
