#include <cstdlib>
#include <cstring>

#include "kernels/cpu/loops.h"

namespace trireme {
namespace {

const CpuLoops& Choose() {
#if defined(__x86_64__)
  const char* wanted = std::getenv("TRIREME_CPU");
  const auto at_most = [wanted](const char* name) { return wanted == nullptr || std::strcmp(wanted, name) == 0; };
  if (at_most("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Avx512Loops();
  }
  if ((wanted == nullptr || std::strcmp(wanted, "portable") != 0) && __builtin_cpu_supports("avx2") &&
      __builtin_cpu_supports("fma")) {
    return Avx2Loops();
  }
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
