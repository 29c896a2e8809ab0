#include "parallel/layers/expert_loads.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/div.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <absl/strings/match.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "launch/base/status.h"
#include "parallel/layers/autograd.h"

namespace trireme {
namespace {

// Passes its first input on; the second, a loss, gets a gradient of one.
struct AddLossFunction : torch::autograd::Function<AddLossFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& result, const at::Tensor& loss) {
    context->save_for_backward({at::ones(loss.sizes(), loss.options())});
    return result.view_as(result);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    return {gradients[0], context->get_saved_variables()[0]};
  }
};

// How often each of `places` [t, k], numbers below `count`, occurs in rows that are tokens.
at::Tensor CountPlaces(const at::Tensor& places, int64_t count, const at::Tensor& is_token, at::ScalarType type) {
  const at::TensorOptions options = places.options().dtype(type);
  const at::Tensor each = is_token.defined() ? is_token.to(type).unsqueeze(1).expand(places.sizes()).reshape({-1})
                                             : at::ones({places.numel()}, options);
  return at::zeros({count}, options).index_add_(0, places.reshape({-1}), each);
}

// rows [t, width] that are no tokens become zero.
at::Tensor OnlyTokens(const at::Tensor& rows, const at::Tensor& is_token) {
  return is_token.defined() ? rows * is_token.to(rows.scalar_type()).unsqueeze(1) : rows;
}

}  // namespace

ExpertLoads::ExpertLoads(std::vector<ExpertLayer> layers, const RouterLossRule& rule, std::shared_ptr<ProcessGroup> all,
                         std::shared_ptr<ProcessGroup> tensor, std::shared_ptr<ProcessGroup> sequence,
                         at::Device device)
    : layers_(std::move(layers)),
      rule_(rule),
      all_(std::move(all)),
      tensor_(std::move(tensor)),
      sequence_(std::move(sequence)) {
  int64_t size = kLosses;
  for (const ExpertLayer& layer : layers_) {
    first_[layer.block] = size;
    size += layer.experts;
    TRIREME_CHECK(!rule_.pooled || layer.experts == layers_[0].experts, "layers with other numbers of experts");
  }
  own_ = at::zeros({size}, at::TensorOptions().dtype(at::kDouble).device(device));
}

void ExpertLoads::Begin(double tokens) {
  tokens_ = std::max(1.0, tokens);
  own_.zero_();
  pooled_.reset();
}

void ExpertLoads::Sum() {
  sums_ = own_.clone();
  all_->AllReduce(sums_, ReduceOp::kSum).Wait();
}

at::Tensor ExpertLoads::Counts(const std::string& parameter) const {
  const auto layer = std::find_if(layers_.begin(), layers_.end(),
                                  [&](const auto& one) { return absl::StartsWith(parameter, one.block + "."); });
  TRIREME_CHECK(layer != layers_.end() && sums_.defined(), "no loads for ", parameter);
  return sums_.narrow(0, first_.at(layer->block), layer->experts);
}

