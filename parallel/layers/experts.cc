#include "parallel/layers/experts.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/experts/chosen_rows.h"
#include "kernels/experts/grouped.h"
#include "parallel/layers/adapter.h"
#include "parallel/layers/autograd.h"

namespace trireme {
namespace {

// x [t, H] -> x weight^T + bias in the arithmetic type, on each rank's own rows.
struct LocalLinearFunction : torch::autograd::Function<LocalLinearFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, Weight* weight, Weight* bias) {
    context->saved_data["weight"] = Pack(weight);
    context->saved_data["bias"] = Pack(bias);
    context->save_for_backward({x});
    const at::ScalarType type = ArithmeticType(x.scalar_type());
    at::Tensor y = MatmulTransposed(x.to(type), weight->full().data.to(type));
    if (bias != nullptr) y.add_(bias->full().data.to(type));
    return y;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const at::Tensor x = context->get_saved_variables()[0], dy = gradients[0].contiguous();
    Weight& weight = Saved<Weight>(context, "weight");
    AddBiasGradient(SavedPointer<Weight>(context, "bias"), dy);
    if (weight.trainable()) {
      weight.AddGradient([dy, x](at::Tensor& accumulator, bool overwrite) {
        AddOuterProduct(dy, x.to(dy.scalar_type()), accumulator, overwrite);
      });
    }
    const at::Tensor dx = Matmul(dy, weight.full().data.to(dy.scalar_type()));
    return {dx.to(x.scalar_type()), at::Tensor(), at::Tensor()};
  }
};

// Scores outside the best groups become -infinity; a group is as good as its best expert, or its best two.
at::Tensor WithinGroups(const at::Tensor& scores, const RoutingRule& rule) {
  if (rule.groups == 1) return scores;
  const at::Tensor grouped = scores.view({scores.size(0), rule.groups, rule.experts / rule.groups});
  const int64_t best = rule.score == RoutingRule::kSigmoid ? 2 : 1;
  const at::Tensor of_group = std::get<0>(at::topk(grouped, std::min(best, grouped.size(2)), 2)).sum(2);
  at::Tensor hidden = at::ones({scores.size(0), rule.groups}, scores.options().dtype(at::kBool));
  hidden.scatter_(1, LargestOfRows(of_group, rule.chosen_groups), false);
  return grouped.masked_fill(hidden.unsqueeze(2), -std::numeric_limits<double>::infinity()).view(scores.sizes());
}

at::Tensor Choose(const at::Tensor& scores, Weight* correction, const RoutingRule& rule) {
  at::NoGradGuard no_grad;
  at::Tensor by = scores.detach();
  if (correction != nullptr) by = by + correction->full().data.to(by.scalar_type());
  return LargestOfRows(WithinGroups(by, rule), rule.per_token);
}

// Which rows travel where, as this rank needs it. Made once per microbatch and layer, on the host.
struct Dispatch {
  at::Tensor order, place;        // [n]: the n = t x per_token choices by expert, and where each stands among them
  std::vector<int64_t> to, from;  // rows to each rank of the group, and from it
  // [R]: rows as they lie by expert here, as indices into those received, and the other way. Undefined: they are equal.
  at::Tensor arrival, departure;
  ExpertOffsets offsets;  // of the rows by expert
  int64_t received() const { return offsets.back(); }
};

at::Tensor OnDevice(const std::vector<int64_t>& values, at::Device device) {
  const auto n = static_cast<int64_t>(values.size());
  return at::from_blob(const_cast<int64_t*>(values.data()), {n}, at::TensorOptions().dtype(at::kLong))
      .clone()
      .to(device);
}

