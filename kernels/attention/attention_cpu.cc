// Blocked attention for CPUs (the online softmax of arXiv 2205.14135). One task is one query head of one segment, so
// nothing is shared between threads; keys and values are read in place from the packed projection.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/base/ops.h"
#include "kernels/cpu/dispatch_dtype.h"
#include "kernels/matrix/gemm.h"

namespace trireme {
namespace {

constexpr int64_t kQueryBlock = 64;
constexpr int64_t kKeyBlock = 512;

// A [tokens, heads, head_dim] tensor seen from one head.
template <typename C>
struct Heads {
  C* data;
  int64_t token_stride, head_stride;
  explicit Heads(const at::Tensor& x) : data(Data<C>(x)), token_stride(x.stride(0)), head_stride(x.stride(1)) {}
  C* At(int64_t token, int64_t head) const { return data + token * token_stride + head * head_stride; }
};

struct Task {
  int64_t head, q_begin, q_size, k_begin, k_size;
  int64_t diagonal;  // query i sees keys up to i + diagonal
};

// Longest first: threads take tasks as they become free.
std::vector<Task> Tasks(const AttentionArguments& a) {
  const int32_t* q = a.cu_seqlens_q.const_data_ptr<int32_t>();
  const int32_t* k = a.cu_seqlens_k.const_data_ptr<int32_t>();
  const int32_t* diagonal = a.diagonal.defined() ? a.diagonal.const_data_ptr<int32_t>() : nullptr;
  std::vector<Task> tasks;
  for (int64_t s = 0; s + 1 < a.cu_seqlens_q.size(0); ++s) {
    if (q[s + 1] == q[s] && k[s + 1] == k[s]) continue;
    const int64_t q_size = q[s + 1] - q[s], k_size = k[s + 1] - k[s];
    for (int64_t head = 0; head < a.q.size(1); ++head)
      tasks.push_back({head, q[s], q_size, k[s], k_size, diagonal == nullptr ? k_size - q_size : diagonal[s]});
  }
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& x, const Task& y) { return x.q_size > y.q_size; });
  return tasks;
}

// Keys that queries [q0, q0 + rows) of a segment can see: [begin, end).
struct KeyRange {
  int64_t begin, end;
};
KeyRange VisibleKeys(const AttentionArguments& a, const Task& t, int64_t q0, int64_t rows) {
  const int64_t end = a.causal ? std::min(t.k_size, q0 + rows + t.diagonal) : t.k_size;
  const int64_t begin = a.window > 0 ? std::max<int64_t>(0, q0 + t.diagonal + 1 - a.window) : 0;
  return {begin / kKeyBlock * kKeyBlock, std::max<int64_t>(end, 0)};
}

// Those that any query of the segment sees.
KeyRange AllVisibleKeys(const AttentionArguments& a, const Task& t) {
  return {VisibleKeys(a, t, 0, 1).begin, VisibleKeys(a, t, t.q_size - 1, 1).end};
}

// What the row loops need: how many keys of the block starting at k0 row 0 sees.
int64_t FirstLimit(const AttentionArguments& a, const Task& t, int64_t q0, int64_t k0) {
  return a.causal ? q0 + t.diagonal + 1 - k0 : int64_t{1} << 40;
}

// What is left to multiply scores by once the soft cap, which takes the scale in, is applied.
double ScaleAfterCap(const AttentionArguments& a) { return a.softcap > 0 ? 1 : a.scale; }
double ScaleAfterSlopes(const AttentionArguments& a) { return a.slopes.defined() ? 1 : ScaleAfterCap(a); }

// Scores scaled, with ALiBi's falling by distance: key k0 + c of query q0 + r.
template <typename C>
void AddSlopes(const AttentionArguments& a, const Task& t, int64_t q0, int64_t k0, int64_t rows, int64_t columns,
               C* scores) {
  const auto slope = static_cast<C>(a.slopes.const_data_ptr<float>()[t.head]), scale = static_cast<C>(a.scale);
  for (int64_t r = 0; r < rows; ++r) {
    C* row = scores + r * kKeyBlock;
    const C first = static_cast<C>(k0 - q0 - r - t.diagonal);
    for (int64_t c = 0; c < columns; ++c) row[c] = row[c] * scale + slope * (first + static_cast<C>(c));
  }
}

