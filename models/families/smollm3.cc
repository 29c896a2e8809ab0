#include "models/spec/family.h"

namespace trireme {
namespace {

constexpr int64_t kInterval = 4;  // each fourth layer of the published models does not rotate

DecoderSpec SpecifySmolLm3(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderSpec spec = SpecifyDecoder(config, problems);
  if (!config.no_rope_layers().empty()) return spec;
  if (spec.pattern.empty()) spec.pattern.assign(static_cast<size_t>(spec.num_layers), {spec.sliding_window});
  for (size_t i = 0; i < spec.pattern.size(); ++i) spec.pattern[i].rope = (i + 1) % kInterval != 0;
  return spec;
}

}  // namespace

ModelFamily SmolLm3Family() { return {"smollm3", &SpecifySmolLm3}; }

}  // namespace trireme
