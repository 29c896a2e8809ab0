// The reference: one segment and one kv head at a time, whole score matrices, plain libtorch operations.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/zeros_like.h>

#include <limits>

#include "kernels/attention/attention.h"
#include "kernels/base/ops.h"

namespace trireme {
namespace {

struct Scores {
  at::Tensor raw;     // [heads, q, k], scaled, before the soft cap
  at::Tensor capped;  // after it and the mask
  at::Tensor hidden;  // [q, k]: true where a query does not see a key
};

struct Segment {
  int64_t q_begin, q_size, k_begin, k_size;
  int64_t diagonal;  // query i sees keys up to i + diagonal
};

std::vector<Segment> Segments(const AttentionArguments& a) {
  const at::Tensor cu_q = a.cu_seqlens_q.cpu(), cu_k = a.cu_seqlens_k.cpu();
  const int32_t* q = cu_q.const_data_ptr<int32_t>();
  const int32_t* k = cu_k.const_data_ptr<int32_t>();
  const at::Tensor diagonals = a.diagonal.defined() ? a.diagonal.cpu() : a.diagonal;
  const int32_t* diagonal = diagonals.defined() ? diagonals.const_data_ptr<int32_t>() : nullptr;
  std::vector<Segment> segments;
  for (int64_t s = 0; s + 1 < cu_q.size(0); ++s) {
    const int64_t q_size = q[s + 1] - q[s], k_size = k[s + 1] - k[s];
    if (q_size == 0 && k_size == 0) continue;
    segments.push_back({q[s], q_size, k[s], k_size, diagonal == nullptr ? k_size - q_size : diagonal[s]});
  }
  return segments;
}

// [tokens, kv_heads, d] -> [heads, tokens, d], repeated per query head, in the arithmetic type.
at::Tensor HeadMajor(const at::Tensor& x, int64_t heads, int64_t begin, int64_t size) {
  at::Tensor part = x.narrow(0, begin, size).to(ArithmeticType(x.scalar_type())).transpose(0, 1);
  return x.size(1) == heads ? part : part.repeat_interleave(heads / x.size(1), 0);
}

Scores ComputeScores(const AttentionArguments& a, const Segment& s, const at::Tensor& q, const at::Tensor& k) {
  Scores scores;
  scores.raw = at::matmul(q, k.transpose(1, 2)) * a.scale;
  scores.capped = a.softcap > 0 ? at::tanh(scores.raw / a.softcap) * a.softcap : scores.raw.clone();
  const at::Tensor rows = at::arange(s.q_size, q.options().dtype(at::kLong)).unsqueeze(1) + s.diagonal;
  const at::Tensor columns = at::arange(s.k_size, q.options().dtype(at::kLong)).unsqueeze(0);
  if (a.slopes.defined()) scores.capped += a.slopes.to(q.scalar_type()).view({-1, 1, 1}) * (columns - rows);
  scores.hidden = at::zeros_like(rows - columns, at::kBool);
  if (a.causal) scores.hidden = scores.hidden.logical_or(columns > rows);
  if (a.window > 0) scores.hidden = scores.hidden.logical_or(columns <= rows - a.window);
  scores.capped.masked_fill_(scores.hidden, -std::numeric_limits<double>::infinity());
  return scores;
}

// Zero where hidden, also for a query that sees no key (its lse is -inf).
at::Tensor Probabilities(const Scores& scores, const at::Tensor& lse) {
  return at::exp(scores.capped - lse.unsqueeze(2)).masked_fill(scores.hidden, 0);
}

absl::Status MathSupports(const AttentionArguments&) { return absl::OkStatus(); }

AttentionOutput MathForward(const AttentionArguments& a) {
  const int64_t heads = a.q.size(1);
  AttentionOutput output;
  output.out = at::empty({a.q.size(0), heads, a.v.size(2)}, a.q.options());
  output.lse = at::empty({heads, a.q.size(0)}, a.q.options().dtype(ArithmeticType(a.q.scalar_type())));
  for (const Segment& s : Segments(a)) {
    const at::Tensor q = HeadMajor(a.q, heads, s.q_begin, s.q_size);
    const at::Tensor k = HeadMajor(a.k, heads, s.k_begin, s.k_size), v = HeadMajor(a.v, heads, s.k_begin, s.k_size);
    const Scores scores = ComputeScores(a, s, q, k);
    const at::Tensor lse = at::logsumexp(scores.capped, 2);
    output.out.narrow(0, s.q_begin, s.q_size).copy_(at::matmul(Probabilities(scores, lse), v).transpose(0, 1));
    output.lse.narrow(1, s.q_begin, s.q_size).copy_(lse);
  }
  return output;
}

void MathBackward(const AttentionArguments& a, const AttentionOutput& output, const at::Tensor& d_out,
                  AttentionGradients& gradients) {
  const int64_t heads = a.q.size(1), kv_heads = a.k.size(1);
  for (const Segment& s : Segments(a)) {
    const at::Tensor q = HeadMajor(a.q, heads, s.q_begin, s.q_size);
    const at::Tensor k = HeadMajor(a.k, heads, s.k_begin, s.k_size), v = HeadMajor(a.v, heads, s.k_begin, s.k_size);
    const at::Tensor out = HeadMajor(output.out, heads, s.q_begin, s.q_size),
                     dy = HeadMajor(d_out, heads, s.q_begin, s.q_size);
    const Scores scores = ComputeScores(a, s, q, k);
    const at::Tensor p = Probabilities(scores, output.lse.narrow(1, s.q_begin, s.q_size));
    const at::Tensor delta = (out * dy).sum(2, /*keepdim=*/true);
    at::Tensor ds = p * (at::matmul(dy, v.transpose(1, 2)) - delta);
    if (a.softcap > 0) {
      const at::Tensor t = at::tanh(scores.raw / a.softcap);
      ds = ds * (1 - t * t);
    }
    ds = ds * a.scale;
    const auto sum_groups = [&](const at::Tensor& x) {  // [heads, k, d] -> [k, kv_heads, d]
      return x.reshape({kv_heads, heads / kv_heads, s.k_size, x.size(2)}).sum(1).transpose(0, 1);
    };
    gradients.dq.narrow(0, s.q_begin, s.q_size).copy_(at::matmul(ds, k).transpose(0, 1));
    gradients.dk.narrow(0, s.k_begin, s.k_size).copy_(sum_groups(at::matmul(ds.transpose(1, 2), q)));
    gradients.dv.narrow(0, s.k_begin, s.k_size).copy_(sum_groups(at::matmul(p.transpose(1, 2), dy)));
  }
}

}  // namespace

const AttentionBackend& MathAttention() {
  static const AttentionBackend backend = {"math", &MathSupports, &MathForward, &MathBackward};
  return backend;
}

}  // namespace trireme
