// parallel/layers/expert_loads.h
// What the experts of a model have to do in a step: how many tokens each gets, over all ranks, and the losses that keep
// their routers in order.
#ifndef TRIREME_PARALLEL_LAYERS_EXPERT_LOADS_H_
#define TRIREME_PARALLEL_LAYERS_EXPERT_LOADS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "parallel/comm/process_group.h"
#include "parallel/layers/experts.h"

namespace trireme {

// The losses of routers, which are added to the model's own.
struct RouterLossRule {
  // Multiplies the loss of uneven loads. Of a sequence of L tokens in a layer of E experts, of which a token has k, it
  // is E / (k L^2) x the sum over experts of (tokens that chose it) x (sum of its shares): 1 where loads are even
  // (arXiv 2412.19437). Losses are summed over sequences and layers.
  double evenness = 0;
  // Instead: all layers and all tokens of the step as one sequence of L tokens, without the k: k where loads are even
  // (load_balancing_loss_func of Transformers). Of a step that is one microbatch without pipeline ranks.
  bool pooled = false;
  // Multiplies the mean over a step's tokens of (log of the sum of exp(logits))^2, summed over layers (arXiv
  // 2202.08906).
  double z = 0;
};

// A layer with experts, and how many.
struct ExpertLayer {
  std::string block;  // "model.layers.3"
  int64_t experts = 0;
};

// How the tokens of a step were spread over the experts of a layer.
struct LayerLoad {
  std::string block;
  double max_over_mean = 0;  // of tokens an expert got
  double entropy = 0;        // of the experts' shares of the tokens: ln(experts) where loads are even. Unit: nat
  double idle = 0;           // share of experts that got none
};

struct RouterResults {
  std::vector<LayerLoad> layers;
  double aux_loss = 0, z_loss = 0;  // with their coefficients
};

// Tokens that were routed in one call, on this rank.
struct RoutedTokens {
  at::Tensor is_token;  // [T] int64, of all tensor ranks' tokens: 0 where one only fills a sequence; undefined: all are
  int64_t own_length = 0;  // how many tokens of each sequence this context rank has
  bool first_pass = true;  // not one that is computed again
};

class ExpertLoads {
 public:
  // layers: of the whole model. all: the ranks of the job. tensor, sequence: those that cut a microbatch, and those
  // that share sequences (tensor and context ranks); they outlive it.
  ExpertLoads(std::vector<ExpertLayer> layers, const RouterLossRule& rule, std::shared_ptr<ProcessGroup> all,
              std::shared_ptr<ProcessGroup> tensor, std::shared_ptr<ProcessGroup> sequence, at::Device device);

  // A step begins, of so many tokens in the global batch.
  void Begin(double tokens);
  // Counts what was routed in a layer in a training pass, once however often it is computed, and gives `result`,
  // through whose gradient the router gets that of its losses. Collective over the ranks of `sequence`.
  at::Tensor Account(const std::string& block, at::Tensor result, const Routing& routing, const RoutedTokens& tokens);
  // After the last backward pass. Collective over all ranks; may be called again.
  void Sum();

  // [experts] float64: tokens that each expert got in the step, over all ranks, in the layer that a parameter is part
  // of; stands after Sum().
  at::Tensor Counts(const std::string& parameter) const;
  // All that Sum() made, for Describe().
  const at::Tensor& sums() const { return sums_; }
  // sums: on the host.
  static RouterResults Describe(const std::vector<ExpertLayer>& layers, const at::Tensor& sums);
  const std::vector<ExpertLayer>& layers() const { return layers_; }

 private:
  struct PooledFunction;
  enum Loss { kAux, kZ, kLosses };  // places in own_ and sums_, before the counts of each layer

  // [experts]: the gradient of a token's shares under the pooled loss. Collective over all ranks when first called in a
  // step.
  at::Tensor PooledGradient(int64_t per_token);
  at::Tensor EvennessLoss(const Routing& routing, const at::Tensor& is_token, int64_t own_length);
  at::Tensor ZLoss(const Routing& routing, const at::Tensor& is_token) const;

  std::vector<ExpertLayer> layers_;
  std::map<std::string, int64_t> first_;  // of each layer's counts
  RouterLossRule rule_;
  std::shared_ptr<ProcessGroup> all_, tensor_, sequence_;
  double tokens_ = 1;
  at::Tensor own_, sums_;  // [kLosses + all experts] float64: of this rank, of all
  at::Tensor pooled_;      // [experts] float64: counts of all layers and ranks; undefined: not yet in this step
};

}  // namespace trireme

#endif  // TRIREME_PARALLEL_LAYERS_EXPERT_LOADS_H_
