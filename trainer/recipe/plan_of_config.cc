#include "trainer/recipe/plan_of_config.h"

#include "parallel/layers/kept_results.h"

namespace trireme {
namespace {

ShardLevel LevelOf(ParallelConfig::Shard shard) {
  switch (shard) {
    case ParallelConfig::NONE:
      return ShardLevel::kNone;
    case ParallelConfig::OPTIMIZER:
      return ShardLevel::kOptimizer;
    case ParallelConfig::GRADIENTS:
      return ShardLevel::kGradients;
    case ParallelConfig::PARAMETERS:
      return ShardLevel::kParameters;
  }
  TRIREME_CHECK(false, "no such sharding level");
}

at::ScalarType DtypeOf(PrecisionConfig::Format format) {
  return format == PrecisionConfig::BF16 ? at::kBFloat16 : at::kFloat;
}

RecomputePolicy RecomputeOf(const RecomputeConfig& config) {
  RecomputePolicy policy;
  policy.blocks = config.policy() != RecomputeConfig::NONE;
  policy.offload = config.offload();
  if (config.policy() != RecomputeConfig::SELECTIVE) return policy;
  policy.keep.insert(config.keep().begin(), config.keep().end());
  if (policy.keep.empty()) policy.keep.insert(kKeepAttention);
  return policy;
}

}  // namespace

BatchShape BatchOf(const RunConfig& config) {
  return {config.data().sequence_length(), config.micro_batch_size(), config.global_batch_size()};
}

PipelineChoice PipelineOf(const ParallelConfig& config) {
  return {config.pipeline_schedule(),
          config.pipeline_stages_per_rank(),
          {config.pipeline_blocks().begin(), config.pipeline_blocks().end()}};
}

void PlanFrom(const RunConfig& config, EnginePlan* plan) {
  plan->storage.shard = LevelOf(config.parallel().shard());
  plan->storage.reduce_every_microbatch = config.parallel().reduce_gradients() == ParallelConfig::EVERY_MICROBATCH;
  plan->storage.compute = DtypeOf(config.precision().compute());
  plan->storage.master_weights = config.precision().master_weights();
  plan->storage.reduce = DtypeOf(config.precision().reduce());
  plan->recompute = RecomputeOf(config.recompute());
  plan->attention = config.kernels().attention();
  plan->context_method =
      config.parallel().context_method() == ParallelConfig::RING ? ContextMethod::kRing : ContextMethod::kGather;
  plan->sequence_length = config.data().sequence_length();
  plan->micro_batch_size = config.micro_batch_size();
  plan->z_loss = config.loss().z_loss();
  plan->router.pooled = config.loss().router_aux_scope() == LossConfig::STEP;
  plan->router.evenness =
      config.loss().router_aux_loss() / (plan->router.pooled ? 1 : std::max(1, config.global_batch_size()));
  plan->router.z = config.loss().router_z_loss();
  if (config.kernels().has_loss_chunk_tokens()) plan->loss_chunk_tokens = config.kernels().loss_chunk_tokens();
  plan->deterministic = config.kernels().deterministic();
  plan->seed = config.seed();
}

}  // namespace trireme
