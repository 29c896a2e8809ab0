// Put before libc by LD_PRELOAD: files that are slow, that hang, or that lack what file systems may lack. By
// environment, for paths that contain ODD_FILES_PATH:
//   ODD_FILES_WRITE, ODD_FILES_SYNC, ODD_FILES_READ   bytes per second
//   ODD_FILES_HANG=N     writing hangs for ever after N bytes in this process
//   ODD_FILES_NO_LOCK=1  flock() is not supported
//   ODD_FILES_DIE=1      a rename to such a path, but none of a temporary, kills the process
//   ODD_FILES_NO_EXCHANGE=1  names cannot be exchanged; ODD_FILES_DIE then lets the first rename pass
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/types.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

template <typename Function>
Function* Real(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

double Number(const char* variable) {
  const char* text = std::getenv(variable);
  return text == nullptr ? 0 : std::atof(text);
}

bool Meant(const std::string& path) {
  const char* part = std::getenv("ODD_FILES_PATH");
  return part != nullptr && path.find(part) != std::string::npos;
}

bool IsMeant(int fd) {
  char path[4096];
  const ssize_t size = readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), path, sizeof(path) - 1);
  return size > 0 && Meant(std::string(path, static_cast<size_t>(size)));
}

void Spend(const char* variable, double bytes) {
  const double rate = Number(variable);
  if (rate > 0) usleep(static_cast<useconds_t>(1e6 * bytes / rate));
}

constexpr int kFiles = 4096;
double unsynced[kFiles];
double written = 0;

int Sync(const char* name, int fd) {
  if (fd >= 0 && fd < kFiles && IsMeant(fd)) {
    Spend("ODD_FILES_SYNC", unsynced[fd]);
    unsynced[fd] = 0;
  }
  return Real<int(int)>(name)(fd);
}

// Whether a rename to `to` is the one at which this process dies.
void MaybeDie(const std::string& to) {
  if (Number("ODD_FILES_DIE") > 0 && Meant(to) && to.find(".tmp-") == std::string::npos) kill(getpid(), SIGKILL);
}

}  // namespace

extern "C" {

ssize_t write(int fd, const void* data, size_t size) {
  if (fd > 2 && IsMeant(fd)) {
    const double limit = Number("ODD_FILES_HANG");
    while (limit > 0 && written > limit) sleep(1);
    written += static_cast<double>(size);
    if (fd < kFiles) unsynced[fd] += static_cast<double>(size);
    Spend("ODD_FILES_WRITE", static_cast<double>(size));
  }
  return Real<ssize_t(int, const void*, size_t)>("write")(fd, data, size);
}

ssize_t read(int fd, void* data, size_t size) {
  const ssize_t got = Real<ssize_t(int, void*, size_t)>("read")(fd, data, size);
  if (got > 0 && Number("ODD_FILES_READ") > 0 && IsMeant(fd)) Spend("ODD_FILES_READ", static_cast<double>(got));
  return got;
}

int fsync(int fd) { return Sync("fsync", fd); }
int fdatasync(int fd) { return Sync("fdatasync", fd); }

int flock(int fd, int operation) {
  if (Number("ODD_FILES_NO_LOCK") > 0 && IsMeant(fd)) {
    errno = ENOSYS;
    return -1;
  }
  return Real<int(int, int)>("flock")(fd, operation);
}

int rename(const char* from, const char* to) {
  MaybeDie(to);
  return Real<int(const char*, const char*)>("rename")(from, to);
}

int renameat2(int from_folder, const char* from, int to_folder, const char* to, unsigned flags) {
  if (Number("ODD_FILES_NO_EXCHANGE") > 0 && Meant(to)) {
    errno = EINVAL;
    return -1;
  }
  MaybeDie(to);
  return Real<int(int, const char*, int, const char*, unsigned)>("renameat2")(from_folder, from, to_folder, to, flags);
}

}  // extern "C"