Dispatch MakeDispatch(const at::Tensor& indices, int64_t experts, ProcessGroup& group) {
  const at::Tensor host = indices.reshape({-1}).cpu().contiguous();
  const Grouping grouping = GroupStably(host.const_data_ptr<int64_t>(), host.numel(), experts);
  const int64_t ranks = group.size(), local = experts / ranks;
  Dispatch plan;
  plan.order = OnDevice(grouping.order, indices.device());
  plan.place = OnDevice(grouping.place, indices.device());
  if (ranks == 1) {
    plan.offsets = grouping.offsets;
    return plan;
  }
  const auto count = [&](int64_t e) {
    return grouping.offsets[static_cast<size_t>(e) + 1] - grouping.offsets[static_cast<size_t>(e)];
  };
  at::Tensor sent = at::empty({experts}, at::TensorOptions().dtype(at::kLong));
  for (int64_t e = 0; e < experts; ++e) sent.mutable_data_ptr<int64_t>()[e] = count(e);
  // [ranks, local]: how many rows each rank has for each expert of this one.
  at::Tensor out = sent.to(indices.device()), in = at::empty_like(out);
  group.AllToAll(in, out).Wait();
  const at::Tensor arriving = in.cpu();
  const int64_t* number = arriving.const_data_ptr<int64_t>();
  plan.to.assign(static_cast<size_t>(ranks), 0);
  plan.from.assign(static_cast<size_t>(ranks), 0);
  for (int64_t e = 0; e < experts; ++e) plan.to[static_cast<size_t>(e / local)] += count(e);
  for (int64_t i = 0; i < experts; ++i) plan.from[static_cast<size_t>(i / local)] += number[i];
  // Rows come rank by rank, each rank's by expert; experts take them in the order of ranks.
  std::vector<int64_t> begin(static_cast<size_t>(experts));
  for (int64_t i = 1; i < experts; ++i)
    begin[static_cast<size_t>(i)] = begin[static_cast<size_t>(i) - 1] + number[i - 1];
  std::vector<int64_t> arrival, departure(static_cast<size_t>(begin.back() + number[experts - 1]));
  plan.offsets = {0};
  for (int64_t e = 0; e < local; ++e) {
    for (int64_t rank = 0; rank < ranks; ++rank) {
      const int64_t i = rank * local + e;
      for (int64_t row = begin[static_cast<size_t>(i)], end = row + number[i]; row < end; ++row) {
        departure[static_cast<size_t>(row)] = static_cast<int64_t>(arrival.size());
        arrival.push_back(row);
      }
    }
    plan.offsets.push_back(static_cast<int64_t>(arrival.size()));
  }
  plan.arrival = OnDevice(arrival, indices.device());
  plan.departure = OnDevice(departure, indices.device());
  return plan;
}

// Rows [sum of send, width] to the ranks they are for; back: the other way. Collective.
at::Tensor Travel(const Dispatch& plan, const at::Tensor& rows, ProcessGroup& group, bool back) {
  if (group.size() == 1) return rows;
  const std::vector<int64_t>&send = back ? plan.from : plan.to, &receive = back ? plan.to : plan.from;
  int64_t total = 0;
  for (const int64_t n : receive) total += n;
  at::Tensor arrived = at::empty({total, rows.size(1)}, rows.options());
  std::vector<PeerTransfer> transfers;
  int64_t sent = 0, got = 0;
  for (int rank = 0; rank < group.size(); ++rank) {
    const int64_t out = send[static_cast<size_t>(rank)], in = receive[static_cast<size_t>(rank)];
    const at::Tensor from = rows.narrow(0, sent, out), to = arrived.narrow(0, got, in);
    if (rank == group.rank()) {
      to.copy_(from);
    } else {
      if (out > 0) transfers.push_back({PeerTransfer::kSend, from, rank});
      if (in > 0) transfers.push_back({PeerTransfer::kReceive, to, rank});
    }
    sent += out;
    got += in;
  }
  group.Exchange(std::move(transfers)).Wait();
  return arrived;
}

// What the choices of x's tokens are [t, width], `per_token` each -> rows by expert [R, width] where the experts are.
ExpertRows ToExperts(const Dispatch& plan, const at::Tensor& x, int64_t per_token, ProcessGroup& group) {
  if (group.size() == 1) return {x, plan.order, per_token};
  return {Travel(plan, TakeRows(x, plan.order, per_token), group, /*back=*/false), plan.arrival, 1};
}

// Rows by expert -> a row for each choice, in the order of `order`. What is given up is freed before rows travel.
at::Tensor FromExperts(const Dispatch& plan, at::Tensor by_expert, ProcessGroup& group) {
  if (plan.departure.defined()) by_expert = TakeRows(by_expert, plan.departure);
  return Travel(plan, by_expert.contiguous(), group, /*back=*/true);
}

