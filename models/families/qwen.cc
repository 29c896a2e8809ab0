#include "models/parts/draft.h"
#include "models/spec/family.h"

namespace trireme {
namespace {

DecoderSpec SpecifyQwen2(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  draft.attention.qkv_bias = true;
  return draft.Build(problems);
}

DecoderSpec SpecifyQwen3(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  draft.attention.head_norm = HeadNormSpec{.norm = draft.block.norm};
  return draft.Build(problems);
}

}  // namespace

ModelFamily Qwen2Family() { return {"qwen2", &SpecifyQwen2}; }
ModelFamily Qwen3Family() { return {"qwen3", &SpecifyQwen3}; }

}  // namespace trireme
