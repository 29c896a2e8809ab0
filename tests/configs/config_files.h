// tests/configs/config_files.h
// Textprotos on disk for one test.
#ifndef TRIREME_TESTS_CONFIGS_CONFIG_FILES_H_
#define TRIREME_TESTS_CONFIGS_CONFIG_FILES_H_

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "configs/config_loader.h"
#include "launch/base/file.h"

namespace trireme {

class ConfigFiles : public testing::Test {
 protected:
  void SetUp() override {
    const testing::TestInfo& test = *testing::UnitTest::GetInstance()->current_test_info();
    folder_ = testing::TempDir() + "configs_" + test.test_suite_name() + "_" + test.name();
    ASSERT_TRUE(RemoveAll(folder_).ok());
    ASSERT_TRUE(MakeDirectories(folder_).ok());
  }
  void TearDown() override { ASSERT_TRUE(RemoveAll(folder_).ok()); }

  std::string Write(const std::string& name, const std::string& text) {
    const std::string path = folder_ + "/" + name;
    EXPECT_TRUE(WriteFileAtomically(path, text).ok());
    return path;
  }

  // Loads one file of this text; the test fails if it is refused.
  RunConfig Load(const std::string& text, const std::vector<std::string>& overrides = {}) {
    const absl::StatusOr<RunConfig> config = LoadConfig({Write("config.textproto", text)}, overrides);
    EXPECT_TRUE(config.ok()) << config.status();
    return config.value_or(RunConfig());
  }

  // The problems found in one file of this text and overrides, without the file's folder; the test fails if there are
  // none.
  std::string Problems(const std::string& text, const std::vector<std::string>& overrides = {}) {
    const absl::StatusOr<RunConfig> config = LoadConfig({Write("config.textproto", text)}, overrides);
    EXPECT_FALSE(config.ok());
    if (config.ok()) return "";
    EXPECT_EQ(ExitCodeOf(config.status()), ExitCode::kConfig);
    std::string problems(config.status().message());
    problems = problems.substr(problems.find('\n') + 1);
    for (size_t at; (at = problems.find(folder_ + "/")) != std::string::npos;) problems.erase(at, folder_.size() + 1);
    return problems;
  }

  std::string folder_;
};

}  // namespace trireme

#endif  // TRIREME_TESTS_CONFIGS_CONFIG_FILES_H_
