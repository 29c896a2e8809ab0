#include "kernels/cuda/ops.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

#include "kernels/cuda/launchers.h"
#include "launch/base/status.h"

namespace trireme::cuda {
namespace {

// Makes the tensor's device current and names its current stream.
struct Target {
  explicit Target(const at::Tensor& x)
      : guard(x.device()), stream(c10::cuda::getCurrentCUDAStream(x.device().index()).stream()) {}
  c10::cuda::CUDAGuard guard;
  Stream stream;
};

Storage StorageOf(const at::Tensor& x) {
  if (x.scalar_type() == at::kFloat) return Storage::kFloat32;
  TRIREME_CHECK(x.scalar_type() == at::kBFloat16, "CUDA kernels take float32 and bfloat16, not ",
                c10::toString(x.scalar_type()));
  return Storage::kBfloat16;
}

void* Address(const at::Tensor& x) { return x.defined() ? x.data_ptr() : nullptr; }

float* Floats(const at::Tensor& x) {
  if (!x.defined()) return nullptr;
  TRIREME_CHECK(x.scalar_type() == at::kFloat, "expected float32, got ", c10::toString(x.scalar_type()));
  return static_cast<float*>(x.data_ptr());
}

Bf16* Bf16s(const at::Tensor& x) {
  if (!x.defined()) return nullptr;
  TRIREME_CHECK(x.scalar_type() == at::kBFloat16, "expected bfloat16, got ", c10::toString(x.scalar_type()));
  return static_cast<Bf16*>(x.data_ptr());
}

}  // namespace

RmsNormResult RmsNorm(const at::Tensor& x, const at::Tensor& delta, const at::Tensor& weight, double eps,
                      double offset) {
  const Target target(x);
  const int64_t rows = x.size(0), width = x.size(1);
  RmsNormResult result;
  result.h = delta.defined() ? at::empty(x.sizes(), x.options()) : x;
  result.y = at::empty(x.sizes(), x.options());
  result.rstd = at::empty({rows}, x.options().dtype(at::kFloat));
  LaunchRmsNorm(StorageOf(x), rows, width, Address(x), Address(delta), Address(weight), static_cast<float>(offset),
                static_cast<float>(eps), Address(result.h), Address(result.y), Floats(result.rstd), target.stream);
  return result;
}

at::Tensor RmsNormAgain(const at::Tensor& h, const at::Tensor& rstd, const at::Tensor& weight, double offset) {
  const Target target(h);
  at::Tensor y = at::empty(h.sizes(), h.options());
  LaunchRmsNormAgain(StorageOf(h), h.size(0), h.size(1), Address(h), Floats(rstd), Address(weight),
                     static_cast<float>(offset), Address(y), target.stream);
  return y;
}

at::Tensor RmsNormBackward(const at::Tensor& h, const at::Tensor& rstd, const at::Tensor& weight, const at::Tensor& dy,
                           const at::Tensor& d_h, at::Tensor* d_weight, double offset) {
  const Target target(h);
  const int64_t rows = h.size(0), width = h.size(1);
  at::Tensor dx = at::empty(h.sizes(), h.options());
  at::Tensor scratch;  // [parts, width]
  if (d_weight != nullptr) scratch = at::empty({RmsNormParts(rows), width}, h.options().dtype(at::kFloat));
  LaunchRmsNormBackward(StorageOf(h), rows, width, Address(h), Floats(rstd), Address(weight),
                        static_cast<float>(offset), Address(dy), Address(d_h), Address(dx), Floats(scratch),
                        d_weight != nullptr ? Floats(*d_weight) : nullptr, target.stream);
  return dx;
}

// GeGLU has no kernel of its own here: libtorch's operations, one after another.
at::Tensor GatedForward(const at::Tensor& gate_up, Activation activation) {
  if (activation == Activation::kGeluTanh) {
    const std::vector<at::Tensor> halves = gate_up.chunk(2, 1);
    return at::gelu(halves[0], "tanh").mul_(halves[1]);
  }
  const Target target(gate_up);
  const int64_t rows = gate_up.size(0), width = gate_up.size(1) / 2;
  at::Tensor out = at::empty({rows, width}, gate_up.options());
  LaunchSwiGlu(StorageOf(gate_up), rows, width, Address(gate_up), Address(out), target.stream);
  return out;
}

at::Tensor GatedBackward(const at::Tensor& gate_up, const at::Tensor& d_out, Activation activation, bool in_place) {
  if (activation == Activation::kGeluTanh) {
    const std::vector<at::Tensor> halves = gate_up.chunk(2, 1);
    return at::cat({at::gelu_backward(d_out * halves[1], halves[0], "tanh"), d_out * at::gelu(halves[0], "tanh")}, 1);
  }
  const Target target(gate_up);
  // Each thread has read its elements before it writes them.
  at::Tensor d_gate_up = in_place ? gate_up : at::empty(gate_up.sizes(), gate_up.options());
  LaunchSwiGluBackward(StorageOf(gate_up), gate_up.size(0), gate_up.size(1) / 2, Address(gate_up), Address(d_out),
                       Address(d_gate_up), target.stream);
  return d_gate_up;
}

namespace {

GateKind KindOf(const ExpertGate& gate) {
  if (gate.clamped.has_value()) return GateKind::kClamped;
  return gate.activation == Activation::kSilu ? GateKind::kSwiGlu : GateKind::kGeGlu;
}

}  // namespace

at::Tensor ExpertGateForward(const at::Tensor& gate_up, const at::Tensor& weights, const ExpertGate& gate) {
  const Target target(gate_up);
  const int64_t rows = gate_up.size(0), width = gate_up.size(1) / 2;
  at::Tensor out = at::empty({rows, width}, gate_up.options());
  LaunchExpertGate(StorageOf(gate_up), KindOf(gate), gate.clamped.value_or(ClampedGate()), rows, width,
                   Address(gate_up), Floats(weights), Address(out), target.stream);
  return out;
}

ExpertGateGradients ExpertGateBackward(const at::Tensor& gate_up, const at::Tensor& weights, const at::Tensor& d_out,
                                       const ExpertGate& gate) {
  const Target target(gate_up);
  const int64_t rows = gate_up.size(0), width = gate_up.size(1) / 2;
  ExpertGateGradients gradients{at::empty(gate_up.sizes(), gate_up.options()),
                                at::empty(weights.sizes(), weights.options()),
                                at::empty({rows, width}, gate_up.options())};
  LaunchExpertGateBackward(StorageOf(gate_up), KindOf(gate), gate.clamped.value_or(ClampedGate()), rows, width,
                           Address(gate_up), Floats(weights), Address(d_out), Address(gradients.gate_up),
                           Floats(gradients.weights), Address(gradients.out), target.stream);
  return gradients;
}

at::Tensor SumOfChoices(const at::Tensor& x, const at::Tensor& place, int64_t per_token) {
  const Target target(x);
  const int64_t tokens = place.size(0) / per_token;
  at::Tensor out = at::empty({tokens, x.size(1)}, x.options());
  LaunchSumOfChoices(StorageOf(x), tokens, per_token, x.size(1), place.const_data_ptr<int64_t>(), Address(x),
                     Address(out), target.stream);
  return out;
}

at::Tensor Dropout(const at::Tensor& x, const at::Tensor& tokens, const DropoutOptions& options) {
  const Target target(x);
  at::Tensor out = at::empty(x.sizes(), x.options());
  LaunchDropout(StorageOf(x), x.size(0), x.size(1), options.first_column, tokens.const_data_ptr<int64_t>(), options.key,
                DropThreshold(options.rate), static_cast<float>(1 / (1 - options.rate)), Address(x), Address(out),
                target.stream);
  return out;
}

void ApplyRope(at::Tensor& packed, int64_t heads, int64_t head_dim, const at::Tensor& positions, const RopeTable& table,
               bool inverse) {
  const Target target(packed);
  LaunchRope(StorageOf(packed), packed.size(0), heads, head_dim, table.cosine.size(1), table.interleaved,
             packed.stride(0), Address(packed), positions.const_data_ptr<int64_t>(), table.cosine.size(0),
             Floats(table.cosine), Floats(table.sine), inverse ? -1.0f : 1.0f, target.stream);
}

at::Tensor EmbeddingForward(const at::Tensor& tokens, const at::Tensor& weight) {
  const Target target(weight);
  const int64_t rows = tokens.size(0), width = weight.size(1);
  at::Tensor out = at::empty({rows, width}, weight.options());
  LaunchEmbedding(rows, weight.size(0), width * static_cast<int64_t>(weight.element_size()),
                  tokens.const_data_ptr<int64_t>(), Address(weight), Address(out), target.stream);
  return out;
}

void AddEmbeddingGradient(const at::Tensor& tokens, const at::Tensor& dy, at::Tensor& accumulator) {
  const Target target(dy);
  const auto [sorted, order] = at::sort(tokens, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  LaunchEmbeddingGradient(StorageOf(dy), tokens.size(0), accumulator.size(0), dy.size(1),
                          sorted.const_data_ptr<int64_t>(), order.const_data_ptr<int64_t>(), Address(dy),
                          Floats(accumulator), target.stream);
}

// Applies the soft cap in place; returns its slope, which the gradient is to be multiplied by; undefined: there is
// none.
static at::Tensor CapLogits(const LossHeadOptions& options, at::Tensor& logits) {
  if (options.softcap <= 0) return {};
  logits.div_(options.softcap).tanh_();
  at::Tensor slope = options.with_gradient ? 1 - logits * logits : at::Tensor();
  logits.mul_(options.softcap);
  return slope;
}

LossHeadResult LossHead(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets,
                        const LossHeadOptions& options, at::Tensor* d_weight, LossHeadAdapter* adapter) {
  const Target target(x);
  const int64_t tokens = x.size(0), vocab = weight.size(0);
  const bool rounds = StorageOf(x) == Storage::kBfloat16;
  LossHeadResult result;
  result.sums = at::zeros({2}, x.options().dtype(at::kDouble));
  if (options.with_gradient) result.dx = at::empty(x.sizes(), x.options());
  if (adapter != nullptr && options.with_gradient)
    adapter->d_thin = at::empty(adapter->thin.sizes(), adapter->thin.options());
  if (tokens == 0) {
    if (d_weight != nullptr && options.overwrite) d_weight->zero_();
    if (adapter != nullptr && adapter->d_b != nullptr && options.overwrite) adapter->d_b->zero_();
    return result;
  }
  const at::TensorOptions wide = x.options().dtype(at::kFloat);
  const int64_t chunk = options.chunk_tokens;
  at::Tensor lse = at::empty({tokens}, wide), of_target = at::empty({tokens}, wide);
  at::Tensor chunk_logits = at::empty({chunk, vocab}, wide);
  at::Tensor chunk_gradient = options.with_gradient && rounds ? at::empty({chunk, vocab}, x.options()) : chunk_logits;
  const at::Tensor weight_t = weight.t();
  for (int64_t begin = 0; begin < tokens; begin += chunk) {
    const int64_t rows = std::min(chunk, tokens - begin);
    const at::Tensor part = x.narrow(0, begin, rows);
    at::Tensor logits = chunk_logits.narrow(0, 0, rows), gradient = chunk_gradient.narrow(0, 0, rows);
    if (rounds) {
      at::mm_out(logits, part, weight_t, at::kFloat);
    } else {
      at::mm_out(logits, part, weight_t);
    }
    if (adapter != nullptr) {
      const at::Tensor thin = adapter->thin.narrow(0, begin, rows), b_t = adapter->b.t();
      logits.add_(rounds ? at::mm(thin, b_t, at::kFloat) : at::mm(thin, b_t));
    }
    const at::Tensor slope = CapLogits(options, logits);
    at::Tensor statistics = at::empty({2, rows}, wide);
    CrossEntropyArguments a;
    a.rows = rows;
    a.columns = vocab;
    a.logits = Floats(logits);
    a.first_id = options.first_id;
    a.vocab = options.combine ? options.vocab_size : vocab;
    a.targets = targets.const_data_ptr<int64_t>() + begin;
    a.scale = static_cast<float>(options.scale);
    a.z_loss = static_cast<float>(options.z_loss);
    a.lse = Floats(statistics);
    a.of_target = a.lse + rows;
    a.gradient_storage = StorageOf(gradient);
    void* const out = options.with_gradient ? Address(gradient) : nullptr;
    a.gradient = options.combine ? nullptr : out;
    LaunchCrossEntropy(a, target.stream);
    if (options.combine) {
      options.combine(statistics);
      a.lse_given = true;
      a.gradient = out;
      if (out != nullptr) LaunchCrossEntropy(a, target.stream);
    }
    lse.narrow(0, begin, rows).copy_(statistics.select(0, 0));
    of_target.narrow(0, begin, rows).copy_(statistics.select(0, 1));
    if (!options.with_gradient) continue;
    if (slope.defined()) gradient.mul_(slope);
    at::Tensor dx = result.dx.narrow(0, begin, rows);
    at::mm_out(dx, gradient, weight);
    const bool overwrite = options.overwrite && begin == 0;
    if (d_weight != nullptr) AddOuterProduct(gradient, part, *d_weight, overwrite);
    if (adapter == nullptr) continue;
    at::Tensor d_thin = adapter->d_thin.narrow(0, begin, rows);
    at::mm_out(d_thin, gradient, adapter->b);
    if (adapter->d_b != nullptr)
      AddOuterProduct(gradient, adapter->thin.narrow(0, begin, rows), *adapter->d_b, overwrite);
  }
  LaunchAddLossSums(tokens, targets.const_data_ptr<int64_t>(), Floats(lse), Floats(of_target),
                    result.sums.data_ptr<double>(), target.stream);
  return result;
}

static const UpdateDecision* DecisionAt(const at::Tensor& decision) {
  TRIREME_CHECK(decision.scalar_type() == at::kDouble && decision.numel() == kDecisionNumbers);
  return static_cast<const UpdateDecision*>(decision.const_data_ptr());
}

void DecideUpdate(const DecisionRule& rule, const at::Tensor& parts, const at::Tensor& loss_ranks,
                  const at::Tensor& norm_ranks, const at::Tensor& previous, at::Tensor& decision) {
  const Target target(parts);
  LaunchDecide(rule, parts.const_data_ptr<double>(), loss_ranks.numel(), loss_ranks.const_data_ptr<int64_t>(),
               norm_ranks.numel(), norm_ranks.const_data_ptr<int64_t>(), DecisionAt(previous),
               static_cast<UpdateDecision*>(decision.mutable_data_ptr()), target.stream);
}

void AdamWUpdate(const AdamWRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g, at::Tensor m,
                 at::Tensor v, at::Tensor copy) {
  const Target target(p);
  LaunchAdamW(rule, DecisionAt(decision), p.numel(), Floats(p), Floats(g), Floats(m), Floats(v), Bf16s(copy),
              target.stream);
}

void AdamWUpdateBf16(const AdamWRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g, at::Tensor m,
                     at::Tensor v, RandomKey key, const WholeIndex& index) {
  const Target target(p);
  LaunchAdamWBf16(rule, DecisionAt(decision), p.numel(), Bf16s(p), Floats(g), Floats(m), Floats(v), key, index,
                  target.stream);
}

void SgdUpdate(const SgdRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g, at::Tensor velocity,
               at::Tensor copy) {
  const Target target(p);
  LaunchSgd(rule, DecisionAt(decision), p.numel(), Floats(p), Floats(g), Floats(velocity), Bf16s(copy), target.stream);
}

void LionUpdate(const LionRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g, at::Tensor m,
                at::Tensor copy) {
  const Target target(p);
  LaunchLion(rule, DecisionAt(decision), p.numel(), Floats(p), Floats(g), Floats(m), Bf16s(copy), target.stream);
}

void LionUpdateBf16(const LionRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g, at::Tensor m,
                    RandomKey key, const WholeIndex& index) {
  const Target target(p);
  LaunchLionBf16(rule, DecisionAt(decision), p.numel(), Bf16s(p), Floats(g), Floats(m), key, index, target.stream);
}

void DirectionUpdate(const DirectionRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& direction,
                     at::Tensor copy) {
  const Target target(p);
  LaunchDirection(rule, DecisionAt(decision), p.numel(), Floats(p), Floats(direction), Bf16s(copy), target.stream);
}

void DirectionUpdateBf16(const DirectionRule& rule, const at::Tensor& decision, at::Tensor p,
                         const at::Tensor& direction, RandomKey key, const WholeIndex& index) {
  const Target target(p);
  LaunchDirectionBf16(rule, DecisionAt(decision), p.numel(), Bf16s(p), Floats(direction), key, index, target.stream);
}

void MuonMomentum(const MuonMomentumRule& rule, const at::Tensor& decision, const at::Tensor& g, at::Tensor mean,
                  at::Tensor out) {
  const Target target(g);
  LaunchMuonMomentum(rule, DecisionAt(decision), g.numel(), Floats(g), Floats(mean), Floats(out), target.stream);
}

void AdamW8Update(const AdamWRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g,
                  const EightBitMoments& moments, const MomentTables& tables, at::Tensor copy, RandomKey key,
                  const WholeIndex& index) {
  const Target target(p);
  const auto bytes = [](const at::Tensor& tensor) { return static_cast<uint8_t*>(tensor.data_ptr()); };
  const MomentMaps maps = {Floats(tables.first), Floats(tables.second), bytes(tables.first_codes),
                           bytes(tables.second_codes)};
  const MomentArrays own = {bytes(moments.first), bytes(moments.second), Floats(moments.first_absmax),
                            Floats(moments.second_absmax)};
  if (p.scalar_type() == at::kBFloat16) {
    LaunchAdamW8Bf16(rule, DecisionAt(decision), p.numel(), Bf16s(p), Floats(g), own, maps, key, index, target.stream);
  } else {
    LaunchAdamW8(rule, DecisionAt(decision), p.numel(), Floats(p), Floats(g), own, maps, Bf16s(copy), target.stream);
  }
}

void SquaredNorms(const std::vector<at::Tensor>& tensors, at::Tensor squares, at::Tensor total) {
  const Target target(total);
  int64_t parts = 0;
  for (const at::Tensor& x : tensors) parts = std::max(parts, SquaredNormParts(x.numel()));
  at::Tensor scratch = at::empty({parts}, total.options());
  double* sums = squares.mutable_data_ptr<double>();
  for (size_t i = 0; i < tensors.size(); ++i) {
    LaunchSquaredNorm(tensors[i].numel(), Floats(tensors[i]), scratch.mutable_data_ptr<double>(), sums + i,
                      target.stream);
  }
  LaunchAddUp(static_cast<int64_t>(tensors.size()), sums, total.mutable_data_ptr<double>(), target.stream);
}

void AddInto(at::Tensor& a, const at::Tensor& b) {
  const Target target(a);
  TRIREME_CHECK(a.scalar_type() == at::kFloat || a.scalar_type() == b.scalar_type(), "adding ",
                c10::toString(b.scalar_type()), " into ", c10::toString(a.scalar_type()));
  LaunchAdd(StorageOf(a), StorageOf(b), a.numel(), Address(a), Address(b), target.stream);
}

void DequantizeNf4(const Nf4Blocks& blocks, at::Tensor& out) {
  const Target target(out);
  LaunchNf4Dequantize(StorageOf(out), blocks, Address(out), target.stream);
}

void DequantizeMxfp4(const Mxfp4Blocks& blocks, at::Tensor& out) {
  const Target target(out);
  LaunchMxfp4Dequantize(StorageOf(out), blocks, Address(out), target.stream);
}

void DequantizeInt8Rows(const Int8Rows& rows, at::Tensor& out) {
  const Target target(out);
  LaunchInt8Dequantize(StorageOf(out), rows, Address(out), target.stream);
}

}  // namespace trireme::cuda
