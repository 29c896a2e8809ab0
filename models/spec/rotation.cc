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
  double low = dimension_of(s.beta_fast), high = dimension_of(s.beta_slow);
  if (s.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < frequencies->size(); ++i) {
    const auto ramp = static_cast<float>((static_cast<double>(i) - low) / (high - low));
    const float kept = 1 - std::clamp(ramp, 0.0f, 1.0f), frequency = (*frequencies)[i];
    (*frequencies)[i] = frequency / static_cast<float>(s.factor) * (1 - kept) + frequency * kept;
  }
}

double RotationScale(const RotaryScaling& s) {
  if (s.kind != RotaryScaling::kYarn && s.kind != RotaryScaling::kLongRope) return 1;
  if (s.attention_factor.has_value()) return *s.attention_factor;
  if (s.kind == RotaryScaling::kYarn) {
    const bool both = s.mscale != 0 && s.mscale_all_dim != 0;
    return both ? s.MagnitudeOf(s.mscale) / s.MagnitudeOf(s.mscale_all_dim) : s.MagnitudeOf(1);
  }
  if (s.factor <= 1) return 1;
  return std::sqrt(1 + std::log(s.factor) / std::log(static_cast<double>(s.original_max_position_embeddings)));
}

// `divisors`: of the frequencies, for kLongRope.
std::vector<float> Frequencies(const Rotation& rotation, const std::vector<double>* divisors) {
  const int64_t dims = rotation.dims;
  const RotaryScaling* scaling = rotation.scaling.has_value() ? &*rotation.scaling : nullptr;
  double theta = rotation.theta;
  if (scaling != nullptr && scaling->alpha.has_value())
    theta *= std::pow(*scaling->alpha, static_cast<double>(dims) / static_cast<double>(dims - 2));
  std::vector<float> frequencies(static_cast<size_t>(dims / 2));
  for (int64_t i = 0; i < dims / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dims);
    float& frequency = frequencies[static_cast<size_t>(i)];
    const float power = std::pow(static_cast<float>(theta), exponent);
    frequency =
        divisors != nullptr ? 1.0f / (static_cast<float>((*divisors)[static_cast<size_t>(i)]) * power) : 1.0f / power;
    if (scaling != nullptr && scaling->kind == RotaryScaling::kLlama3) frequency = Llama3(frequency, *scaling);
    if (scaling != nullptr && scaling->kind == RotaryScaling::kLinear) frequency /= static_cast<float>(scaling->factor);
  }
  if (scaling != nullptr && scaling->kind == RotaryScaling::kYarn) Yarn(theta, *scaling, &frequencies);
  return frequencies;
}

}  // namespace

double RotaryScaling::MagnitudeOf(double mscale_of) const {
  return factor <= 1 ? 1 : 0.1 * mscale_of * std::log(factor) + 1;
}

RopeTable MakeRopeTable(const Rotation& rotation, at::ScalarType dtype, at::Device device) {
  const int64_t positions = rotation.max_positions, dims = rotation.dims;
  const int64_t half = std::max(dims, rotation.padded_to) / 2;
  const bool twice = rotation.second_beyond() > 0;
  const double scale = rotation.scaling.has_value() ? RotationScale(*rotation.scaling) : 1;
  std::vector<std::vector<float>> tables;
  if (twice) {
    tables = {Frequencies(rotation, &rotation.scaling->short_factor),
              Frequencies(rotation, &rotation.scaling->long_factor)};
  } else {
    tables = {Frequencies(rotation, nullptr)};
  }

  // Pairs beyond `dims` stand still.
  const at::TensorOptions options = at::TensorOptions().dtype(at::kDouble);
  const auto rows = static_cast<int64_t>(tables.size()) * positions;
  at::Tensor cosine = at::ones({rows, half}, options), sine = at::zeros({rows, half}, options);
  double* c = cosine.mutable_data_ptr<double>();
  double* s = sine.mutable_data_ptr<double>();
  for (int64_t row = 0; row < rows; ++row) {
    const std::vector<float>& frequencies = tables[static_cast<size_t>(row / positions)];
    for (int64_t i = 0; i < dims / 2; ++i) {
      // Angles are rounded to float32, as the reference's are.
      const double angle = static_cast<float>(row % positions) * frequencies[static_cast<size_t>(i)];
      c[row * half + i] = scale * std::cos(angle);
      s[row * half + i] = scale * std::sin(angle);
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

// 2^(-8 i / n) for the largest power of two n of heads, then every other of those for 2 n.
const at::Tensor& RotationTables::Slopes(int64_t heads) {
  at::Tensor& slopes = slopes_[heads];
  if (slopes.defined()) return slopes;
  const auto power = static_cast<int64_t>(std::exp2(std::floor(std::log2(static_cast<double>(heads)))));
  at::Tensor values = at::zeros({heads}, at::TensorOptions().dtype(at::kFloat));
  float* value = values.mutable_data_ptr<float>();
  for (int64_t i = 0; i < heads; ++i) {
    const bool within = i < power;
    const auto step = static_cast<double>(within ? i + 1 : 2 * (i - power) + 1);
    value[i] = static_cast<float>(std::exp2(-8 * step / static_cast<double>(within ? power : 2 * power)));
  }
  slopes = values.to(device_);
  return slopes;
}

}  // namespace trireme
