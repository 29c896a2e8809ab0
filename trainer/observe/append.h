// trainer/observe/append.h
// Appending whole pieces to a file.
#ifndef TRIREME_TRAINER_OBSERVE_APPEND_H_
#define TRIREME_TRAINER_OBSERVE_APPEND_H_

#include <string>

#include "launch/base/status.h"

namespace trireme {

// Writes `piece` at the end of the file behind `fd` (opened with O_APPEND): all of it, or after an error nothing.
absl::Status AppendWhole(int fd, const std::string& piece, const std::string& path);

}  // namespace trireme

#endif  // TRIREME_TRAINER_OBSERVE_APPEND_H_
