#include "trainer/observe/append.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace trireme {

absl::Status AppendWhole(int fd, const std::string& piece, const std::string& path) {
  struct stat before;
  if (::fstat(fd, &before) != 0) return SystemError("append to", path, /*writing=*/true);
  size_t done = 0;
  while (done < piece.size()) {
    const ssize_t written = ::write(fd, piece.data() + done, piece.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      const absl::Status status = SystemError("append to", path, /*writing=*/true);
      if (done > 0 && ::ftruncate(fd, before.st_size) != 0) return Annotate(status, "and a torn end remains");
      return status;
    }
    done += written;
  }
  return absl::OkStatus();
}

}  // namespace trireme
