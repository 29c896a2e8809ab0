// One run against what another recorded.
#include "trainer/loop/check_against.h"

#include <gtest/gtest.h>

#include <cmath>

#include "launch/base/file.h"
#include "trainer/observe/metrics.h"

namespace trireme {
namespace {

constexpr char kOne[] = "pipeline 1 x data_replicate 1 x data_shard 1 x context 1 x tensor 1";
constexpr char kTensor[] = "pipeline 1 x data_replicate 1 x data_shard 1 x context 1 x tensor 2";
constexpr char kShard[] = "pipeline 1 x data_replicate 1 x data_shard 4 x context 1 x tensor 1";
constexpr double kTolerance = 1e-4;

const GradientNorms kNorms = {{"model.embed_tokens.weight", 1.0},
                              {"model.layers.0.self_attn.k_proj.weight", 0.5},
                              {"model.norm.weight", 0.25},
                              {"lm_head.weight", 2.0}};

GradientNorms With(const std::string& name, double norm) {
  GradientNorms norms = kNorms;
  for (auto& item : norms) {
    if (item.first == name) item.second = norm;
  }
  return norms;
}

class CheckAgainst : public testing::Test {
 protected:
  void SetUp() override {
    run_dir_ = testing::TempDir() + "check_against";
    ASSERT_TRUE(RemoveAll(run_dir_).ok());
    ASSERT_TRUE(MakeDirectories(run_dir_).ok());
  }

  // A run of one rank, as the trainer records it.
  void Record(const std::vector<std::pair<double, GradientNorms>>& steps, int64_t resume_step = 0) {
    RunDescription description;
    description.mesh = kOne;
    absl::StatusOr<std::unique_ptr<MetricsLog>> log = MetricsLog::Open(run_dir_, false, description, resume_step);
    ASSERT_TRUE(log.ok()) << log.status();
    int64_t step = resume_step;
    for (const auto& [loss, norms] : steps) ASSERT_TRUE((*log)->ParameterNorms(++step, loss, norms).ok());
  }

  RunComparison Opened(const std::string& mesh = kTensor, double tolerance = kTolerance) {
    absl::StatusOr<RunComparison> comparison = RunComparison::Open(run_dir_, mesh, tolerance);
    EXPECT_TRUE(comparison.ok()) << comparison.status();
    return *std::move(comparison);
  }

  std::string OpenError() const {
    const absl::StatusOr<RunComparison> comparison = RunComparison::Open(run_dir_, kTensor, kTolerance);
    EXPECT_EQ(ExitCodeOf(comparison.status()), ExitCode::kConfig);
    return std::string(comparison.status().message());
  }

