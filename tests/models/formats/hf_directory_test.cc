// Model directories that are whole, and those that are not.
#include "models/formats/hf/hf_directory.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "launch/base/file.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

class HfDirectoryTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "hf_directory_" + testing::UnitTest::GetInstance()->current_test_info()->name();
    ASSERT_TRUE(RemoveAll(folder_).ok());
    ASSERT_TRUE(MakeDirectories(folder_).ok());
  }
  void TearDown() override { ASSERT_TRUE(RemoveAll(folder_).ok()); }

  void Write(const std::string& name, const std::string& text) {
    ASSERT_TRUE(WriteFileAtomically(absl::StrCat(folder_, "/", name), text).ok());
  }
  // A file of one-byte tensors with these names, each holding `value`.
  void WriteTensors(const std::string& name, const std::vector<std::string>& tensors, char value) {
    std::vector<SafetensorsEntry> entries;
    for (const std::string& tensor : tensors) entries.push_back({tensor, "U8", {1}});
    const auto produce = [&](const SafetensorsEntry&, FileWriter& writer) { return writer.Append(&value, 1); };
    ASSERT_TRUE(WriteSafetensors(absl::StrCat(folder_, "/", name), entries, {}, produce).ok());
  }
  void WriteIndex(const nlohmann::json& map) {
    Write(kHfIndexName, nlohmann::json{{"metadata", {{"total_size", 3}}}, {"weight_map", map}}.dump());
  }

  void ExpectRefused(const std::string& reason) {
    const absl::StatusOr<HfDirectory> directory = HfDirectory::Open(folder_);
    ASSERT_FALSE(directory.ok()) << "accepted; expected: " << reason;
    EXPECT_EQ(ExitCodeOf(directory.status()), ExitCode::kData);
    EXPECT_NE(directory.status().message().find(reason), std::string::npos) << directory.status();
  }

  std::string folder_;
};

TEST_F(HfDirectoryTest, OneFile) {
  WriteTensors(kHfWeightsName, {"a", "b"}, 7);
  const absl::StatusOr<HfDirectory> directory = HfDirectory::Open(folder_);
  ASSERT_TRUE(directory.ok()) << directory.status();
  ASSERT_EQ(directory->tensors().size(), 2u);
  EXPECT_EQ(*directory->tensors().at("b").data(), 7);
}

TEST_F(HfDirectoryTest, SeveralFilesByTheIndex) {
  WriteTensors("model-00001-of-00002.safetensors", {"a", "b"}, 1);
  WriteTensors("model-00002-of-00002.safetensors", {"c"}, 2);
  WriteTensors("unrelated.safetensors", {"d"}, 3);
  WriteIndex({{"a", "model-00001-of-00002.safetensors"},
              {"b", "model-00001-of-00002.safetensors"},
              {"c", "model-00002-of-00002.safetensors"}});
  const absl::StatusOr<HfDirectory> directory = HfDirectory::Open(folder_);
  ASSERT_TRUE(directory.ok()) << directory.status();
  EXPECT_EQ(directory->tensors().size(), 3u) << "files that the index does not name are not read";
  EXPECT_EQ(*directory->tensors().at("a").data(), 1);
  EXPECT_EQ(*directory->tensors().at("c").data(), 2);
}

TEST_F(HfDirectoryTest, OneWholeFileGoesBeforeAnIndex) {
  WriteTensors(kHfWeightsName, {"a"}, 1);
  WriteIndex({{"a", "gone.safetensors"}});
  const absl::StatusOr<HfDirectory> directory = HfDirectory::Open(folder_);
  EXPECT_TRUE(directory.ok()) << directory.status();
}

TEST_F(HfDirectoryTest, NamesInTheIndexStayInTheFolder) {
  WriteTensors("x.safetensors", {"a"}, 1);
  for (const std::string name :
       {"../x.safetensors", "/x.safetensors", "sub/x.safetensors", "..", ".", "", ".x", "x\\y", "x.safetensors\n"}) {
    SCOPED_TRACE(name);
    WriteIndex({{"a", name}});
    ExpectRefused("is not the name of a file beside the index");
  }
  WriteIndex({{"a", 5}});
  ExpectRefused("\"a\" is said to be in 5");
}

