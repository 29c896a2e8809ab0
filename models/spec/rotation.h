// models/spec/rotation.h
// Rotary positions (arXiv 2104.09864) as numbers, and their tables.
#ifndef TRIREME_MODELS_SPEC_ROTATION_H_
#define TRIREME_MODELS_SPEC_ROTATION_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/base/ops.h"

namespace trireme {

// How the frequencies of rotation are changed for contexts longer than those they were made for; numbers as in
// ModelConfig.rope_scaling.
struct RotaryScaling {
  enum Kind { kLlama3, kLinear, kYarn, kLongRope, kDynamic } kind = kLinear;
  double factor = 1;
  double low_freq_factor = 1, high_freq_factor = 4;  // kLlama3
  int64_t original_max_position_embeddings = 8192;   // kLlama3, kYarn, kLongRope
  double beta_fast = 32, beta_slow = 1;              // kYarn
  std::optional<double> attention_factor;            // kYarn, kLongRope; none: what follows from factor
  std::vector<double> short_factor, long_factor;     // kLongRope
  std::optional<double> alpha;                       // kDynamic
  bool truncate = true;                              // kYarn
  double mscale = 0, mscale_all_dim = 0;             // kYarn; 0: not set
  // kYarn: what a number of this kind makes of the factor, 0.1 mscale ln(factor) + 1.
  double MagnitudeOf(double mscale_of) const;
  bool operator==(const RotaryScaling& other) const = default;
};

struct Rotation {
  double theta = 10000;
  int64_t dims = 0;           // of a head that turn
  bool interleaved = false;   // neighbours are pairs (2i, 2i + 1); else i and i + half of what turns
  int64_t padded_to = 0;      // pairs of so many dimensions, those beyond `dims` standing still (RotaryOrder); 0: dims
  int64_t max_positions = 0;  // rows of the table
  std::optional<RotaryScaling> scaling;
  // kLongRope: how many tokens a segment may have before it turns by the second table, whose rows stand behind those of
  // the first: its token p reads row max_positions + p. 0: there is one table.
  int64_t second_beyond() const {
    return scaling.has_value() && scaling->kind == RotaryScaling::kLongRope ? scaling->original_max_position_embeddings
                                                                            : 0;
  }
  bool operator==(const Rotation& other) const = default;
};

// Cosines and sines of position x frequency, in float64 rounded to `dtype` as Transformers computes them in float32.
RopeTable MakeRopeTable(const Rotation& rotation, at::ScalarType dtype, at::Device device);

// What positions are to a decoder on one rank, each made when a layer first asks for it.
class RotationTables {
 public:
  RotationTables(at::ScalarType dtype, at::Device device) : dtype_(dtype), device_(device) {}
  const RopeTable& Of(const Rotation& rotation);  // It stays where it is.
  // ALiBi's (arXiv 2108.12409) of so many heads, [heads] float32.
  const at::Tensor& Slopes(int64_t heads);

 private:
  at::ScalarType dtype_;
  at::Device device_;
  std::vector<std::pair<Rotation, std::unique_ptr<RopeTable>>> tables_;
  std::map<int64_t, at::Tensor> slopes_;
};

}  // namespace trireme

#endif  // TRIREME_MODELS_SPEC_ROTATION_H_
