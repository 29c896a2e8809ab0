// One thread each: a step has few numbers to add, and their order is part of the result.
#include "kernels/cuda/device.cuh"

namespace trireme::cuda {
namespace {

__global__ void AddUpKernel(int64_t n, const double* values, double* sum) {
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += values[i];
  *sum = total;
}

__device__ double SumOf(const double* parts, int column, int64_t n, const int64_t* ranks) {
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += parts[ranks[i] * 3 + column];
  return total;
}

__global__ void DecideKernel(DecisionRule rule, const double* parts, int64_t num_loss_ranks, const int64_t* loss_ranks,
                             int64_t num_norm_ranks, const int64_t* norm_ranks, const UpdateDecision* previous,
                             UpdateDecision* decision) {
  *decision = Decide(rule, SumOf(parts, 0, num_loss_ranks, loss_ranks), SumOf(parts, 1, num_loss_ranks, loss_ranks),
                     SumOf(parts, 2, num_norm_ranks, norm_ranks), *previous);
}

}  // namespace

void LaunchAddUp(int64_t n, const double* values, double* sum, Stream stream) {
  AddUpKernel<<<1, 1, 0, StreamOf(stream)>>>(n, values, sum);
  CheckLaunch("add_up");
}

void LaunchDecide(const DecisionRule& rule, const double* parts, int64_t num_loss_ranks, const int64_t* loss_ranks,
                  int64_t num_norm_ranks, const int64_t* norm_ranks, const UpdateDecision* previous,
                  UpdateDecision* decision, Stream stream) {
  DecideKernel<<<1, 1, 0, StreamOf(stream)>>>(rule, parts, num_loss_ranks, loss_ranks, num_norm_ranks, norm_ranks,
                                              previous, decision);
  CheckLaunch("decide");
}

}  // namespace trireme::cuda