template <typename C>
void ZeroRows(int64_t rows, int64_t columns, int64_t stride, C* x) {
  for (int64_t r = 0; r < rows; ++r) std::fill(x + r * stride, x + r * stride + columns, C(0));
}

// Key blocks come one after another, each prepared once for all queries that see it.
template <typename C>
void ForwardTask(const AttentionArguments& a, const Task& t, Heads<C> q, Heads<C> k, Heads<C> v, Heads<C> out, C* lse) {
  const auto& loops = LoopsFor<C>();
  const int64_t d = a.q.size(2), dv = a.v.size(2), kv_head = t.head / (a.q.size(1) / a.k.size(1));
  std::vector<C> scores(kQueryBlock * kKeyBlock), row_max(t.q_size, -std::numeric_limits<C>::infinity()),
      row_sum(t.q_size), shrink(kQueryBlock);
  RightOperand<C> keys_t, values;
  const KeyRange all = AllVisibleKeys(a, t);
  for (int64_t k0 = all.begin; k0 < all.end; k0 += kKeyBlock) {
    const int64_t block = std::min(kKeyBlock, all.end - k0);
    keys_t.Set(Transpose::kYes, d, block, k.At(t.k_begin + k0, kv_head), k.token_stride);
    values.Set(Transpose::kNo, block, dv, v.At(t.k_begin + k0, kv_head), v.token_stride);
    for (int64_t q0 = 0; q0 < t.q_size; q0 += kQueryBlock) {
      const int64_t rows = std::min(kQueryBlock, t.q_size - q0);
      const KeyRange keys = VisibleKeys(a, t, q0, rows);
      if (k0 < keys.begin || k0 >= keys.end) continue;
      const int64_t columns = std::min(kKeyBlock, keys.end - k0);
      keys_t.Multiply(Transpose::kNo, rows, columns, d, q.At(t.q_begin + q0, t.head), q.token_stride, /*add=*/false,
                      scores.data(), kKeyBlock);
      if (a.softcap > 0) {
        loops.softcap(rows, columns, kKeyBlock, static_cast<C>(a.scale), static_cast<C>(a.softcap), scores.data());
      }
      if (a.slopes.defined()) AddSlopes(a, t, q0, k0, rows, columns, scores.data());
      loops.softmax_block(rows, columns, kKeyBlock, FirstLimit(a, t, q0, k0), a.window,
                          static_cast<C>(ScaleAfterSlopes(a)), scores.data(), row_max.data() + q0, row_sum.data() + q0,
                          shrink.data());
      C* out_block = out.At(t.q_begin + q0, t.head);
      const bool first = k0 == keys.begin;
      if (!first) loops.scale_rows(rows, dv, out.token_stride, shrink.data(), out_block);
      values.Multiply(Transpose::kNo, rows, dv, columns, scores.data(), kKeyBlock, /*add=*/!first, out_block,
                      out.token_stride);
    }
  }
  for (int64_t q0 = 0; q0 < t.q_size; q0 += kQueryBlock) {
    const int64_t rows = std::min(kQueryBlock, t.q_size - q0);
    C* out_block = out.At(t.q_begin + q0, t.head);
    const KeyRange keys = VisibleKeys(a, t, q0, rows);
    if (keys.begin >= keys.end) ZeroRows(rows, dv, out.token_stride, out_block);
    // A query that sees no key: nothing comes out, its lse is -inf.
    for (int64_t r = 0; r < rows; ++r) {
      const C sum = row_sum[q0 + r];
      lse[t.head * a.q.size(0) + t.q_begin + q0 + r] = row_max[q0 + r] + std::log(sum);
      shrink[r] = sum == C(0) ? C(0) : C(1) / sum;
    }
    loops.scale_rows(rows, dv, out.token_stride, shrink.data(), out_block);
  }
}

