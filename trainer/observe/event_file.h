// trainer/observe/event_file.h
// TensorBoard's event files, written without TensorFlow.
#ifndef TRIREME_TRAINER_OBSERVE_EVENT_FILE_H_
#define TRIREME_TRAINER_OBSERVE_EVENT_FILE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "launch/base/status.h"

namespace trireme {

// CRC-32C (Castagnoli), and the masked form that record files store.
uint32_t Crc32c(const void* data, size_t size);
uint32_t MaskedCrc32c(const void* data, size_t size);

// One file of scalars. Each record reaches the kernel in one write, so a reader never sees half of one for long and a
// kill costs nothing that was added before.
class EventFile {
 public:
  // Creates a new file in `directory`, which is made if missing. `first_step`: the first step that will be added;
  // readers then disregard what earlier files of the directory say of it and later ones.
  static absl::StatusOr<std::unique_ptr<EventFile>> Create(const std::string& directory, int64_t first_step);
  ~EventFile();
  EventFile(const EventFile&) = delete;
  EventFile& operator=(const EventFile&) = delete;

  // One event with all values of a step, by tag.
  absl::Status AddScalars(int64_t step, const std::vector<std::pair<std::string, double>>& values);
  absl::Status Sync();  // To the disk.
  const std::string& path() const { return path_; }

 private:
  EventFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  absl::Status AddEvent(const std::string& fields);

  std::string path_;
  int fd_;
};

}  // namespace trireme

#endif  // TRIREME_TRAINER_OBSERVE_EVENT_FILE_H_