// What is added to each row [R, N]: its expert's bias.
at::Tensor BiasRows(const Weight& bias, const ExpertOffsets& offsets, at::ScalarType type) {
  std::vector<int64_t> expert_of_row;
  for (size_t e = 0; e + 1 < offsets.size(); ++e)
    expert_of_row.insert(expert_of_row.end(), static_cast<size_t>(offsets[e + 1] - offsets[e]),
                         static_cast<int64_t>(e));
  const at::Tensor all = bias.full().data.view({static_cast<int64_t>(offsets.size()) - 1, -1}).to(type);
  return TakeRows(all, OnDevice(expert_of_row, all.device()));
}

// Hands each expert's bias the sum of its rows' gradients [R, N]; bias may be null.
void AddBiasGradients(Weight* bias, const at::Tensor& d_rows, const ExpertOffsets& offsets) {
  if (bias == nullptr || !bias->trainable()) return;
  const auto experts = static_cast<int64_t>(offsets.size()) - 1;
  const at::Tensor sums =
      at::zeros({experts, d_rows.size(1)}, d_rows.options().dtype(ArithmeticType(d_rows.scalar_type())));
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t begin = offsets[static_cast<size_t>(e)], end = offsets[static_cast<size_t>(e) + 1];
    if (begin < end)
      sums.select(0, e).copy_(at::sum(d_rows.narrow(0, begin, end - begin), {0}, false, sums.scalar_type()));
  }
  AddVectorGradient(*bias, sums.view({-1}));
}

// ---- Products with the matrices of experts and, where these have them, their adapters: each its own A and B ----

// The only member of an adapter of experts; null: there is no adapter.
const AdapterMember* MemberOf(const Weight& weight) {
  return weight.adapter() == nullptr ? nullptr : &weight.adapter()->members.front();
}
bool WantsInput(const Weight& weight) { return weight.trainable() || weight.adapter() != nullptr; }

// body(expert, its first row, its rows, its matrix) for each expert that has rows, of weights that are dequantized one
// expert at a time.
template <typename Body>
void EachExpert(const Weight& weight, int64_t matrix_rows, const ExpertOffsets& offsets, const Body& body) {
  for (size_t e = 0; e + 1 < offsets.size(); ++e) {
    const int64_t begin = offsets[e], size = offsets[e + 1] - begin;
    if (size > 0) body(begin, size, weight.Rows(static_cast<int64_t>(e) * matrix_rows, matrix_rows));
  }
}

// rows W^T of each expert [R, n]; dy W.
at::Tensor PlainProduct(const Weight& weight, int64_t n, const ExpertRows& rows, const ExpertOffsets& offsets) {
  if (weight.at_hand()) return GroupedMatmulTransposed(rows, weight.full().data, offsets);
  at::Tensor y = at::empty({rows.rows(), n}, rows.x.options());
  EachExpert(weight, n, offsets, [&](int64_t begin, int64_t size, const at::Tensor& matrix) {
    y.narrow(0, begin, size).copy_(MatmulTransposed(rows.Part(begin, size), matrix));
  });
  return y;
}
at::Tensor PlainInputGradient(const Weight& weight, int64_t k, const ExpertRows& dy, const ExpertOffsets& offsets) {
  if (weight.at_hand()) return GroupedMatmul(dy, weight.full().data, offsets);
  at::Tensor dx = at::empty({dy.rows(), k}, dy.x.options());
  EachExpert(weight, dy.width(), offsets, [&](int64_t begin, int64_t size, const at::Tensor& matrix) {
    dx.narrow(0, begin, size).copy_(Matmul(dy.Part(begin, size), matrix));
  });
  return dx;
}

// rows (W + s B A)^T of each expert [R, n].
at::Tensor GroupedProduct(const Weight& weight, int64_t n, const ExpertRows& rows, const ExpertOffsets& offsets) {
  at::Tensor y = PlainProduct(weight, n, rows, offsets);
  const AdapterMember* member = MemberOf(weight);
  if (member == nullptr) return y;
  const at::Tensor thin = GroupedMatmulTransposed(rows, weight.adapter()->a->full().data, offsets) * member->scale;
  return y.add_(GroupedMatmulTransposed(thin, member->b->full().data, offsets));
}

