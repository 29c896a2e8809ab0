// models/parts/experts.h
// A mixture of experts as a feed-forward layer: a router, experts of which each token has some, and a shared expert or
// none.
#ifndef TRIREME_MODELS_PARTS_EXPERTS_H_
#define TRIREME_MODELS_PARTS_EXPERTS_H_

#include <cstdint>
#include <memory>

#include "models/spec/part.h"
#include "parallel/layers/experts.h"

namespace trireme {

struct ExpertsSettings {
  RoutingRule routing;
  int64_t width = 0;  // of an expert
  ExpertGate gate;
  bool bias = false;         // of the router and of the experts' products
  bool correction = false;   // a learned bias of scores where experts are chosen (arXiv 2408.15664)
  int64_t shared_width = 0;  // of the expert that every token has; 0: there is none
  bool shared_gate = false;  // which is multiplied by the sigmoid of a product of its own
};

// Parameters mlp.gate, mlp.experts.{gate_up,down}_proj [experts x rows, columns], an expert's gate before its up (with
// a clamped gate: in turn), and mlp.shared_expert.*.
std::shared_ptr<const BlockPart> MakeExperts(const ExpertsSettings& settings);

// What is wrong with the numbers, each problem naming a field.
void CheckExperts(const ExpertsSettings& settings, std::vector<std::string>* problems);

}  // namespace trireme

#endif  // TRIREME_MODELS_PARTS_EXPERTS_H_
