// The two operations whose weight rows are a vocabulary, cut over tensor ranks.
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/bitwise_and.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "parallel/layers/adapter.h"
#include "parallel/layers/autograd.h"
#include "parallel/layers/functions.h"
#include "parallel/layers/token_split.h"

namespace trireme {
namespace {

// The tokens whose rows this rank holds, as indices into them; others are row 0 and are to be masked.
struct LocalTokens {
  at::Tensor ids;      // [T]
  at::Tensor foreign;  // [T, 1] bool; undefined where all are this rank's
};
LocalTokens Localize(const at::Tensor& tokens, int64_t first_row, int64_t rows, ProcessGroup& tensor) {
  if (tensor.size() == 1) return {tokens, {}};
  const at::Tensor ids = tokens.sub(first_row);
  const at::Tensor foreign = ids.lt(0).logical_or(ids.ge(rows));
  return {ids.masked_fill(foreign, 0), foreign.unsqueeze(1)};
}

double RoundedTo(at::ScalarType dtype, double value) {
  return dtype == at::kBFloat16 ? static_cast<float>(c10::BFloat16(static_cast<float>(value)))
         : dtype == at::kFloat  ? static_cast<float>(value)
                                : value;
}

struct EmbeddingFunction : torch::autograd::Function<EmbeddingFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& anchor, const at::Tensor& tokens,
                            Weight* weight, ProcessGroup* tensor, double scale) {
    context->saved_data["scale"] = scale;
    context->saved_data["weight"] = Pack(weight);
    context->saved_data["tensor"] = Pack(tensor);
    context->save_for_backward({tokens});
    const Gathered part = weight->full();
    context->saved_data["first_row"] = part.first_row;
    if (part.data.size(0) == 0)
      return ReduceRows(*tensor, at::zeros({tokens.size(0), part.data.size(1)}, part.data.options()));
    const LocalTokens local = Localize(tokens, part.first_row, part.data.size(0), *tensor);
    at::Tensor out = EmbeddingForward(local.ids, part.data);
    if (local.foreign.defined()) out.masked_fill_(local.foreign, 0);
    if (scale != 1) out.mul_(RoundedTo(out.scalar_type(), scale));
    return ReduceRows(*tensor, out);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    Weight& weight = Saved<Weight>(context, "weight");
    if (weight.trainable()) {
      ProcessGroup& tensor = Saved<ProcessGroup>(context, "tensor");
      weight.AddGradient([&tensor, tokens = context->get_saved_variables()[0], d_part = gradients[0].contiguous(),
                          first_row = context->saved_data.at("first_row").toInt(),
                          scale = context->saved_data.at("scale").toDouble()](at::Tensor& accumulator, bool overwrite) {
        if (overwrite) accumulator.zero_();
        at::Tensor dy = GatherRows(tensor, d_part);
        if (scale != 1) dy = dy * RoundedTo(dy.scalar_type(), scale);
        AddEmbeddingGradient(tensor.size() == 1 ? tokens : tokens.sub(first_row), dy, accumulator);
      });
    }
    return {at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

struct CrossEntropyFunction : torch::autograd::Function<CrossEntropyFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& dx) {
    context->save_for_backward({dx});
    return at::zeros({}, x.options());
  }
  // The gradient was computed in forward and already carries its scale: the seed's gradient is one by contract.
  static variable_list backward(AutogradContext* context, variable_list) {
    return {context->get_saved_variables()[0], at::Tensor()};
  }
};

// The parts' [2, rows] (lse; logit of the target, 0 elsewhere) -> those of the whole vocabulary, in rank order.
void CombineStatistics(ProcessGroup& tensor, at::Tensor& statistics) {
  at::Tensor all = at::empty({tensor.size(), 2, statistics.size(1)}, statistics.options());
  tensor.AllGather(all, statistics).Wait();
  statistics.select(0, 0).copy_(at::logsumexp(all.select(1, 0), {0}));
  statistics.select(0, 1).copy_(at::sum(all.select(1, 1), {0}));
}

// The loss head of a frozen weight with an adapter, whose gradients are handed over. numbers: of x's rows, for dropout.
LossHeadResult AdaptedLossHead(const Adapter& adapter, const at::Tensor& x, const at::Tensor& weight,
                               const at::Tensor& targets, const at::Tensor& numbers, LossHeadOptions options) {
  const AdapterMember& member = adapter.members.front();
  const at::Tensor a = adapter.a->full().data, input = AdapterInput(adapter, x, numbers);
  LossHeadAdapter added;
  added.thin = MatmulTransposed(input, a) * member.scale;
  added.b = member.b->full().data;
  if (!options.with_gradient) return LossHead(x, weight, targets, options, nullptr, &added);
  LossHeadResult result;
  member.b->AddGradient([&](at::Tensor& accumulator, bool overwrite) {
    options.overwrite = overwrite;
    added.d_b = &accumulator;
    result = LossHead(x, weight, targets, options, nullptr, &added);
  });
  const at::Tensor d_thin = (added.d_thin * member.scale).to(x.scalar_type());
  AddInto(result.dx, AdapterInput(adapter, Matmul(d_thin, a), numbers));
  adapter.a->AddGradient(
      [&](at::Tensor& accumulator, bool overwrite) { AddOuterProduct(d_thin, input, accumulator, overwrite); });
  return result;
}

// The loss head of a matrix with a bias, which is one more column beside those of an adapter: ones [n, 1] times bias^T.
// Gradients are handed over.
LossHeadResult BiasedLossHead(Weight& weight, Weight& bias, const at::Tensor& x, const at::Tensor& targets,
                              const at::Tensor& numbers, LossHeadOptions options) {
  const Adapter* adapter = weight.adapter();
  const AdapterMember* member = adapter == nullptr ? nullptr : &adapter->members.front();
  LossHeadAdapter added;
  added.thin = at::ones({x.size(0), 1}, x.options());
  added.b = bias.full().data.unsqueeze(1);
  at::Tensor input;
  if (member != nullptr) {
    input = AdapterInput(*adapter, x, numbers);
    added.thin = at::cat({MatmulTransposed(input, adapter->a->full().data) * member->scale, added.thin}, 1);
    added.b = at::cat({member->b->full().data, added.b}, 1);
  }
  at::Tensor d_b = at::zeros(added.b.sizes(), added.b.options().dtype(ArithmeticType(x.scalar_type())));
  added.d_b = &d_b;
  LossHeadResult result;
  const auto run = [&](at::Tensor* d_weight) {
    result = LossHead(x, weight.full().data, targets, options, d_weight, &added);
  };
  if (!options.with_gradient) {
    run(nullptr);
    return result;
  }
  if (member == nullptr && weight.trainable()) {
    weight.AddGradient([&](at::Tensor& accumulator, bool overwrite) {
      options.overwrite = overwrite;
      run(&accumulator);
    });
  } else {
    run(nullptr);
  }
  const auto columns = [](Weight& to, const at::Tensor& gradient) {
    to.AddGradient([&](at::Tensor& accumulator, bool overwrite) {
      if (overwrite) accumulator.zero_();
      accumulator.add_(gradient.view_as(accumulator));
    });
  };
  const int64_t rank = added.b.size(1) - 1;
  if (bias.trainable()) columns(bias, d_b.narrow(1, rank, 1).contiguous());
  if (member == nullptr) return result;
  columns(*member->b, d_b.narrow(1, 0, rank).contiguous());
  const at::Tensor d_thin = (added.d_thin.narrow(1, 0, rank) * member->scale).to(x.scalar_type());
  AddInto(result.dx, AdapterInput(*adapter, Matmul(d_thin, adapter->a->full().data), numbers));
  adapter->a->AddGradient(
      [&](at::Tensor& accumulator, bool overwrite) { AddOuterProduct(d_thin, input, accumulator, overwrite); });
  return result;
}

}  // namespace

