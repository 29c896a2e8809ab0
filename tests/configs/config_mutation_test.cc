// Damaged configs of every kind: loading must end in a config or in errors with places, never in a crash.
#include <gtest/gtest.h>

#include <random>

#include "configs/config_loader.h"
#include "configs/merge.h"
#include "configs/run_config.pb.h"
#include "configs/text_parser.h"

namespace trireme {
namespace {

constexpr char kValid[] =
    "# A recipe.\nmodel { family: \"llama\" num_hidden_layers: 6 rms_norm_eps: 1e-5 rope_scaling { factor: 8 } }\n"
    "data { source { path: \"a\" weight: -2.5 } source < path: 'b' 'c' > sequence_length: 256\tdocument_mask: true }\n"
    "parallel { tensor: 2, shard: PARAMETERS; } optimizer { adamw { learning_rate: 6e-4f } }\n"
    "train_for { steps: 500 } resume: AUTO seed: 0x10 run_dir: \"runs/\\x41\\n\"\n";

std::string Mutate(std::string text, std::mt19937& random) {
  static const std::vector<std::string> pieces = {"{",
                                                  "}",
                                                  "<",
                                                  ">",
                                                  "[",
                                                  "]",
                                                  ":",
                                                  "\"",
                                                  "'",
                                                  "-",
                                                  "#",
                                                  "\n",
                                                  "\t",
                                                  ";",
                                                  ",",
                                                  "tensor",
                                                  "parallel",
                                                  "9e999",
                                                  "99999999999999999999",
                                                  "true",
                                                  "[a.b.c/d.e]",
                                                  "\\",
                                                  "inf",
                                                  "NONE",
                                                  "adamw",
                                                  std::string(1, '\0'),
                                                  "\xff",
                                                  "."};
  const auto below = [&random](size_t bound) { return random() % std::max<size_t>(1, bound); };
  for (size_t edits = 1 + below(4); edits > 0; --edits) {
    const size_t at = below(text.size());
    switch (below(4)) {
      case 0:
        text.erase(at, 1 + below(12));
        break;
      case 1:
        text.insert(at, pieces[below(pieces.size())]);
        break;
      case 2:
        text.insert(at, text.substr(below(text.size()), below(30)));
        break;
      default:
        if (!text.empty()) text[at] = static_cast<char>(random());
    }
  }
  return text;
}

TEST(Mutation, DamagedTextsParseOrNameAPlace) {
  std::mt19937 random(1);
  int accepted = 0, refused = 0;
  for (int round = 0; round < 4000; ++round) {
    RunConfig config;
    std::vector<std::string> problems;
    ParseConfigText({"f", Mutate(kValid, random), "", 0}, &config, &problems);
    ++(problems.empty() ? accepted : refused);
    for (const std::string& problem : problems) {
      ASSERT_TRUE(problem.starts_with("f:") && problem.size() > 8) << problem;
    }
    ConfigText(config);
  }
  EXPECT_GT(accepted, 100);
  EXPECT_GT(refused, 1000);
}

TEST(Mutation, DamagedOverridesApplyOrNameAPlace) {
  std::mt19937 random(2);
  const std::vector<std::string> valid = {"parallel.tensor=2",       "data.source+={path: \"d\" weight: 3}",
                                          "data.source[1].weight=4", "parallel { tensor: 2 }",
                                          "run_dir=runs/x",          "data.source=[{path: \"a\"}, {}]"};
  RunConfig loaded;
  std::vector<std::string> problems;
  ParseConfigText({"f", kValid, "", 0}, &loaded, &problems);
  ASSERT_TRUE(problems.empty()) << problems[0];
  for (int round = 0; round < 4000; ++round) {
    RunConfig config = loaded;
    problems.clear();
    ApplyOverride(Mutate(valid[round % valid.size()], random), &config, &problems);
    for (const std::string& problem : problems) ASSERT_TRUE(problem.starts_with("--set '")) << problem;
    ConfigText(config);
    DiffConfigs(loaded, config);
  }
}

}  // namespace
}  // namespace trireme
