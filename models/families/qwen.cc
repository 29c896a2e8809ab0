#include "models/spec/family.h"

namespace trireme {
namespace {

DecoderSpec SpecifyQwen2(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderSpec spec = SpecifyDecoder(config, problems);
  spec.qkv_bias = true;
  return spec;
}

DecoderSpec SpecifyQwen3(const ModelConfig& config, std::vector<std::string>* problems) {
  DecoderSpec spec = SpecifyDecoder(config, problems);
  spec.qk_norm = true;
  return spec;
}

}  // namespace

ModelFamily Qwen2Family() { return {"qwen2", &SpecifyQwen2}; }
ModelFamily Qwen3Family() { return {"qwen3", &SpecifyQwen3}; }

}  // namespace trireme
