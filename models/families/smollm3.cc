#include "models/parts/draft.h"
#include "models/spec/family.h"

namespace trireme {
namespace {

constexpr int64_t kInterval = 4;  // each fourth layer of the published models does not rotate

DecoderSpec SpecifySmolLm3(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  if (config.no_rope_layers().empty()) {
    for (size_t i = 0; i < draft.pattern.size(); ++i) draft.pattern[i].rope = (i + 1) % kInterval != 0;
  }
  return draft.Build(problems);
}

}  // namespace

ModelFamily SmolLm3Family() { return {"smollm3", &SpecifySmolLm3}; }

}  // namespace trireme
