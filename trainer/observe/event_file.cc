// Records: u64 length, masked CRC of it, data, masked CRC of it, little-endian (TFRecord). Data: tensorflow.Event,
// whose few fields that are needed are encoded here by hand: wall_time = 1 (double), step = 2 (varint), file_version =
// 3, summary = 5 { value = 1 { tag = 1, simple_value = 2 (float) } }, session_log = 7 { status = 1 }.
#include "trainer/observe/event_file.h"

#include <absl/strings/str_format.h>
#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>

#include "launch/base/file.h"
#include "trainer/observe/append.h"

namespace trireme {
namespace {

constexpr std::array<uint32_t, 256> kCrcTable = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? crc >> 1 ^ 0x82F63B78u : crc >> 1;
    table[byte] = crc;
  }
  return table;
}();

template <typename Integer>
std::string LittleEndian(Integer value) {
  std::string bytes;
  for (size_t i = 0; i < sizeof(value); ++i) bytes += static_cast<char>(value >> 8 * i & 0xFF);
  return bytes;
}

std::string Varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes += static_cast<char>(value);
}

enum WireType { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

std::string Key(int field, WireType type) { return Varint(field << 3 | type); }
std::string VarintField(int field, uint64_t value) { return Key(field, kVarint) + Varint(value); }
std::string BytesField(int field, const std::string& value) {
  return Key(field, kBytes) + Varint(value.size()) + value;
}
std::string DoubleField(int field, double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return Key(field, kFixed64) + LittleEndian(bits);
}
std::string FloatField(int field, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return Key(field, kFixed32) + LittleEndian(bits);
}

double WallTime() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

}  // namespace

uint32_t Crc32c(const void* data, size_t size) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  uint32_t crc = ~0u;
  for (size_t i = 0; i < size; ++i) crc = crc >> 8 ^ kCrcTable[(crc ^ bytes[i]) & 0xFF];
  return ~crc;
}

uint32_t MaskedCrc32c(const void* data, size_t size) {
  const uint32_t crc = Crc32c(data, size);
  return (crc >> 15 | crc << 17) + 0xA282EAD8u;
}

absl::StatusOr<std::unique_ptr<EventFile>> EventFile::Create(const std::string& directory, int64_t first_step) {
  RETURN_IF_ERROR(MakeDirectories(directory));
  char host[256] = "";
  ::gethostname(host, sizeof(host) - 1);
  static std::atomic<int> created{0};  // Two files of one second and process need different names.
  const std::string path = absl::StrFormat("%s/events.out.tfevents.%010d.%s.%d.%d", directory,
                                           static_cast<int64_t>(WallTime()), host, ::getpid(), created.fetch_add(1));
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) return SystemError("create", path, /*writing=*/true);
  std::unique_ptr<EventFile> file(new EventFile(path, fd));
  RETURN_IF_ERROR(file->AddEvent(BytesField(3, "brain.Event:2")));
  constexpr int kSessionStart = 1;
  RETURN_IF_ERROR(file->AddEvent(VarintField(2, first_step) + BytesField(7, VarintField(1, kSessionStart))));
  return file;
}

EventFile::~EventFile() { ::close(fd_); }

absl::Status EventFile::AddScalars(int64_t step, const std::vector<std::pair<std::string, double>>& values) {
  std::string summary;
  for (const auto& [tag, value] : values) {
    summary += BytesField(1, BytesField(1, tag) + FloatField(2, static_cast<float>(value)));
  }
  return AddEvent(VarintField(2, step) + BytesField(5, summary));
}

absl::Status EventFile::AddEvent(const std::string& fields) {
  const std::string data = DoubleField(1, WallTime()) + fields;
  const std::string length = LittleEndian<uint64_t>(data.size());
  return AppendWhole(fd_,
                     length + LittleEndian(MaskedCrc32c(length.data(), length.size())) + data +
                         LittleEndian(MaskedCrc32c(data.data(), data.size())),
                     path_);
}

absl::Status EventFile::Sync() {
  return ::fsync(fd_) == 0 ? absl::OkStatus() : SystemError("fsync", path_, /*writing=*/true);
}

}  // namespace trireme
