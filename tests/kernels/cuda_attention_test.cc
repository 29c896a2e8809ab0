// libtorch's flash attention against the plain one on the CPU.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/attention/attention.h"
#include "tests/kernels/gpu_test.h"

namespace trireme {
namespace {

class CudaAttention : public GpuTest {};
INSTANTIATE_TEST_SUITE_P(Bf16, CudaAttention, testing::Values(at::kBFloat16),
                         [](const auto& info) { return DtypeName(info.param); });

TEST_P(CudaAttention, FlashEqualsMath) {
  const int64_t tokens = 333, heads = 8, kv_heads = 2;
  for (const int64_t head_dim : {64, 128}) {
    for (const int64_t window : {0, 20}) {
      const at::Tensor packed = random_.Normal({tokens, heads + 2 * kv_heads, head_dim}, GetParam()),
                       d_out = random_.Normal({tokens, heads, head_dim}, GetParam());
      const auto arguments = [&](const at::Tensor& qkv) {
        AttentionArguments a;
        a.q = qkv.narrow(1, 0, heads);
        a.k = qkv.narrow(1, heads, kv_heads);
        a.v = qkv.narrow(1, heads + kv_heads, kv_heads);
        // One segment of one token, and padding: segments without any.
        a.cu_seqlens_q = a.cu_seqlens_k = TensorOf<int32_t>({0, 130, 131, 333, 333, 333}).to(qkv.device());
        a.max_q = a.max_k = 202;
        a.window = window;
        a.scale = 1 / std::sqrt(static_cast<double>(head_dim));
        return a;
      };
      const auto gradients = [&](at::Tensor& d_qkv) {
        return AttentionGradients{d_qkv.narrow(1, 0, heads), d_qkv.narrow(1, heads, kv_heads),
                                  d_qkv.narrow(1, heads + kv_heads, kv_heads)};
      };
      const AttentionArguments cpu_arguments = arguments(packed), gpu_arguments = arguments(OnGpu(packed));
      ASSERT_TRUE(FlashAttention().supports(gpu_arguments).ok()) << FlashAttention().supports(gpu_arguments);
      const AttentionOutput cpu = MathAttention().forward(cpu_arguments), gpu = FlashAttention().forward(gpu_arguments);
      EXPECT_LE(Error(gpu.out, cpu.out), 1e-2) << head_dim << ", window " << window;
      EXPECT_LE(Error(gpu.lse, cpu.lse), 1e-4) << head_dim << ", window " << window;
      at::Tensor cpu_gradient = at::empty_like(packed), gpu_gradient = OnGpu(cpu_gradient);
      AttentionGradients cpu_parts = gradients(cpu_gradient), gpu_parts = gradients(gpu_gradient);
      MathAttention().backward(cpu_arguments, cpu, d_out, cpu_parts);
      FlashAttention().backward(gpu_arguments, gpu, OnGpu(d_out), gpu_parts);
      EXPECT_LE(Error(gpu_parts.dq, cpu_parts.dq), 2e-2) << head_dim << ", window " << window;
      EXPECT_LE(Error(gpu_parts.dk, cpu_parts.dk), 2e-2) << head_dim << ", window " << window;
      EXPECT_LE(Error(gpu_parts.dv, cpu_parts.dv), 2e-2) << head_dim << ", window " << window;
    }
  }
}

TEST_P(CudaAttention, RefusalsSayWhy) {
  AttentionArguments a;
  a.q = at::zeros({4, 2, 64}, at::TensorOptions().dtype(at::kFloat).device(kGpu));
  a.k = a.v = a.q;
  EXPECT_NE(FlashAttention().supports(a).message().find("bfloat16"), absl::string_view::npos);
  a.q = a.k = a.v = a.q.to(at::kBFloat16);
  EXPECT_TRUE(FlashAttention().supports(a).ok());
  a.softcap = 30;
  EXPECT_NE(FlashAttention().supports(a).message().find("soft cap"), absl::string_view::npos);
  a.softcap = 0;
  a.q = a.k = a.v = at::zeros({4, 2, 68}, a.q.options());
  EXPECT_NE(FlashAttention().supports(a).message().find("68"), absl::string_view::npos);
}

}  // namespace
}  // namespace trireme