  std::string run_dir_;
};

void ExpectDiffers(const absl::Status& status, const std::vector<std::string>& parts) {
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kCheckFailed);
  for (const std::string& part : parts) {
    EXPECT_NE(status.message().find(part), absl::string_view::npos) << part << " is not in:\n" << status.message();
  }
}

TEST_F(CheckAgainst, StepsWithinTheToleranceAreTheSame) {
  Record({{3.0, kNorms}, {2.9, kNorms}});
  RunComparison comparison = Opened();
  EXPECT_TRUE(comparison.Compare(1, 3.0 * (1 + 0.5 * kTolerance), kNorms).ok());
  EXPECT_TRUE(comparison.Compare(2, 2.9, With("lm_head.weight", 2.0 * (1 - 0.5 * kTolerance))).ok());
  EXPECT_EQ(comparison.compared_steps(), 2);
  ExpectDiffers(comparison.Compare(2, 2.9, With("lm_head.weight", 2.0 * (1 + 2 * kTolerance))), {});
  EXPECT_TRUE(Opened(kTensor, 1e-2).Compare(2, 2.9, With("lm_head.weight", 2.0 * (1 + 2 * kTolerance))).ok());
}

TEST_F(CheckAgainst, NamesTheStepTheFirstParameterOfTheModelAndHowMany) {
  Record({{3.0, kNorms}, {2.5, kNorms}});
  RunComparison comparison = Opened();
  GradientNorms norms = With("model.norm.weight", 0.75);
  norms[1].second = 0.125;
  EXPECT_TRUE(comparison.Compare(1, 3.0, kNorms).ok());
  ExpectDiffers(comparison.Compare(2, 2.5, norms),
                {"step 2 differs from " + run_dir_ + " (loss 2.5 here, 2.5 there)",
                 "first: model.layers.0.self_attn.k_proj.weight: gradient norm 0.125 here, 0.5 there",
                 "2 of 4 parameters differ by more than 0.0001"});
}

TEST_F(CheckAgainst, ALossThatDiffersAloneIsADifference) {
  Record({{3.0, kNorms}});
  ExpectDiffers(Opened().Compare(1, 3.001, kNorms),
                {"step 1 differs", "loss 3.001 here, 3 there; all gradient norms agree"});
}

TEST_F(CheckAgainst, GradientsBelowTheFloorMayDiffer) {
  Record({{3.0, With("model.norm.weight", 1e-7)}});
  RunComparison comparison = Opened();
  // The largest norm is 2, so the floor is 2e-6.
  EXPECT_TRUE(comparison.Compare(1, 3.0, With("model.norm.weight", 1.9e-6)).ok());
  EXPECT_TRUE(comparison.Compare(1, 3.0, With("model.norm.weight", 0)).ok());
  ExpectDiffers(comparison.Compare(1, 3.0, With("model.norm.weight", 2.2e-6)), {"first: model.norm.weight"});
}

TEST_F(CheckAgainst, AStepTheOtherRunDidNotRecordIsPassedOver) {
  Record({{3.0, kNorms}});
  RunComparison comparison = Opened();
  EXPECT_TRUE(comparison.Compare(2, 1.0, {{"model.norm.weight", 9}}).ok());
  EXPECT_EQ(comparison.compared_steps(), 0);
}

TEST_F(CheckAgainst, NumbersThatAreNotFinite) {
  const double nan = std::nan(""), infinity = HUGE_VAL;
  Record({{nan, With("lm_head.weight", nan)}, {infinity, With("lm_head.weight", infinity)}, {3.0, kNorms}});
  RunComparison comparison = Opened();
  EXPECT_TRUE(comparison.Compare(1, nan, With("lm_head.weight", nan)).ok());
  EXPECT_TRUE(comparison.Compare(2, infinity, With("lm_head.weight", infinity)).ok());
  ExpectDiffers(comparison.Compare(1, nan, kNorms), {"lm_head.weight: gradient norm 2 here, nan there"});
  ExpectDiffers(comparison.Compare(3, 3.0, With("lm_head.weight", nan)), {"gradient norm nan here, 2 there"});
  ExpectDiffers(comparison.Compare(3, nan, kNorms), {"loss nan here, 3 there"});
  // An infinite norm must not raise the floor above all others.
  ExpectDiffers(comparison.Compare(2, infinity, With("model.norm.weight", 9)), {"first: model.norm.weight"});
}

TEST_F(CheckAgainst, ARunOfAnotherModel) {
  Record({{3.0, kNorms}});
  RunComparison comparison = Opened();
  GradientNorms norms = kNorms;
  norms.pop_back();
  ExpectDiffers(comparison.Compare(1, 3.0, norms), {"another model: it recorded 4 parameters, this one has 3"});
  norms.emplace_back("model.other.weight", 1);
  ExpectDiffers(comparison.Compare(1, 3.0, norms), {"another model", "model.other.weight is not among them"});
}

TEST_F(CheckAgainst, AResumedRunCountsAsItRanLast) {
  Record({{3.0, kNorms}, {2.9, kNorms}, {2.8, kNorms}});
  Record({{2.7, kNorms}}, /*resume_step=*/1);
  RunComparison comparison = Opened();
  EXPECT_TRUE(comparison.Compare(2, 2.7, kNorms).ok());
  EXPECT_TRUE(comparison.Compare(3, 1.0, kNorms).ok());
  EXPECT_EQ(comparison.compared_steps(), 1);
  ExpectDiffers(comparison.Compare(1, 3.0, With("model.norm.weight", 9)), {"likely: axis tensor: only norms differ"});
}

TEST_F(CheckAgainst, ALayoutHoldsUntilTheNextResume) {
  const std::string norms = R"("loss":3.0,"norms":{"a":1.0,"b":1.0}})",
                    run = absl::StrCat(R"({"type":"run","mesh":")", kOne, "\"}\n");
  const std::string resume = absl::StrCat(R"({"type":"resume","step":1,"mesh":")", kTensor, "\"}\n");
  const auto step = [&](int n) { return absl::StrCat(R"({"type":"gradient_norms","step":)", n, ",", norms, "\n"); };
  ASSERT_TRUE(WriteFileAtomically(run_dir_ + "/metrics.jsonl",
                                  absl::StrCat(run, step(1), resume, step(2), "{\"type\":\"resume\"}\n", step(3)))
                  .ok());
  RunComparison comparison = Opened(kTensor);
  const GradientNorms other = {{"a", 1.0}, {"b", 2.0}};
  ExpectDiffers(comparison.Compare(1, 3.0, other), {"likely: one of the axes in which the layouts differ: tensor"});
  ExpectDiffers(comparison.Compare(2, 3.0, other), {"likely: not the layout"});
  ExpectDiffers(comparison.Compare(3, 3.0, other), {"likely: unknown: the other run does not say its layout"});
}

