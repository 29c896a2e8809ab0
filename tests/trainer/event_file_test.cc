#include "trainer/observe/event_file.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "launch/base/file.h"

namespace trireme {
namespace {

TEST(Crc32c, MatchesPublishedVectors) {
  EXPECT_EQ(Crc32c("123456789", 9), 0xE3069283u);
  EXPECT_EQ(Crc32c(std::string(32, '\0').data(), 32), 0x8A9136AAu);  // RFC 3720, B.4
  EXPECT_EQ(Crc32c(std::string(32, '\xff').data(), 32), 0x62A8AB43u);
  EXPECT_EQ(MaskedCrc32c("\x1a\x11"
                         "CRC test, one two",
                         19),
            0x5794D08Au);
}

uint64_t LittleEndianAt(const std::string& bytes, size_t at, size_t size) {
  uint64_t value = 0;
  for (size_t i = 0; i < size; ++i) value |= uint64_t{static_cast<uint8_t>(bytes[at + i])} << 8 * i;
  return value;
}

// The data of every record; fails on wrong framing.
std::vector<std::string> Records(const std::string& bytes) {
  std::vector<std::string> records;
  size_t at = 0;
  while (at < bytes.size()) {
    const uint64_t size = LittleEndianAt(bytes, at, 8);
    EXPECT_EQ(LittleEndianAt(bytes, at + 8, 4), MaskedCrc32c(bytes.data() + at, 8));
    if (at + 16 + size > bytes.size()) {
      ADD_FAILURE() << "record longer than the file";
      break;
    }
    records.push_back(bytes.substr(at + 12, size));
    EXPECT_EQ(LittleEndianAt(bytes, at + 12 + size, 4), MaskedCrc32c(records.back().data(), size));
    at += 16 + size;
  }
  return records;
}

TEST(EventFile, HoldsVersionSessionStartAndScalars) {
  const std::string folder = testing::TempDir() + "event_file_test";
  ASSERT_TRUE(RemoveAll(folder).ok());
  auto file = EventFile::Create(folder, 300);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE((*file)->AddScalars(300, {{"train/loss", 1.5}, {"a", -2}}).ok());
  ASSERT_TRUE((*file)->Sync().ok());
  const std::vector<std::string> records = Records(ReadFile((*file)->path()).value());
  ASSERT_EQ(records.size(), 3u);
  for (const std::string& record : records) EXPECT_EQ(record[0], 0x09);  // wall_time: field 1, 8 bytes
  EXPECT_EQ(records[0].substr(9), std::string("\x1a\x0d"
                                              "brain.Event:2"));
  EXPECT_EQ(records[1].substr(9), std::string("\x10\xac\x02\x3a\x02\x08\x01"));
  EXPECT_EQ(records[2].substr(9), std::string("\x10\xac\x02\x2a\x1d"
                                              "\x0a\x11\x0a\x0atrain/loss\x15\x00\x00\xc0\x3f"
                                              "\x0a\x08\x0a\x01"
                                              "a\x15\x00\x00\x00\xc0",
                                              34));
  ASSERT_TRUE(RemoveAll(folder).ok());
}

}  // namespace
}  // namespace trireme
