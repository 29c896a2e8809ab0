#include "launch/base/folder.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace trireme {
namespace {

TEST(ListFolder, NamesInOrder) {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("folder_test." + std::to_string(getpid()));
  std::filesystem::create_directories(folder / "b");
  std::ofstream(folder / "c") << "x";
  std::ofstream(folder / ".a") << "x";
  EXPECT_EQ(ListFolder(folder).value(), (std::vector<std::string>{".a", "b", "c"}));
  EXPECT_TRUE(ListFolder(folder / "b").value().empty());
  for (const char* name : {"c", "none"}) {
    const absl::Status status = ListFolder(folder / name).status();
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kStorage) << name;
    EXPECT_NE(status.message().find((folder / name).string()), absl::string_view::npos);
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace trireme