TEST_F(HfDirectoryTest, LinksThatTheUserPlacedAreFollowed) {
  WriteTensors("elsewhere", {"a"}, 4);
  fs::create_symlink("elsewhere", folder_ + "/" + kHfWeightsName);
  const absl::StatusOr<HfDirectory> directory = HfDirectory::Open(folder_);
  ASSERT_TRUE(directory.ok()) << directory.status();
  EXPECT_EQ(*directory->tensors().at("a").data(), 4);
}

TEST_F(HfDirectoryTest, WhatIsNotWholeIsRefused) {
  ExpectRefused("holds neither model.safetensors nor model.safetensors.index.json");
  Write("pytorch_model.bin", "x");
  ExpectRefused("pickle");
  WriteTensors("one.safetensors", {"a"}, 1);
  WriteIndex({{"a", "one.safetensors"}, {"b", "two.safetensors"}, {"c", "three.safetensors"}});
  ExpectRefused("2 of the 3 files that model.safetensors.index.json names are missing: two.safetensors, three");
  WriteTensors("two.safetensors", {"b"}, 1);
  WriteIndex({{"a", "two.safetensors"}, {"b", "one.safetensors"}});
  ExpectRefused("says that \"a\" is in two.safetensors, but it is not");
  WriteTensors("two.safetensors", {"a", "b"}, 1);
  WriteIndex({{"a", "one.safetensors"}, {"b", "two.safetensors"}});
  ExpectRefused("\"a\" stands in ");
  Write(kHfIndexName, "{}");
  ExpectRefused("has no weight_map");
  Write(kHfIndexName, "{\"weight_map\": {\"a\": \"x\", \"a\": \"y\"}}");
  ExpectRefused("names \"a\" twice");
  Write(kHfWeightsName, "damaged");
  ExpectRefused("model.safetensors");
}

// With the variables of Hugging Face's cache set for one test.
class HubCacheTest : public HfDirectoryTest {
 protected:
  void SetUp() override {
    HfDirectoryTest::SetUp();
    ::unsetenv("HF_HUB_CACHE");
    ::setenv("HF_HOME", folder_.c_str(), 1);
    snapshots_ = folder_ + "/hub/models--org--name/snapshots";
    ASSERT_TRUE(MakeDirectories(snapshots_ + "/abc123").ok());
    ASSERT_TRUE(MakeDirectories(folder_ + "/hub/models--org--name/refs").ok());
    WriteMain("abc123");
  }
  void TearDown() override {
    ::unsetenv("HF_HOME");
    ::unsetenv("HF_HUB_CACHE");
    HfDirectoryTest::TearDown();
  }
  void WriteMain(const std::string& text) { Write("hub/models--org--name/refs/main", text); }

  std::string snapshots_;
};

TEST_F(HubCacheTest, FindsTheSnapshotOfMain) {
  ASSERT_EQ(FindHfDirectory("org/name").value_or(""), snapshots_ + "/abc123");
  WriteMain("abc123\n");
  EXPECT_EQ(FindHfDirectory("org/name").value_or(""), snapshots_ + "/abc123");
  ::setenv("HF_HUB_CACHE", (folder_ + "/hub").c_str(), 1);
  ::setenv("HF_HOME", "/nowhere", 1);
  EXPECT_EQ(FindHfDirectory("org/name").value_or(""), snapshots_ + "/abc123");
}

TEST_F(HubCacheTest, AFolderGoesBeforeTheCache) { EXPECT_EQ(FindHfDirectory(snapshots_).value_or(""), snapshots_); }

TEST_F(HubCacheTest, WhatIsNotThereComesWithTheCommandThatGetsIt) {
  const auto expect = [&](const std::string& name, const std::string& reason) {
    const absl::Status status = FindHfDirectory(name).status();
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kConfig) << name;
    EXPECT_NE(status.message().find(reason), std::string::npos) << status;
  };
  expect("org/other", "`hf download org/other`");
  expect("gpt2", "models--gpt2/refs/main; download it with `hf download gpt2`");
  WriteMain("def456");
  expect("org/name", "names a snapshot that is not there");
  WriteMain("../snapshots/abc123");
  expect("org/name", "names a snapshot that is not there");
  for (const char* name : {"/no/such/folder", "a/b/c", "../x", "org/..", "org/a b", ""}) {
    expect(name, "there is no such folder; give");
  }
}

}  // namespace
}  // namespace trireme