TEST_F(CheckAgainst, FilesThatCannotServe) {
  EXPECT_NE(OpenError().find("metrics.jsonl cannot be read; give the run_dir of a run"), std::string::npos);
  Record({});
  EXPECT_NE(OpenError().find("run it again with --set logging.parameter_norms=true"), std::string::npos);
  const std::string path = run_dir_ + "/metrics.jsonl";
  const std::string good = R"({"type":"gradient_norms","step":1,"loss":3.0,"norms":{"a":1.0}})";
  for (const char* bad : {R"({"type":"gradient_norms","loss":3.0,"norms":{"a":1.0}})",
                          R"({"type":"gradient_norms","step":"1","loss":3.0,"norms":{"a":1.0}})",
                          R"({"type":"gradient_norms","step":1,"loss":null,"norms":{"a":1.0}})",
                          R"({"type":"gradient_norms","step":1,"loss":3.0,"norms":{"a":"x"}})",
                          R"({"type":"gradient_norms","step":1,"loss":3.0,"norms":[1.0]})",
                          R"({"type":"gradient_norms","step":1,"loss":3.0})"}) {
    ASSERT_TRUE(WriteFileAtomically(path, good + "\n" + bad + "\n").ok());
    EXPECT_NE(OpenError().find("line 2 is damaged"), std::string::npos) << bad;
  }
  // Lines of other kinds, of nobody's, and the half line of a killed run do no harm.
  ASSERT_TRUE(WriteFileAtomically(path, "{\"type\":3,\"step\":1}\n[]\nx\n" + good + "\n" + good.substr(0, 30)).ok());
  RunComparison comparison = Opened();
  EXPECT_TRUE(comparison.Compare(1, 3.0, {{"a", 1.0}}).ok());
  EXPECT_EQ(comparison.compared_steps(), 1);
}

// ---- What a pattern of differences points to ----

std::string MeshText(int pipeline, int replicate, int shard, int context, int tensor) {
  return absl::StrCat("pipeline ", pipeline, " x data_replicate ", replicate, " x data_shard ", shard, " x context ",
                      context, " x tensor ", tensor);
}

