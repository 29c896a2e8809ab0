#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

#include "kernels/cpu/loops.h"
#include "launch/base/exit_code.h"
#include "launch/base/log.h"

namespace trireme {
namespace {

// From the lowest on.
enum class Level { kPortable, kAvx2, kAvx512 };
constexpr std::pair<const char*, Level> kLevels[] = {
    {"portable", Level::kPortable}, {"avx2", Level::kAvx2}, {"avx512", Level::kAvx512}};

// The highest that may be used.
Level Wished() {
  const char* wish = std::getenv("TRIREME_CPU");
  if (wish == nullptr || *wish == 0) return Level::kAvx512;
  std::string known;
  for (const auto& [name, level] : kLevels) {
    if (std::strcmp(wish, name) == 0) return level;
    absl::StrAppend(&known, known.empty() ? "" : ", ", name);
  }
  WriteLog(Severity::kError, absl::StrCat("TRIREME_CPU: is \"", wish, "\"; there are: ", known));
  std::_Exit(static_cast<int>(ExitCode::kConfig));
}

const CpuLoops& Choose() {
  [[maybe_unused]] const Level most = Wished();
#if defined(__x86_64__)
  if (most >= Level::kAvx512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Avx512Loops();
  }
  if (most >= Level::kAvx2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Avx2Loops();
#endif
  return PortableLoops();
}

}  // namespace

const CpuLoops& Loops() {
  static const CpuLoops& loops = Choose();
  return loops;
}

#if !defined(__x86_64__)
const CpuLoops& Avx2Loops() { return PortableLoops(); }
const CpuLoops& Avx512Loops() { return PortableLoops(); }
#endif

}  // namespace trireme