// dk_head [k_size, d], dv_head [k_size, dv]: this query head's share, summed over the group by the caller.
template <typename C>
void BackwardTask(const AttentionArguments& a, const Task& t, Heads<C> q, Heads<C> k, Heads<C> v, Heads<C> out,
                  Heads<C> d_out, const C* lse, Heads<C> dq, C* dk_head, C* dv_head) {
  const auto& loops = LoopsFor<C>();
  const int64_t d = a.q.size(2), dv = a.v.size(2), kv_head = t.head / (a.q.size(1) / a.k.size(1));
  std::vector<C> p(kQueryBlock * kKeyBlock), dp(kQueryBlock * kKeyBlock), delta(t.q_size);
  std::vector<C> capped(a.softcap > 0 ? kQueryBlock * kKeyBlock : 0);
  std::fill(dk_head, dk_head + t.k_size * d, C(0));
  std::fill(dv_head, dv_head + t.k_size * dv, C(0));
  loops.row_dots(t.q_size, dv, out.token_stride, out.At(t.q_begin, t.head), d_out.token_stride,
                 d_out.At(t.q_begin, t.head), delta.data());
  for (int64_t q0 = 0; q0 < t.q_size; q0 += kQueryBlock) {
    const int64_t rows = std::min(kQueryBlock, t.q_size - q0);
    const KeyRange keys = VisibleKeys(a, t, q0, rows);
    if (keys.begin >= keys.end) ZeroRows(rows, d, dq.token_stride, dq.At(t.q_begin + q0, t.head));
  }
  RightOperand<C> keys_t, keys_plain, values_t;
  const KeyRange all = AllVisibleKeys(a, t);
  for (int64_t k0 = all.begin; k0 < all.end; k0 += kKeyBlock) {
    const int64_t block = std::min(kKeyBlock, all.end - k0);
    const C* k_block = k.At(t.k_begin + k0, kv_head);
    keys_t.Set(Transpose::kYes, d, block, k_block, k.token_stride);
    keys_plain.Set(Transpose::kNo, block, d, k_block, k.token_stride);
    values_t.Set(Transpose::kYes, dv, block, v.At(t.k_begin + k0, kv_head), v.token_stride);
    for (int64_t q0 = 0; q0 < t.q_size; q0 += kQueryBlock) {
      const int64_t rows = std::min(kQueryBlock, t.q_size - q0);
      const KeyRange keys = VisibleKeys(a, t, q0, rows);
      if (k0 < keys.begin || k0 >= keys.end) continue;
      const int64_t columns = std::min(kKeyBlock, keys.end - k0);
      const C* q_block = q.At(t.q_begin + q0, t.head);
      const C* d_out_block = d_out.At(t.q_begin + q0, t.head);
      keys_t.Multiply(Transpose::kNo, rows, columns, d, q_block, q.token_stride, /*add=*/false, p.data(), kKeyBlock);
      if (a.softcap > 0) {
        loops.softcap(rows, columns, kKeyBlock, static_cast<C>(a.scale), static_cast<C>(a.softcap), p.data());
        std::copy(p.begin(), p.begin() + rows * kKeyBlock, capped.begin());
      }
      if (a.slopes.defined()) AddSlopes(a, t, q0, k0, rows, columns, p.data());
      loops.softmax_again(rows, columns, kKeyBlock, FirstLimit(a, t, q0, k0), a.window,
                          static_cast<C>(ScaleAfterSlopes(a)), p.data(), lse + t.head * a.q.size(0) + t.q_begin + q0);
      Gemm(Transpose::kYes, Transpose::kNo, columns, dv, rows, p.data(), kKeyBlock, d_out_block, d_out.token_stride,
           /*add=*/true, dv_head + k0 * dv, dv);
      values_t.Multiply(Transpose::kNo, rows, columns, dv, d_out_block, d_out.token_stride, /*add=*/false, dp.data(),
                        kKeyBlock);
      loops.softmax_backward(rows, columns, kKeyBlock, static_cast<C>(ScaleAfterCap(a)), p.data(), delta.data() + q0,
                             dp.data());
      if (a.softcap > 0) {
        loops.softcap_backward(rows, columns, kKeyBlock, static_cast<C>(a.scale), static_cast<C>(a.softcap),
                               capped.data(), dp.data());
      }
      keys_plain.Multiply(Transpose::kNo, rows, d, columns, dp.data(), kKeyBlock, /*add=*/k0 != keys.begin,
                          dq.At(t.q_begin + q0, t.head), dq.token_stride);
      Gemm(Transpose::kYes, Transpose::kNo, columns, d, rows, dp.data(), kKeyBlock, q_block, q.token_stride,
           /*add=*/true, dk_head + k0 * d, d);
    }
  }
}

absl::Status CpuSupports(const AttentionArguments& a) {
  if (!a.q.is_cpu()) return absl::UnimplementedError("needs CPU tensors");
  if (a.window > 0 && !a.causal) return absl::UnimplementedError("has no window without a causal mask");
  return absl::OkStatus();
}

