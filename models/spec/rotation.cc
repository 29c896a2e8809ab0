#include "models/spec/rotation.h"

#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace trireme {
namespace {

// Transformers' rope type "llama3": long wavelengths are stretched by `factor`, short ones kept, a linear ramp between.
float Llama3(float frequency, const RotaryScaling& s) {
  const double wavelength = 2 * M_PI / frequency;
  const double low = s.original_max_position_embeddings / s.low_freq_factor;
  const double high = s.original_max_position_embeddings / s.high_freq_factor;
  if (wavelength > low) return static_cast<float>(frequency / s.factor);
  if (wavelength < high) return frequency;
  const double smooth =
      (s.original_max_position_embeddings / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
  return static_cast<float>((1 - smooth) * frequency / s.factor + smooth * frequency);
}

// YaRN, as Transformers computes it in float32: a linear ramp over the dimensions between two numbers of rotations.
void Yarn(double theta, const RotaryScaling& s, std::vector<float>* frequencies) {
  const auto half = static_cast<double>(frequencies->size()), dim = 2 * half;
  const auto dimension_of = [&](double rotations) {
    return dim * std::log(s.original_max_position_embeddings / (rotations * 2 * M_PI)) / (2 * std::log(theta));
  };
  const double low = std::max(std::floor(dimension_of(s.beta_fast)), 0.0);
  double high = std::min(std::ceil(dimension_of(s.beta_slow)), dim - 1);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < frequencies->size(); ++i) {
    const auto ramp = static_cast<float>((static_cast<double>(i) - low) / (high - low));
    const float kept = 1 - std::clamp(ramp, 0.0f, 1.0f), frequency = (*frequencies)[i];
    (*frequencies)[i] = frequency / static_cast<float>(s.factor) * (1 - kept) + frequency * kept;
  }
}

double RotationScale(const RotaryScaling& s) {
  if (s.kind != RotaryScaling::kYarn) return 1;
  if (s.attention_factor.has_value()) return *s.attention_factor;
  return s.factor <= 1 ? 1 : 0.1 * std::log(s.factor) + 1;
}

}  // namespace

RopeTable MakeRopeTable(const Rotation& rotation, at::ScalarType dtype, at::Device device) {
  const int64_t positions = rotation.max_positions, dims = rotation.dims;
  const int64_t half = std::max(dims, rotation.padded_to) / 2;
  const RotaryScaling* scaling = rotation.scaling.has_value() ? &*rotation.scaling : nullptr;
  std::vector<float> frequencies(static_cast<size_t>(dims / 2));
  for (int64_t i = 0; i < dims / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dims);
    float& frequency = frequencies[static_cast<size_t>(i)];
    frequency = 1.0f / std::pow(static_cast<float>(rotation.theta), exponent);
    if (scaling != nullptr && scaling->kind == RotaryScaling::kLlama3) frequency = Llama3(frequency, *scaling);
    if (scaling != nullptr && scaling->kind == RotaryScaling::kLinear) frequency /= static_cast<float>(scaling->factor);
  }
  if (scaling != nullptr && scaling->kind == RotaryScaling::kYarn) Yarn(rotation.theta, *scaling, &frequencies);
  const double scale = scaling != nullptr ? RotationScale(*scaling) : 1;

  // Pairs beyond `dims` stand still.
  const at::TensorOptions options = at::TensorOptions().dtype(at::kDouble);
  at::Tensor cosine = at::ones({positions, half}, options), sine = at::zeros({positions, half}, options);
  double* c = cosine.mutable_data_ptr<double>();
  double* s = sine.mutable_data_ptr<double>();
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t i = 0; i < dims / 2; ++i) {
      // Angles are rounded to float32, as the reference's are.
      const double angle = static_cast<float>(p) * frequencies[static_cast<size_t>(i)];
      c[p * half + i] = scale * std::cos(angle);
      s[p * half + i] = scale * std::sin(angle);
    }
  }
  return {cosine.to(device, dtype), sine.to(device, dtype), rotation.interleaved};
}

const RopeTable& RotationTables::Of(const Rotation& rotation) {
  for (const auto& [known, table] : tables_) {
    if (known == rotation) return *table;
  }
  tables_.emplace_back(rotation, std::make_unique<RopeTable>(MakeRopeTable(rotation, dtype_, device_)));
  return *tables_.back().second;
}

}  // namespace trireme
