#include "launch/base/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <string>
#include <vector>

namespace trireme {
namespace {

namespace fs = std::filesystem;

class Files : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "files_" + testing::UnitTest::GetInstance()->current_test_info()->name();
    ASSERT_TRUE(RemoveAll(folder_).ok());
    ASSERT_TRUE(MakeDirectories(folder_ + "/a/b").ok());
    path_ = folder_ + "/a/b/file";
  }
  void TearDown() override { ASSERT_TRUE(RemoveAll(folder_).ok()); }

  std::vector<std::string> Listing() {
    std::vector<std::string> names;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder_ + "/a/b"))
      names.push_back(entry.path().filename().string());
    return names;
  }

  std::string folder_, path_;
};

TEST_F(Files, AtomicWriteReplacesTheWholeFileAndLeavesNoOther) {
  const std::string binary("one\0two\n", 8);
  ASSERT_TRUE(WriteFileAtomically(path_, "earlier and longer contents").ok());
  ASSERT_TRUE(WriteFileAtomically(path_, binary).ok());
  EXPECT_EQ(ReadFile(path_).value(), binary);
  EXPECT_EQ(Listing(), std::vector<std::string>{"file"});
}

TEST_F(Files, AtomicWriteFollowsLinksAndLeavesPipesAsTheyAre) {
  const std::string link = folder_ + "/link", pipe = folder_ + "/pipe";
  ASSERT_TRUE(WriteFileAtomically(path_, "old").ok());
  fs::create_symlink(path_, link);
  ASSERT_TRUE(WriteFileAtomically(link, "new").ok());
  EXPECT_TRUE(fs::is_symlink(link));
  EXPECT_EQ(ReadFile(path_).value(), "new");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const int reader = open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
  ASSERT_TRUE(WriteFileAtomically(pipe, "through").ok());
  char bytes[16] = {0};
  EXPECT_EQ(read(reader, bytes, sizeof(bytes)), 7);
  EXPECT_STREQ(bytes, "through");
  close(reader);
  EXPECT_EQ(fs::status(pipe).type(), fs::file_type::fifo);
  EXPECT_EQ(ExitCodeOf(ReadFile(pipe).status()), ExitCode::kData) << "and reading one does not wait";
}

TEST_F(Files, ALockHasOneOwner) {
  absl::StatusOr<std::unique_ptr<FileLock>> first = FileLock::Take(path_);
  ASSERT_TRUE(first.ok() && *first != nullptr);
  EXPECT_EQ(FileLock::Take(path_).value(), nullptr);
  first->reset();
  EXPECT_NE(FileLock::Take(path_).value(), nullptr);
  EXPECT_EQ(ExitCodeOf(FileLock::Take(folder_ + "/missing/lock").status()), ExitCode::kStorage);
}

TEST_F(Files, FailedAtomicWriteKeepsTheOldFile) {
  ASSERT_TRUE(WriteFileAtomically(path_, "old").ok());
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit small = before;
  small.rlim_cur = 1000;
  setrlimit(RLIMIT_FSIZE, &small);
  const absl::Status status = WriteFileAtomically(path_, std::string(5000, 'x'));
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kStorage) << status;
  EXPECT_EQ(ReadFile(path_).value(), "old");
  EXPECT_EQ(Listing(), std::vector<std::string>{"file"});
}

TEST_F(Files, ReadingRefusesWhatIsTooLargeMissingOrNoFile) {
  ASSERT_TRUE(WriteFileAtomically(path_, "12345").ok());
  EXPECT_EQ(ReadFile(path_, 5).value(), "12345");
  EXPECT_EQ(ExitCodeOf(ReadFile(path_, 4).status()), ExitCode::kData);
  EXPECT_NE(ReadFile(path_ + "x").status().message().find("No such file"), std::string::npos);
  EXPECT_EQ(ExitCodeOf(ReadFile(folder_).status()), ExitCode::kData);
  ASSERT_EQ(mkfifo((folder_ + "/a/b/pipe").c_str(), 0600), 0);
  EXPECT_FALSE(MappedFile::Open(folder_ + "/a").ok());
}

TEST_F(Files, WriterHashesWhatItWrites) {
  const std::string piece(300'000, 'p'), large(3 << 20, 'q');
  auto writer = FileWriter::Create(path_);
  ASSERT_TRUE(writer.ok());
  for (const std::string& part : {piece, piece, large, std::string("x"), piece})
    ASSERT_TRUE((*writer)->Append(part.data(), part.size()).ok());
  ASSERT_TRUE((*writer)->Close().ok());
  const std::string all = piece + piece + large + "x" + piece;
  EXPECT_EQ((*writer)->size(), all.size());
  EXPECT_EQ(ReadFile(path_).value(), all);
  EXPECT_EQ((*writer)->digest(), HashBytes(all.data(), all.size()));
  uint64_t done = 0;
  EXPECT_EQ(HashFile(path_, [&done](uint64_t bytes) { done = bytes; }).value(), (*writer)->digest());
  EXPECT_EQ(done, all.size());
}

TEST_F(Files, HashIsXxh3Of128Bits) {
  // Published test value of XXH3 128 bits of no input with seed 0.
  EXPECT_EQ(HashBytes("", 0), "99aa06d3014798d86001c324468d497f");
  EXPECT_NE(HashBytes("a", 1), HashBytes("b", 1));
}

TEST_F(Files, MapsWholeFilesAndEmptyOnes) {
  ASSERT_TRUE(WriteFileAtomically(path_, "mapped").ok());
  auto mapped = MappedFile::Open(path_);
  ASSERT_TRUE(mapped.ok());
  EXPECT_EQ(std::string(reinterpret_cast<const char*>((*mapped)->data()), (*mapped)->size()), "mapped");
  ASSERT_TRUE(WriteFileAtomically(path_, "").ok());
  EXPECT_EQ(MappedFile::Open(path_).value()->data(), nullptr);
}

TEST_F(Files, RemovingAndMovingDurably) {
  EXPECT_TRUE(RemoveAll(path_).ok());
  ASSERT_TRUE(WriteFileAtomically(path_, "x").ok());
  EXPECT_TRUE(RenameDurably(path_, folder_ + "/moved").ok());
  EXPECT_EQ(ReadFile(folder_ + "/moved").value(), "x");
  EXPECT_EQ(ExitCodeOf(RenameDurably(path_, folder_ + "/moved")), ExitCode::kStorage);
  EXPECT_EQ(ExitCodeOf(MakeDirectories(folder_ + "/moved/below")), ExitCode::kStorage);
}

}  // namespace
}  // namespace trireme
