#include "serving/generation.h"

#include <ATen/ops/zeros.h>

namespace trireme {
namespace {

// The choice of the one rank that makes it, told to all.
GeneratedToken Choose(Mesh& mesh, const at::Tensor& logits, const SamplingOptions& sampling, uint64_t step) {
  const auto first = [&](Axis axis) { return mesh.coordinate(axis) == 0; };
  at::Tensor choice = at::zeros({2}, at::TensorOptions().dtype(at::kDouble));
  if (logits.defined() && first(Axis::kDataReplicate) && first(Axis::kDataShard) && first(Axis::kContext) &&
      first(Axis::kTensor)) {
    const float* row = logits.const_data_ptr<float>();
    const int64_t id = SampleToken(row, logits.size(1), sampling, step);
    choice.mutable_data_ptr<double>()[0] = static_cast<double>(id);
    choice.mutable_data_ptr<double>()[1] = LogProbability(row, logits.size(1), id);
  }
  mesh.control().AllReduce(choice, ReduceOp::kSum).Wait();
  return {static_cast<int64_t>(choice.const_data_ptr<double>()[0]), choice.const_data_ptr<double>()[1]};
}

}  // namespace

void GenerateTokens(Engine& model, Mesh& mesh, KvCache& cache, const std::vector<int64_t>& prompt, int64_t max_tokens,
                    const SamplingOptions& sampling, const std::function<bool(const GeneratedToken&)>& next) {
  std::vector<int64_t> fresh = prompt;
  for (int64_t step = 0; step < max_tokens; ++step) {
    if (cache.length(0) + static_cast<int64_t>(fresh.size()) > cache.capacity(0)) return;
    const GeneratedToken token = Choose(mesh, model.Logits({fresh}, cache), sampling, static_cast<uint64_t>(step));
    if (!next(token)) return;
    fresh = {token.id};
  }
}

}  // namespace trireme
