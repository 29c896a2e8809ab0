#include "configs/config_loader.h"

#include <gtest/gtest.h>

#include "tests/configs/config_files.h"

namespace trireme {
namespace {

class Loading : public ConfigFiles {};
class Overrides : public ConfigFiles {};

TEST_F(Loading, LaterFilesWinMemberByMember) {
  const std::string first = Write("a.textproto", "parallel { tensor: 2 pipeline: 3 } run_dir: \"a\"");
  const std::string second = Write("b.textproto", "parallel { tensor: 4 } seed: 5");
  const absl::StatusOr<RunConfig> config = LoadConfig({first, second}, {});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->parallel().tensor(), 4);
  EXPECT_EQ(config->parallel().pipeline(), 3);
  EXPECT_EQ(config->run_dir(), "a");
  EXPECT_EQ(config->seed(), 5u);
}

TEST_F(Loading, LaterFilesReplaceRepeatedFieldsThatTheySet) {
  const std::string first =
      Write("a.textproto", "data { source { path: \"a\" } source { path: \"b\" } sequence_length: 8 }");
  const std::string second = Write("b.textproto", "data { source { path: \"c\" } }");
  const std::string third = Write("c.textproto", "data { sequence_length: 16 }");
  const absl::StatusOr<RunConfig> config = LoadConfig({first, second, third}, {});
  ASSERT_TRUE(config.ok()) << config.status();
  ASSERT_EQ(config->data().source_size(), 1);
  EXPECT_EQ(config->data().source(0).path(), "c");
  EXPECT_EQ(config->data().sequence_length(), 16);
}

TEST_F(Loading, LaterFilesReplaceTheChoiceOfAOneof) {
  const std::string first = Write("a.textproto", "optimizer { adamw { learning_rate: 1 } }");
  const std::string second = Write("b.textproto", "optimizer { sgd {} }");
  const absl::StatusOr<RunConfig> config = LoadConfig({first, second}, {});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->optimizer().rule_case(), OptimizerConfig::kSgd);
}

TEST_F(Loading, HeaderCommentsAndEmptyFilesAreFine) {
  EXPECT_EQ(
      Load("# proto-file: configs/run_config.proto\n# proto-message: trireme.RunConfig\nseed: 3 # three\n").seed(), 3u);
  EXPECT_EQ(ConfigText(Load("")), "");
}

TEST_F(Loading, TextOfAConfigLoadsAsTheSameConfig) {
  const RunConfig config = Load(
      "model { num_hidden_layers: 2 rms_norm_eps: 1.0000000000000002e-6 } data { source { path: \"r\xc3\xbc\\\"n\" } "
      "source { weight: 3 } }\n"
      "lr_schedule { cosine {} } parallel { shard: GRADIENTS } train_for { tokens: 9000000000 }");
  EXPECT_EQ(ConfigText(Load(ConfigText(config))), ConfigText(config));
  EXPECT_TRUE(DiffConfigs(config, Load(ConfigText(config))).empty());
  EXPECT_EQ(Load(ConfigText(config)).model().rms_norm_eps(), 1.0000000000000002e-6);
}

TEST_F(Overrides, SetFieldsByPath) {
  const RunConfig config =
      Load("parallel { tensor: 1 pipeline: 7 }",
           {"parallel.tensor=2", "parallel.shard = NONE", "optimizer.adamw.learning_rate=3e-4",
            "data.document_mask=true", "train_for.steps=12", "lr_schedule.cosine={}", "seed=0x10"});
  EXPECT_EQ(config.parallel().tensor(), 2);
  EXPECT_EQ(config.parallel().pipeline(), 7);
  EXPECT_EQ(config.parallel().shard(), ParallelConfig::NONE);
  EXPECT_EQ(config.optimizer().adamw().learning_rate(), 3e-4);
  EXPECT_TRUE(config.data().document_mask());
  EXPECT_EQ(config.train_for().steps(), 12);
  EXPECT_TRUE(config.lr_schedule().has_cosine());
  EXPECT_EQ(config.seed(), 16u);
}