// dy s B, for A's gradient and its share of the input's.
at::Tensor ThinGradient(const AdapterMember& member, const ExpertRows& dy, const ExpertOffsets& offsets) {
  return GroupedMatmul(dy, member.b->full().data, offsets) * member.scale;
}

at::Tensor GroupedInputGradient(const Weight& weight, int64_t k, const ExpertRows& dy, const ExpertOffsets& offsets) {
  at::Tensor dx = PlainInputGradient(weight, k, dy, offsets);
  const AdapterMember* member = MemberOf(weight);
  if (member == nullptr) return dx;
  return dx.add_(GroupedMatmul(ThinGradient(*member, dy, offsets), weight.adapter()->a->full().data, offsets));
}

void AddGroupedGradients(Weight& weight, const ExpertRows& dy, const ExpertRows& rows, const ExpertOffsets& offsets) {
  const auto hand = [&offsets](Weight& to, const ExpertRows& d_out, const ExpertRows& in) {
    to.AddGradient([d_out, in, offsets](at::Tensor& accumulator, bool overwrite) {
      AddGroupedOuterProducts(d_out, in, offsets, accumulator, overwrite);
    });
  };
  if (weight.trainable()) hand(weight, dy, rows);
  const AdapterMember* member = MemberOf(weight);
  if (member == nullptr) return;
  Weight& a = *weight.adapter()->a;
  hand(*member->b, dy, GroupedMatmulTransposed(rows, a.full().data, offsets) * member->scale);
  hand(a, ThinGradient(*member, dy, offsets), rows);
}

struct RunExpertsFunction : torch::autograd::Function<RunExpertsFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weights,
                            const at::Tensor& indices, const ExpertWeights& w, const ExpertGate& gate,
                            ProcessGroup* group) {
    const int64_t per_token = indices.size(1);
    auto* plan = new Dispatch(MakeDispatch(indices, w.local_experts * group->size(), *group));
    // Lives as long as the graph does.
    const at::Tensor keeper = at::from_blob(
        plan, {1}, [plan](void*) { delete plan; }, at::TensorOptions().dtype(at::kByte));
    const at::Tensor own = ToExperts(*plan, weights.reshape({-1, 1}), 1, *group).All();  // [R, 1]
    at::Tensor gate_up = GroupedProduct(*w.gate_up, 2 * w.width, ToExperts(*plan, x, per_token, *group), plan->offsets);
    if (w.gate_up_bias != nullptr) gate_up.add_(BiasRows(*w.gate_up_bias, plan->offsets, gate_up.scalar_type()));
    at::Tensor made = GroupedProduct(*w.down, x.size(1), ExpertGateForward(gate_up, own, gate), plan->offsets);
    if (w.down_bias != nullptr) made.add_(Weighted(BiasRows(*w.down_bias, plan->offsets, made.scalar_type()), own));
    const at::Tensor out = SumOfChoices(FromExperts(*plan, std::move(made), *group), plan->place, per_token);
    context->saved_data["gate_up"] = Pack(w.gate_up);
    context->saved_data["down"] = Pack(w.down);
    context->saved_data["gate_up_bias"] = Pack(w.gate_up_bias);
    context->saved_data["down_bias"] = Pack(w.down_bias);
    context->saved_data["group"] = Pack(group);
    context->saved_data["plan"] = Pack(plan);
    context->saved_data["activation"] = static_cast<int64_t>(gate.activation);
    if (gate.clamped.has_value())
      context->saved_data["clamped"] = std::vector<double>{gate.clamped->alpha, gate.clamped->limit};
    context->saved_data["per_token"] = per_token;
    context->save_for_backward({x, own, gate_up, keeper});
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &own = saved[1], &gate_up = saved[2];
    const Dispatch& plan = Saved<Dispatch>(context, "plan");
    ProcessGroup& group = Saved<ProcessGroup>(context, "group");
    Weight &w_gate_up = Saved<Weight>(context, "gate_up"), &w_down = Saved<Weight>(context, "down");
    Weight* down_bias = SavedPointer<Weight>(context, "down_bias");
    const ExpertGate gate = SavedGate(context);
    const int64_t per_token = context->saved_data.at("per_token").toInt();
    const at::Tensor d_out = gradients[0].contiguous();
    // The weight multiplied what was activated: no output of an expert is kept for its gradient.
    ExpertGateGradients made = [&] {
      const ExpertRows d_made = ToExperts(plan, d_out, per_token, group);
      ExpertGateGradients result = ExpertGateBackward(
          gate_up, own, GroupedInputGradient(w_down, gate_up.size(1) / 2, d_made, plan.offsets), gate);
      if (WantsInput(w_down)) AddGroupedGradients(w_down, d_made, result.out, plan.offsets);
      result.out.reset();
      if (down_bias != nullptr) {
        const at::Tensor d_rows = d_made.All();
        AddBiasGradients(down_bias, d_rows * own, plan.offsets);
        result.weights.add_(
            at::sum(d_rows * BiasRows(*down_bias, plan.offsets, own.scalar_type()), {1}, /*keepdim=*/true));
      }
      return result;
    }();
    AddBiasGradients(SavedPointer<Weight>(context, "gate_up_bias"), made.gate_up, plan.offsets);
    // Rows travel again rather than being kept.
    if (WantsInput(w_gate_up))
      AddGroupedGradients(w_gate_up, made.gate_up, ToExperts(plan, x, per_token, group), plan.offsets);
    at::Tensor d_rows = GroupedInputGradient(w_gate_up, x.size(1), made.gate_up, plan.offsets);
    made.gate_up.reset();
    const at::Tensor dx = SumOfChoices(FromExperts(plan, std::move(d_rows), group), plan.place, per_token);
    const at::Tensor d_weights = TakeRows(FromExperts(plan, made.weights, group), plan.place).view({-1, per_token});
    return {dx, d_weights, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }

 private:
  static at::Tensor Weighted(const at::Tensor& rows, const at::Tensor& own) {
    return (rows * own).to(rows.scalar_type());
  }
  static ExpertGate SavedGate(const AutogradContext* context) {
    ExpertGate gate;
    gate.activation = static_cast<Activation>(context->saved_data.at("activation").toInt());
    if (const auto found = context->saved_data.find("clamped"); found != context->saved_data.end()) {
      const std::vector<double> numbers = found->second.toDoubleVector();
      gate.clamped = ClampedGate{numbers[0], numbers[1]};
    }
    return gate;
  }
};

}  // namespace