TEST(LikelyCause, OneFactorOnEveryGradient) {
  EXPECT_EQ(LikelyCause({{"a", 4.0}, {"b", 4.0001}}, 2, kShard, kOne),
            "axis data_shard: every gradient is off by the same factor 4, its degree");
  EXPECT_EQ(LikelyCause({{"a", 0.25}, {"b", 0.25}}, 2, kShard, kOne),
            "axis data_shard: every gradient is off by the same factor 0.25, its degree");
  EXPECT_EQ(LikelyCause({{"a", 2.0}, {"b", 2.0}}, 2, MeshText(1, 2, 4, 1, 1), kOne),
            "axis data_replicate: every gradient is off by the same factor 2, its degree");
  EXPECT_EQ(LikelyCause({{"a", 0.5}, {"b", 0.5}}, 2, kOne, MeshText(1, 1, 1, 2, 1)),
            "axis context: every gradient is off by the same factor 0.5, its degree");
  EXPECT_EQ(LikelyCause({{"a", 3.0}, {"b", 3.0}}, 2, kShard, kOne),
            "the loss's normalization: every gradient is off by the same factor 3");
}

TEST(LikelyCause, WhatEachAxisCanBreak) {
  const std::string norm = "model.layers.0.input_layernorm.weight", key = "model.layers.0.self_attn.k_proj.weight",
                    value = "model.layers.1.self_attn.v_proj.weight", tied = "model.embed_tokens.weight",
                    query = "model.layers.0.self_attn.q_proj.weight", mlp = "model.layers.0.mlp.up_proj.weight";
  EXPECT_EQ(
      LikelyCause({{norm, 0.7}, {"model.norm.weight", 0.6}}, 9, kTensor, kOne).rfind("axis tensor: only norms", 0), 0u);
  // The axis of experts stands behind the others, where there is one.
  const std::string experts = absl::StrCat(kTensor, ", expert 2"), expert = "model.layers.1.mlp.experts.down_proj";
  EXPECT_EQ(LikelyCause({{expert, 0.7}}, 9, experts, kTensor).rfind("axis expert: only experts", 0), 0u);
  EXPECT_EQ(LikelyCause({{expert, 0.7}}, 9, kTensor, experts).rfind("axis expert: only experts", 0), 0u);
  EXPECT_EQ(LikelyCause({{expert, 0.7}, {key, 0.6}}, 9, experts, kOne),
            "one of the axes in which the layouts differ: expert, tensor");
  EXPECT_EQ(LikelyCause({{norm, 0.7}}, 9, experts, kOne).rfind("axis tensor: only norms", 0), 0u);
  EXPECT_EQ(LikelyCause({{key, 0.7}, {value, 0.6}}, 9, kTensor, kOne).rfind("axis tensor: only keys and values", 0),
            0u);
  EXPECT_EQ(
      LikelyCause({{tied, 0.7}}, 9, MeshText(2, 1, 1, 1, 1), kOne).rfind("axis pipeline: only the tied matrix", 0), 0u);
  EXPECT_EQ(
      LikelyCause({{mlp, 0.7}, {query, 0.6}}, 9, MeshText(1, 1, 1, 2, 1), kOne).rfind("axis context: attention", 0),
      0u);
  // An axis that both layouts have alike is not blamed.
  EXPECT_EQ(LikelyCause({{norm, 0.7}}, 9, MeshText(2, 1, 1, 1, 2), kTensor),
            "one of the axes in which the layouts differ: pipeline");
  EXPECT_EQ(LikelyCause({{mlp, 0.7}}, 9, MeshText(2, 1, 1, 1, 2), kOne),
            "one of the axes in which the layouts differ: pipeline, tensor");
}

TEST(LikelyCause, NotTheLayout) {
  EXPECT_EQ(LikelyCause({{"a", 0.7}, {"b", 0.6}}, 2, kTensor, kTensor),
            "not the layout, which is the same: another seed, data, precision or build");
  EXPECT_EQ(LikelyCause({{"a", 0.7}, {"b", 0.6}}, 2, kTensor, ""),
            absl::StrCat("unknown: the other run does not say its layout; this one is ", kTensor));
}

}  // namespace
}  // namespace trireme
