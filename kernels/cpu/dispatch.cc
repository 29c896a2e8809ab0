#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

#include "kernels/cpu/loops.h"
#include "kernels/cpu/products.h"
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

Level Choose() {
  [[maybe_unused]] const Level most = Wished();
#if defined(__x86_64__)
  if (most >= Level::kAvx512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Level::kAvx512;
  }
  if (most >= Level::kAvx2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Level::kAvx2;
#endif
  return Level::kPortable;
}

Level Chosen() {
  static const Level level = Choose();
  return level;
}

// The others are not called: their code may be for a newer processor.
template <typename T>
const T& OfLevel(const T& (*portable)(), const T& (*avx2)(), const T& (*avx512)()) {
  return Chosen() == Level::kAvx512 ? avx512() : Chosen() == Level::kAvx2 ? avx2() : portable();
}

}  // namespace

const CpuLoops& Loops() {
  static const CpuLoops& loops = OfLevel(&PortableLoops, &Avx2Loops, &Avx512Loops);
  return loops;
}

const CpuProducts& Products() {
  static const CpuProducts& products = OfLevel(&PortableProducts, &Avx2Products, &Avx512Products);
  return products;
}

#if !defined(__x86_64__)
const CpuLoops& Avx2Loops() { return PortableLoops(); }
const CpuLoops& Avx512Loops() { return PortableLoops(); }
const CpuProducts& Avx2Products() { return PortableProducts(); }
const CpuProducts& Avx512Products() { return PortableProducts(); }
#endif

}  // namespace trireme