// Passes its first input on; the second, the shares, gets the gradient of the pooled loss, whose counts are known once
// all layers ran forward.
struct ExpertLoads::PooledFunction : torch::autograd::Function<ExpertLoads::PooledFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& result, const at::Tensor& shares,
                            const std::optional<at::Tensor>& is_token, ExpertLoads* loads, int64_t per_token) {
    context->saved_data["loads"] = Pack(loads);
    context->saved_data["per_token"] = per_token;
    context->save_for_backward({shares, is_token.value_or(at::Tensor())});
    return result.view_as(result);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    ExpertLoads& loads = Saved<ExpertLoads>(context, "loads");
    const at::Tensor gradient = loads.PooledGradient(context->saved_data.at("per_token").toInt());
    const at::Tensor d_shares = OnlyTokens(gradient.expand(saved[0].sizes()), saved[1]).to(saved[0].scalar_type());
    loads.own_[kAux].add_(at::sum(saved[0] * d_shares, at::kDouble));
    return {gradients[0], d_shares, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

at::Tensor ExpertLoads::PooledGradient(int64_t per_token) {
  const int64_t experts = layers_[0].experts;
  if (!pooled_.defined()) {
    pooled_ = own_.narrow(0, kLosses, own_.numel() - kLosses).view({-1, experts}).sum(0);
    all_->AllReduce(pooled_, ReduceOp::kSum).Wait();
  }
  const at::Tensor length = (pooled_.sum() / static_cast<double>(per_token)).clamp_min(1);
  return pooled_ * (rule_.evenness * static_cast<double>(experts)) / (length * length);
}

at::Tensor ExpertLoads::EvennessLoss(const Routing& routing, const at::Tensor& is_token, int64_t own_length) {
  at::Tensor wanted;  // [t, experts]: the gradient of the shares
  {
    at::NoGradGuard no_grad;
    const int64_t rows = routing.shares.size(0), experts = routing.shares.size(1), k = routing.indices.size(1);
    const int64_t sequences = rows * tensor_->size() / own_length;
    // The sequence of each of this tensor rank's rows.
    const at::Tensor of_row =
        at::div(at::arange(rows, routing.indices.options()) + tensor_->rank() * rows, own_length, "floor");
    at::Tensor counts = CountPlaces(of_row.unsqueeze(1) * experts + routing.indices, sequences * experts, is_token,
                                    routing.shares.scalar_type());
    sequence_->AllReduce(counts, ReduceOp::kSum).Wait();
    counts = counts.view({sequences, experts});
    const at::Tensor length = (counts.sum(1, /*keepdim=*/true) / static_cast<double>(k)).clamp_min(1);
    const double factor = rule_.evenness * static_cast<double>(experts) / static_cast<double>(k);
    wanted = OnlyTokens((counts * factor / (length * length)).index_select(0, of_row), is_token);
  }
  return at::sum(routing.shares * wanted, at::kDouble);
}

at::Tensor ExpertLoads::ZLoss(const Routing& routing, const at::Tensor& is_token) const {
  const at::Tensor z = at::logsumexp(routing.logits, {1}, /*keepdim=*/true);
  return at::sum(OnlyTokens(z * z, is_token), at::kDouble) * (rule_.z / tokens_);
}

at::Tensor ExpertLoads::Account(const std::string& block, at::Tensor result, const Routing& routing,
                                const RoutedTokens& tokens) {
  const int64_t rows = routing.indices.size(0);
  const at::Tensor is_token =
      tokens.is_token.defined() ? tokens.is_token.narrow(0, tensor_->rank() * rows, rows) : tokens.is_token;
  const int64_t experts = routing.shares.size(1);
  if (tokens.first_pass)
    own_.narrow(0, first_.at(block), experts).add_(CountPlaces(routing.indices, experts, is_token, at::kDouble));
  const auto with_loss = [&](Loss place, const at::Tensor& loss) {
    if (tokens.first_pass) own_[place].add_(loss.detach());
    return AddLossFunction::apply(result, loss);
  };
  if (rule_.evenness > 0 && rule_.pooled) {
    result = PooledFunction::apply(result, routing.shares, Present(is_token), this, routing.indices.size(1));
  } else if (rule_.evenness > 0) {
    result = with_loss(kAux, EvennessLoss(routing, is_token, tokens.own_length));
  }
  if (rule_.z > 0) result = with_loss(kZ, ZLoss(routing, is_token));
  return result;
}

RouterResults ExpertLoads::Describe(const std::vector<ExpertLayer>& layers, const at::Tensor& sums) {
  const double* numbers = sums.const_data_ptr<double>();
  RouterResults results;
  results.aux_loss = numbers[kAux];
  results.z_loss = numbers[kZ];
  const double* counts = numbers + kLosses;
  for (const ExpertLayer& layer : layers) {
    LayerLoad load = {layer.block};
    double total = 0, most = 0;
    for (int64_t e = 0; e < layer.experts; ++e) {
      total += counts[e];
      most = std::max(most, counts[e]);
      load.idle += counts[e] == 0 ? 1 : 0;
    }
    for (int64_t e = 0; e < layer.experts && total > 0; ++e) {
      if (counts[e] > 0) load.entropy -= counts[e] / total * std::log(counts[e] / total);
    }
    const auto experts = static_cast<double>(layer.experts);
    load.idle /= experts;
    load.max_over_mean = total > 0 ? most * experts / total : 0;
    results.layers.push_back(std::move(load));
    counts += layer.experts;
  }
  return results;
}

}  // namespace trireme
