#include "models/spec/decoder_spec.h"

#include <algorithm>
#include <map>

#include "models/spec/parameters.h"

namespace trireme {
namespace {

// Of all matrices of a block, in parameters that a token multiplies with.
double BlockWeights(const DecoderSpec& spec, int64_t layer) {
  double weights = 0;
  for (const ParameterSpec& parameter : BlockParameters(spec, layer)) {
    if (parameter.shape.size() == 2) weights += parameter.active * static_cast<double>(Numel(parameter));
  }
  return weights;
}

double ScoreFlops(const LayerSpec& layer, int64_t sequence_length) {
  const std::optional<AttentionShape> attention = layer.mixer->attention();
  if (!attention.has_value()) return 0;
  const double window = static_cast<double>(attention->window), half = static_cast<double>(sequence_length) / 2;
  return 2.0 * static_cast<double>(attention->heads * (attention->head_dim + attention->value_dim)) *
         (window > 0 ? std::min(window, half) : half);
}

}  // namespace

std::vector<AttentionShape> DecoderSpec::attentions() const {
  std::vector<AttentionShape> all;
  for (const LayerSpec& layer : layers) {
    const std::optional<AttentionShape> shape = layer.mixer->attention();
    if (shape.has_value() && std::find(all.begin(), all.end(), *shape) == all.end()) all.push_back(*shape);
  }
  return all;
}

std::set<int64_t> DecoderSpec::windows() const {
  std::set<int64_t> all;
  for (const AttentionShape& shape : attentions()) all.insert(shape.window);
  return all;
}

std::vector<int64_t> DecoderSpec::experts() const {
  std::map<const BlockPart*, int64_t> of_part;
  std::vector<int64_t> experts;
  for (const LayerSpec& layer : layers) {
    const auto [found, added] = of_part.try_emplace(layer.feed_forward.get(), 0);
    if (added) {
      for (const ParameterSpec& parameter : layer.feed_forward->Parameters({"", hidden_size, 0, 0})) {
        if (parameter.expert) found->second = parameter.heads;
      }
    }
    experts.push_back(found->second);
  }
  return experts;
}

bool DecoderSpec::has_experts() const {
  const std::vector<int64_t> of_layers = experts();
  return std::any_of(of_layers.begin(), of_layers.end(), [](int64_t count) { return count > 0; });
}

bool DecoderSpec::balances_experts() const {
  return std::any_of(layers.begin(), layers.end(), [this](const LayerSpec& layer) {
    const std::vector<ParameterSpec> parameters = layer.feed_forward->Parameters({"", hidden_size, 0, 0});
    return std::any_of(parameters.begin(), parameters.end(), [](const ParameterSpec& one) { return one.balanced; });
  });
}

int64_t DecoderSpec::second_rotation_beyond() const {
  int64_t beyond = 0;
  for (const AttentionShape& shape : attentions()) {
    if (shape.rotation.has_value()) beyond = std::max(beyond, shape.rotation->second_beyond());
  }
  return beyond;
}

double DecoderSpec::HeadForwardFlopsPerToken() const { return 2.0 * static_cast<double>(vocab_size * hidden_size); }

double DecoderSpec::BlockForwardFlopsPerToken(int64_t index, int64_t sequence_length) const {
  return 2.0 * BlockWeights(*this, index) + ScoreFlops(layer(index), sequence_length);
}

double DecoderSpec::BlocksForwardFlopsPerToken(int64_t sequence_length) const {
  double sum = 0;
  for (int64_t i = 0; i < num_layers; ++i) sum += BlockForwardFlopsPerToken(i, sequence_length);
  return sum;
}

double DecoderSpec::TrainingFlopsPerToken(int64_t sequence_length, double with_target) const {
  const double head = with_target * HeadForwardFlopsPerToken();
  const double forward = BlocksForwardFlopsPerToken(sequence_length) + head;
  // A frozen weight has no gradient: forward and the input's gradient only.
  if (adapter == nullptr && !quantization.has_value()) return 3 * forward;
  double weights = 0;
  for (int64_t i = 0; i < num_layers; ++i) weights += BlockWeights(*this, i);
  return 3 * forward - 2 * weights - head;
}

}  // namespace trireme