at::Tensor Embedding(const at::Tensor& tokens, Weight& weight, ProcessGroup& tensor, const at::Tensor& anchor,
                     double scale) {
  return EmbeddingFunction::apply(anchor, tokens, &weight, &tensor, scale);
}

at::Tensor Logits(const at::Tensor& x, Weight& weight, Weight* bias, int64_t vocab_size, const at::Tensor& wanted,
                  ProcessGroup& tensor) {
  at::NoGradGuard no_grad;
  const at::Tensor rows = GatherRows(tensor, x).index_select(0, wanted);
  const Gathered part = weight.full();
  const auto multiplied = [&] {
    const at::Tensor y = MultiplyTransposed(weight, rows, at::Tensor(), nullptr).y;
    return bias == nullptr ? y : y + bias->full().data;
  };
  if (tensor.size() == 1) return multiplied().to(at::kFloat);
  // Each column is one rank's and zero elsewhere: the sum moves it unchanged.
  at::Tensor logits = at::zeros({wanted.size(0), vocab_size}, rows.options().dtype(at::kFloat));
  if (part.data.size(0) > 0) logits.narrow(1, part.first_row, part.data.size(0)).copy_(multiplied());
  tensor.AllReduce(logits, ReduceOp::kSum).Wait();
  return logits;
}

HeadLoss CrossEntropyHead(const at::Tensor& x, Weight& weight, Weight* bias, int64_t vocab_size,
                          const at::Tensor& all_targets, const at::Tensor& with_target, ProcessGroup& tensor,
                          const LossHeadOptions& given) {
  HeadLoss loss;
  at::Tensor dx;
  {
    at::NoGradGuard no_grad;
    const at::Tensor all_rows = GatherRows(tensor, x.detach());
    const auto chosen = [&](const at::Tensor& all) {
      return with_target.defined() ? all.index_select(0, with_target) : all;
    };
    const at::Tensor rows = chosen(all_rows), targets = chosen(all_targets);
    const Gathered part = weight.full();
    LossHeadOptions options = given;
    options.chunk_tokens = std::min(options.chunk_tokens, all_rows.size(0));
    if (tensor.size() > 1) {
      options.first_id = part.first_row;
      options.vocab_size = vocab_size;
      options.combine = [&tensor](at::Tensor& statistics) { CombineStatistics(tensor, statistics); };
    }
    LossHeadResult result;
    const Adapter* adapter = weight.adapter();
    const at::Tensor numbers = adapter != nullptr && adapter->tokens.defined() ? chosen(adapter->tokens) : at::Tensor();
    if (bias != nullptr) {
      result = BiasedLossHead(weight, *bias, rows, targets, numbers, options);
    } else if (adapter != nullptr) {
      result = AdaptedLossHead(*adapter, rows, part.data, targets, numbers, options);
    } else if (options.with_gradient && weight.trainable()) {
      weight.AddGradient([&](at::Tensor& accumulator, bool overwrite) {
        options.overwrite = overwrite;
        result = LossHead(rows, part.data, targets, options, &accumulator);
      });
    } else {
      result = LossHead(rows, part.data, targets, options, nullptr);
    }
    loss.sums = result.sums;
    if (options.with_gradient) {
      const at::Tensor all_dx =
          with_target.defined() ? at::zeros_like(all_rows).index_copy_(0, with_target, result.dx) : result.dx;
      dx = ReduceRows(tensor, all_dx);
    }
  }
  if (given.with_gradient) loss.seed = CrossEntropyFunction::apply(x, dx);
  return loss;
}

}  // namespace trireme
