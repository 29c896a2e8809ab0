#include <gtest/gtest.h>

#include "configs/config_loader.h"
#include "configs/suggest.h"
#include "tests/configs/config_files.h"

namespace trireme {
namespace {

class FileErrors : public ConfigFiles {};
class OverrideErrors : public ConfigFiles {};

TEST_F(FileErrors, UnknownFieldsAreAllReportedWithSuggestions) {
  EXPECT_EQ(
      Problems(
          "parallel {\n  tensr: 2 shard: NONE\n}\nmodel { layers: 3 }\nwholly_unknwn { a { b: 2 } }\nlearning_rate: 3"),
      "config.textproto:2:3: unknown field \"tensr\" in parallel; did you mean \"tensor\"?\n"
      "config.textproto:4:9: unknown field \"layers\" in model; did you mean \"num_hidden_layers\"?\n"
      "config.textproto:5:1: " +
          UnknownField(*RunConfig::descriptor(), "", "wholly_unknwn") +
          "\n"
          "config.textproto:6:1: unknown field \"learning_rate\"; did you mean optimizer.adamw.learning_rate or "
          "optimizer.sgd.learning_rate or optimizer.muon.learning_rate or optimizer.muon.adamw.learning_rate or "
          "optimizer.lion.learning_rate?");
}

TEST_F(FileErrors, UnknownFieldIsPlacedWhereItsNameStandsDespiteCommentsAndTabs) {
  EXPECT_EQ(Problems("data {\t\ttensr  # tensr here\n  : 2 }"),
            "config.textproto:1:9: unknown field \"tensr\" in data; known are source, sequence_length, document_mask, "
            "prefetch_steps, "
            "verify_checksums, conversations");
}

TEST_F(FileErrors, WrongTypesAreAllReportedAtTheValue) {
  EXPECT_EQ(Problems("seed: -1\nparallel { tensor: two pipeline: 99999999999 }\ndata { document_mask: maybe source { "
                     "path: 3 } }\nmicro_batch_size: 1.5\nrun_dir: 5"),
            "config.textproto:1:7: seed (uint64): Expected integer, got: -\n"
            "config.textproto:2:20: parallel.tensor (int32): Expected integer, got: two\n"
            "config.textproto:2:34: parallel.pipeline (int32): Integer out of range (99999999999)\n"
            "config.textproto:3:23: data.document_mask (bool): expected true or false, got maybe\n"
            "config.textproto:3:44: data.source.path (string): Expected string, got: 3\n"
            "config.textproto:4:19: micro_batch_size (int32): Expected integer, got: 1.5\n"
            "config.textproto:5:10: run_dir (string): Expected string, got: 5");
}

TEST_F(FileErrors, EnumNamesAreCaseSensitiveButSuggested) {
  EXPECT_EQ(Problems("parallel { shard: gradients reduce_gradients: SOMETIMES }"),
            "config.textproto:1:19: \"gradients\" is no value of parallel.shard; did you mean \"GRADIENTS\"?\n"
            "config.textproto:1:47: \"SOMETIMES\" is no value of parallel.reduce_gradients; known are "
            "EVERY_MICROBATCH, LAST_MICROBATCH");
}

TEST_F(FileErrors, MessageGivenAsScalarAndTheReverse) {
  EXPECT_EQ(Problems("evaluation: 3\nseed { x: 1 }"),
            "config.textproto:1:13: evaluation (EvaluationConfig): Expected \"{\", found \"3\".\n"
            "config.textproto:2:6: seed (uint64): Expected \":\", found \"{\".");
}

TEST_F(FileErrors, FieldsGivenTwiceAndExclusiveChoices) {
  EXPECT_EQ(Problems("seed: 1 seed: 2\noptimizer { adamw {} sgd { momentum: 0.9 } }"),
            "config.textproto:1:9: seed is given more than once; keep one\n"
            "config.textproto:2:22: optimizer.sgd and optimizer.adamw exclude each other; keep one");
}

TEST_F(FileErrors, SyntaxErrorsEndAFileButNotTheOthers) {
  const std::string broken = Write("broken.textproto", "parallel { tensor: 2\nseed: 1");
  const std::string other = Write("other.textproto", "sed: 1");
  const absl::StatusOr<RunConfig> config = LoadConfig({broken, folder_ + "/missing.textproto", other}, {"x=1"});
  ASSERT_FALSE(config.ok());
  EXPECT_EQ(ExitCodeOf(config.status()), ExitCode::kConfig);
  const std::string message(config.status().message());
  EXPECT_NE(message.find(broken + ":2:8: "), std::string::npos) << message;
  EXPECT_NE(message.find("missing.textproto: No such file"), std::string::npos) << message;
  EXPECT_NE(message.find(other + ":1:1: unknown field \"sed\"; did you mean \"seed\"?"), std::string::npos) << message;
  EXPECT_NE(message.find("--set 'x=1':1:1: unknown field \"x\""), std::string::npos) << message;
}

TEST_F(FileErrors, LargeFilesAndFoldersAreRefused) {
  EXPECT_NE(Problems(std::string(2 << 20, '\n')).find("2097152 bytes, more than the 1048576"), std::string::npos);
  EXPECT_FALSE(LoadConfig({folder_}, {}).ok());
}

TEST_F(FileErrors, DeepNestingIsRefused) {
  std::string text;
  for (int i = 0; i < 50'000; ++i) text += "a{";
  EXPECT_NE(Problems(text).find("too deep"), std::string::npos) << Problems(text);
}

TEST_F(FileErrors, LargeFilesOfMistakesAreReadInLinearTime) {
  std::string text;
  for (int i = 0; i < 20'000; ++i) text += "unknown: 1 ";
  EXPECT_NE(Problems(text).find("config.textproto: and 19960 more"), std::string::npos);
}

TEST_F(FileErrors, EndlessMistakesAreCut) {
  std::string text;
  for (int i = 0; i < 100; ++i) text += "x" + std::to_string(i) + ": 1\n";
  EXPECT_NE(Problems(text).find("config.textproto: and 60 more"), std::string::npos);
}

TEST_F(OverrideErrors, NameTheUnknownPartOfThePath) {
  EXPECT_EQ(
      Problems("", {"paralel.tensor=2", "parallel.tensr=2", "optimizer.adamw.lr=3", "optimizer.rule=adamw", "seed.x=1",
                    "=3"}),
      "--set 'paralel.tensor=2':1:1: unknown field \"paralel\"; did you mean \"parallel\"?\n"
      "--set 'parallel.tensr=2':1:10: unknown field \"tensr\" in parallel; did you mean \"tensor\"?\n"
      "--set 'optimizer.adamw.lr=3':1:17: unknown field \"lr\" in optimizer.adamw; did you mean \"learning_rate\"?\n"
      "--set 'optimizer.rule=adamw':1:11: \"rule\" stands for one of adamw, sgd, muon, lion; name that one\n"
      "--set 'seed.x=1':1:5: seed is a uint64 and has no members\n"
      "--set '=3':1:1: " +
          UnknownField(*RunConfig::descriptor(), "", ""));
}

TEST_F(OverrideErrors, PlaceTheWrongValue) {
  EXPECT_EQ(Problems("", {"parallel.tensor=two", "parallel.shard=none", "seed=", "seed=1 run_dir: \"x\"", "parallel=3",
                          "parallel { tensr: 2 }"}),
            "--set 'parallel.tensor=two':1:17: parallel.tensor (int32): Expected integer, got: two\n"
            "--set 'parallel.shard=none':1:16: \"none\" is no value of parallel.shard; did you mean \"NONE\"?\n"
            "--set 'seed=':1:6: seed (uint64): Expected integer, got: nothing\n"
            "--set 'seed=1 run_dir: \"x\"':1:6: one value for seed was expected, not also run_dir\n"
            "--set 'parallel=3':1:10: parallel has members; give { MEMBER: VALUE }, or set parallel.MEMBER\n"
            "--set 'parallel { tensr: 2 }':1:12: unknown field \"tensr\" in parallel; did you mean \"tensor\"?");
}

TEST_F(OverrideErrors, RepeatedFieldsNeedAnIndexAndOthersTakeNone) {
  EXPECT_EQ(Problems("data { source {} }", {"data.source.path=x", "data.source[1].path=x", "data.source[-1].path=x",
                                            "data.source[0]=x", "parallel[0].tensor=1", "seed[0]=1", "run_dir+=x"}),
            "--set 'data.source.path=x':1:12: data.source is repeated; name an element as data.source[0], or use "
            "data.source= or data.source+=\n"
            "--set 'data.source[1].path=x':1:12: data.source has 1 elements, so there is no [1]\n"
            "--set 'data.source[-1].path=x':1:12: data.source is repeated; name an element as data.source[0], or use "
            "data.source= or "
            "data.source+=\n"
            "--set 'data.source[0]=x':1:12: name a member of data.source[0], or use data.source= or data.source+=\n"
            "--set 'parallel[0].tensor=1':1:9: parallel is not repeated and takes no index\n"
            "--set 'seed[0]=1':1:5: seed is a uint64 and has no elements\n"
            "--set 'run_dir+=x':1:8: run_dir is not repeated; use = instead of +=");
}

TEST_F(OverrideErrors, NeitherAssignmentNorFragment) {
  EXPECT_EQ(Problems("", {"parallel.tensor"}),
            "--set 'parallel.tensor':1:1: neither PATH=VALUE, PATH+=VALUE nor a fragment as 'parallel { tensor: 2 }'");
}

TEST(EditDistance, CountsSingleEdits) {
  EXPECT_EQ(EditDistance("", "abc"), 3);
  EXPECT_EQ(EditDistance("tensor", "tensor"), 0);
  EXPECT_EQ(EditDistance("tensr", "tensor"), 1);
  EXPECT_EQ(EditDistance("tesnor", "tensor"), 1);
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3);
}

}  // namespace
}  // namespace trireme
