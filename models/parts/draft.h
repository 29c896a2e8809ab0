// models/parts/draft.h
// What nearly all families share, before it becomes layers: a family takes Llama's decoder as the configuration has it,
// changes what differs, and lets it be built.
#ifndef TRIREME_MODELS_PARTS_DRAFT_H_
#define TRIREME_MODELS_PARTS_DRAFT_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "configs/run_config.pb.h"
#include "models/parts/attention.h"
#include "models/parts/feed_forward.h"
#include "models/spec/decoder_spec.h"

namespace trireme {

// What may differ between layers of a decoder.
struct LayerPattern {
  int64_t window = 0;  // tokens that a query sees, itself included; 0: all earlier ones
  bool rope = true;    // positions rotate queries and keys
  bool local = false;  // by local_rotation
};

struct DecoderDraft {
  DecoderSpec spec;  // without its layers
  LayerSpec block;   // without its parts
  AttentionSettings attention;
  FeedForwardSettings feed_forward;
  Rotation rotation;                  // of all layers that rotate
  Rotation local_rotation;            // but for those that the pattern calls local
  std::vector<LayerPattern> pattern;  // one per layer
  // Changes a layer's attention further; may be empty.
  std::function<void(int64_t layer, AttentionSettings* attention)> vary;
  // Makes a layer's mixer; empty: of `attention` by the pattern.
  std::function<std::shared_ptr<const BlockPart>(int64_t layer)> make_mixer;
  // Makes a layer's feed-forward; empty: of `feed_forward`.
  std::function<std::shared_ptr<const BlockPart>(int64_t layer)> make_feed_forward;
  QuantizationConfig quantization;  // without a method: none

  // Layers with a window rotate by frequencies of their own, which are not rescaled.
  void UseLocalRotation(double theta);
  void EachNorm(const std::function<void(NormSpec*)>& change);  // of the blocks and of the head
  // The decoder; what does not fit is appended to `problems`.
  DecoderSpec Build(std::vector<std::string>* problems) const;
};

// Llama's decoder from the fields that mean the same in all families. Problems name field, value and remedy
// ("model.hidden_size: ... ; remedy").
DecoderDraft DraftDecoder(const ModelConfig& config, std::vector<std::string>* problems);

// LayerNorms with layer_norm_eps instead of RMSNorms.
void UseLayerNorm(const ModelConfig& config, bool bias, DecoderDraft* draft, std::vector<std::string>* problems);

// The activation that hidden_act names, or `by_default` where the configuration is silent.
Activation ActivationOf(const ModelConfig& config, const std::string& by_default, std::vector<std::string>* problems);

// Only partial_rotary_factor of a head's dimensions turn; by_default: where the configuration is silent.
void RotatePartly(const ModelConfig& config, double by_default, DecoderDraft* draft,
                  std::vector<std::string>* problems);

// Appends a problem unless `value` is a finite number above 0 (or 0, if allowed).
void CheckPositive(const std::string& field, double value, bool zero_too, std::vector<std::string>* problems);

}  // namespace trireme

#endif  // TRIREME_MODELS_PARTS_DRAFT_H_