TEST_F(Overrides, StringsMayGoWithoutQuotes) {
  EXPECT_EQ(Load("", {"run_dir=runs/a=b c"}).run_dir(), "runs/a=b c");
  EXPECT_EQ(Load("", {"run_dir=\"runs/quoted\""}).run_dir(), "runs/quoted");
  EXPECT_EQ(Load("run_dir: \"x\"", {"run_dir="}).run_dir(), "");
}

TEST_F(Overrides, ReplaceAppendAndEditRepeatedFields) {
  const std::string text = "data { source { path: \"a\" } source { path: \"b\" } }";
  EXPECT_EQ(Load(text, {"data.source={path: \"c\"}"}).data().source_size(), 1);
  EXPECT_EQ(Load(text, {"data.source=[]"}).data().source_size(), 0);
  EXPECT_EQ(Load(text, {"data.source=[{path: \"c\"}, {path: \"d\"}, {path: \"e\"}]"}).data().source(2).path(), "e");
  const RunConfig appended =
      Load(text, {"data.source+={path: \"c\"}", "data.source[2].weight=4", "data.source[0].path=z"});
  ASSERT_EQ(appended.data().source_size(), 3);
  EXPECT_EQ(appended.data().source(0).path(), "z");
  EXPECT_EQ(appended.data().source(1).path(), "b");
  EXPECT_EQ(appended.data().source(2).path(), "c");
  EXPECT_EQ(appended.data().source(2).weight(), 4);
}

TEST_F(Overrides, FragmentsMergeAndApplyInOrder) {
  const RunConfig config = Load("parallel { pipeline: 2 }", {"parallel { tensor: 2 }", "parallel.tensor=3",
                                                             "parallel { tensor: 4 } seed: 1", "seed=2"});
  EXPECT_EQ(config.parallel().tensor(), 4);
  EXPECT_EQ(config.parallel().pipeline(), 2);
  EXPECT_EQ(config.seed(), 2u);
}

TEST_F(Overrides, AssigningAMessageReplacesIt) {
  const RunConfig config = Load("parallel { pipeline: 2 }", {"parallel={ tensor: 2 }"});
  EXPECT_EQ(config.parallel().tensor(), 2);
  EXPECT_FALSE(config.parallel().has_pipeline());
}

TEST(DiffConfigs, ComparesEffectiveValues) {
  RunConfig before, after;
  after.mutable_parallel()->set_tensor(1);  // the default
  EXPECT_TRUE(DiffConfigs(before, after).empty());
  after.mutable_parallel()->set_tensor(2);
  after.set_run_dir("x");
  after.mutable_parallel()->set_shard(ParallelConfig::NONE);
  EXPECT_EQ(DiffConfigs(before, after),
            (std::vector<std::string>{"parallel.tensor: 1 -> 2", "parallel.shard: PARAMETERS -> NONE",
                                      "run_dir: (unset) -> \"x\""}));
}

TEST(DiffConfigs, ShowsChoicesAndElements) {
  RunConfig before, after;
  before.mutable_optimizer()->mutable_adamw()->set_learning_rate(0.0003);
  after.mutable_optimizer()->mutable_adamw()->set_learning_rate(0.001);
  before.mutable_train_for()->set_steps(5);
  after.mutable_train_for()->set_tokens(50);
  before.mutable_data()->add_source()->set_path("a");
  after.mutable_data()->add_source()->set_path("b");
  after.mutable_data()->add_source()->set_path("c");
  EXPECT_EQ(DiffConfigs(before, after),
            (std::vector<std::string>{
                "data.source[0].path: \"a\" -> \"b\"", "data.source[1]: (absent) -> { path: \"c\" }",
                "optimizer.adamw.learning_rate: 0.0003 -> 0.001", "train_for.amount: steps: 5 -> tokens: 50"}));
  EXPECT_EQ(DiffConfigs(RunConfig(), before)[1], "optimizer.rule: (unset) -> adamw { learning_rate: 0.0003 }");
}

}  // namespace
}  // namespace trireme
