// libFuzzer's side: `NAME_fuzz [-max_total_time=60 ...] [FOLDER]` fuzzes, `NAME_fuzz FILE...` repeats one input. FOLDER
// is made and gets the seeds.
#include <cstdint>
#include <filesystem>
#include <fstream>

#include "tests/fuzz/fuzz_target.h"

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  for (int i = 1; i < *argc; ++i) {
    const std::string folder = (*argv)[i];
    if (folder[0] == '-' || std::filesystem::is_regular_file(folder)) continue;
    std::filesystem::create_directories(folder);
    int number = 0;
    for (const std::string& seed : trireme::FuzzSeeds())
      std::ofstream(folder + "/seed" + std::to_string(number++), std::ios::binary) << seed;
    break;
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  trireme::FuzzOne(std::string(reinterpret_cast<const char*>(data), size));
  return 0;
}
