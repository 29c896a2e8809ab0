// models/parts/feed_forward.h
// Feed-forward layers of two or three projections.
#ifndef TRIREME_MODELS_PARTS_FEED_FORWARD_H_
#define TRIREME_MODELS_PARTS_FEED_FORWARD_H_

#include <cstdint>
#include <memory>

#include "models/spec/part.h"

namespace trireme {

struct FeedForwardSettings {
  int64_t width = 0;
  bool gated = true;  // down(activation(gate x) * up x); else down(activation(up x))
  Activation activation = Activation::kSilu;
  bool xielu = false;  // without a gate: the activation is an xIELU, whose numbers are learned (arXiv 2411.13010)
  bool bias = false;   // of all projections
};

// Parameters mlp.{gate,up,down}_proj, with Llama's names.
std::shared_ptr<const BlockPart> MakeFeedForward(const FeedForwardSettings& settings);

}  // namespace trireme

#endif  // TRIREME_MODELS_PARTS_FEED_FORWARD_H_