template <typename C>
AttentionOutput ForwardTyped(const AttentionArguments& a) {
  AttentionOutput output;
  output.out = at::empty({a.q.size(0), a.q.size(1), a.v.size(2)}, a.q.options());
  output.lse = at::empty({a.q.size(1), a.q.size(0)}, a.q.options());
  const std::vector<Task> tasks = Tasks(a);
  ParallelTasks(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    ForwardTask<C>(a, tasks[i], Heads<C>(a.q), Heads<C>(a.k), Heads<C>(a.v), Heads<C>(output.out), Data<C>(output.lse));
  });
  return output;
}

template <typename C>
void BackwardTyped(const AttentionArguments& a, const AttentionOutput& output, const at::Tensor& d_out,
                   AttentionGradients& gradients) {
  const int64_t group = a.q.size(1) / a.k.size(1), tokens_k = a.k.size(0);
  // [heads, tokens_k, d] or dv: per query head, then summed over the group in order.
  at::Tensor dk_heads = at::empty({a.q.size(1), tokens_k, a.k.size(2)}, a.q.options()),
             dv_heads = at::empty({a.q.size(1), tokens_k, a.v.size(2)}, a.q.options());
  const std::vector<Task> tasks = Tasks(a);
  ParallelTasks(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    const Task& t = tasks[i];
    const int64_t row = t.head * tokens_k + t.k_begin;
    BackwardTask<C>(a, t, Heads<C>(a.q), Heads<C>(a.k), Heads<C>(a.v), Heads<C>(output.out), Heads<C>(d_out),
                    Data<C>(output.lse), Heads<C>(gradients.dq), Data<C>(dk_heads) + row * a.k.size(2),
                    Data<C>(dv_heads) + row * a.v.size(2));
  });
  const Heads<C> dk(gradients.dk), dv(gradients.dv);
  ParallelRanges(tokens_k, 64, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      for (int64_t kv_head = 0; kv_head < a.k.size(1); ++kv_head) {
        const auto sum = [&](const at::Tensor& heads, C* target) {
          const int64_t d = heads.size(2);
          const C* first = Data<C>(heads) + (kv_head * group * tokens_k + token) * d;
          std::copy(first, first + d, target);
          for (int64_t g = 1; g < group; ++g) LoopsFor<C>().add(d, target, first + g * tokens_k * d);
        };
        sum(dk_heads, dk.At(token, kv_head));
        sum(dv_heads, dv.At(token, kv_head));
      }
    }
  });
}

AttentionOutput CpuForward(const AttentionArguments& a) {
  if (a.q.scalar_type() == at::kDouble) return ForwardTyped<double>(a);
  if (a.q.scalar_type() == at::kFloat) return ForwardTyped<float>(a);
  AttentionArguments wide = a;
  wide.q = Widened(a.q);
  wide.k = Widened(a.k);
  wide.v = Widened(a.v);
  AttentionOutput output = ForwardTyped<float>(wide);
  output.out = Narrowed(output.out, a.q.scalar_type());
  return output;
}

void CpuBackward(const AttentionArguments& a, const AttentionOutput& output, const at::Tensor& d_out,
                 AttentionGradients& gradients) {
  if (a.q.scalar_type() == at::kDouble) return BackwardTyped<double>(a, output, d_out, gradients);
  if (a.q.scalar_type() == at::kFloat) return BackwardTyped<float>(a, output, d_out, gradients);
  AttentionArguments wide = a;
  wide.q = Widened(a.q);
  wide.k = Widened(a.k);
  wide.v = Widened(a.v);
  const auto like = [](const at::Tensor& x) { return at::empty(x.sizes(), x.options().dtype(at::kFloat)); };
  AttentionGradients wide_gradients = {like(a.q), like(a.k), like(a.v)};
  BackwardTyped<float>(wide, {Widened(output.out), output.lse}, Widened(d_out), wide_gradients);
  gradients.dq.copy_(wide_gradients.dq);
  gradients.dk.copy_(wide_gradients.dk);
  gradients.dv.copy_(wide_gradients.dv);
}

}  // namespace

const AttentionBackend& CpuAttention() {
  static const AttentionBackend backend = {"cpu", &CpuSupports, &CpuForward, &CpuBackward};
  return backend;
}

}  // namespace trireme
