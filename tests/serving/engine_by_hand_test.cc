// An engine from a plan made by hand, with nothing of training: this test links serving and what stands below, not
// trainer.
#include <gtest/gtest.h>

#include <vector>

#include "kernels/base/cpu_allocator.h"
#include "models/engine/engine.h"
#include "models/engine/engine_plan.h"
#include "models/engine/extensions.h"
#include "parallel/comm/mesh.h"
#include "serving/generation.h"
#include "tests/models/tiny_decoder.h"

namespace trireme {
namespace {

std::vector<int64_t> Greedy(Engine& engine, Mesh& mesh, const std::vector<int64_t>& prompt, int64_t count) {
  KvCache cache = KvCache::Contiguous(TinyDecoderSpec().max_positions, at::kCPU);
  std::vector<int64_t> ids;
  GenerateTokens(engine, mesh, cache, prompt, count, {}, [&](const GeneratedToken& token) {
    ids.push_back(token.id);
    return true;
  });
  return ids;
}

TEST(EngineByHand, GeneratesWhatTheWholeTextWouldGive) {
  InstallCpuAllocator();
  EnginePlan plan = PlanForOneRank(TinyDecoderSpec());
  plan.seed = 7;
  const std::unique_ptr<Mesh> mesh = Mesh::Alone(at::kCPU);
  const absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Create(plan, *mesh, Extensions());
  ASSERT_TRUE(engine.ok()) << engine.status();
  (*engine)->Initialize();
  const std::vector<int64_t> prompt = {3, 1, 4, 1, 5};
  const std::vector<int64_t> ids = Greedy(**engine, *mesh, prompt, 12);
  ASSERT_EQ(ids.size(), 12u);
  // Each token is what the model says of the text before it, read at once.
  std::vector<int64_t> text = prompt;
  for (const int64_t id : ids) {
    EXPECT_EQ(Greedy(**engine, *mesh, text, 1), std::vector<int64_t>{id});
    text.push_back(id);
  }
  // Other weights say something else, the same ones the same.
  plan.seed = 8;
  const absl::StatusOr<std::unique_ptr<Engine>> other = Engine::Create(plan, *mesh, Extensions());
  ASSERT_TRUE(other.ok()) << other.status();
  (*other)->Initialize();
  EXPECT_NE(Greedy(**other, *mesh, prompt, 12), ids);
}

TEST(EngineByHand, AnAttentionThatIsNotThereIsAnError) {
  EnginePlan plan = PlanForOneRank(TinyDecoderSpec());
  plan.attention = "of tomorrow";
  const std::unique_ptr<Mesh> mesh = Mesh::Alone(at::kCPU);
  EXPECT_EQ(ExitCodeOf(Engine::Create(plan, *mesh, Extensions()).status()), ExitCode::kConfig);
}

}  // namespace
}  // namespace trireme