Routing Route(const at::Tensor& rows, Weight& gate, Weight* gate_bias, Weight* correction, const RoutingRule& rule,
              KeptResults* kept) {
  const at::Tensor logits = LocalLinearFunction::apply(rows, &gate, gate_bias);
  at::Tensor scores = logits;
  if (rule.score == RoutingRule::kSoftmax) scores = at::softmax(logits, 1);
  if (rule.score == RoutingRule::kSigmoid) scores = at::sigmoid(logits);
  Routing routing;
  routing.logits = logits;
  routing.indices =
      TakeKept(kept, kKeepRouting, [&] { return std::vector<at::Tensor>{Choose(scores, correction, rule)}; })[0];
  routing.shares = rule.score == RoutingRule::kSoftmax   ? scores
                   : rule.score == RoutingRule::kSigmoid ? scores / scores.sum(1, /*keepdim=*/true)
                                                         : at::softmax(logits, 1);
  at::Tensor weights = at::gather(scores, 1, routing.indices);
  if (rule.score == RoutingRule::kSoftmaxAfter) weights = at::softmax(weights, 1);
  if (rule.renormalize) weights = weights / (weights.sum(1, /*keepdim=*/true) + rule.epsilon);
  routing.weights = rule.scale == 1 ? weights : weights * rule.scale;
  return routing;
}

at::Tensor RouterLogits(const at::Tensor& rows, Weight& weight) {
  return LocalLinearFunction::apply(rows, &weight, static_cast<Weight*>(nullptr));
}

at::Tensor RunExperts(const at::Tensor& rows, const Routing& routing, const ExpertWeights& weights,
                      const ExpertGate& gate, ProcessGroup& expert) {
  return RunExpertsFunction::apply(rows, routing.weights, routing.indices, weights, gate, &expert);
}

}  // namespace trireme
