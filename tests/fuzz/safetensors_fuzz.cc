#include "models/formats/base/safetensors.h"
#include "tests/fuzz/fuzz_files.h"
#include "tests/fuzz/fuzz_target.h"

namespace trireme {

bool FuzzOne(const std::string& input) {
  static MemoryFile file;
  file.Write(input);
  const auto opened = SafetensorsFile::Open(file.path());
  if (!opened.ok()) return false;
  uint64_t bytes = 0;
  unsigned sum = 0;
  for (const SafetensorsEntry& entry : (*opened)->entries()) {
    TRIREME_CHECK(entry.begin <= entry.end && entry.end <= input.size(), entry.name);
    bytes += entry.end - entry.begin;
    for (uint64_t i = 0; i < entry.end - entry.begin; ++i) sum += (*opened)->data(entry)[i];
  }
  TRIREME_CHECK(bytes + 8 <= input.size() && sum <= 255 * bytes, bytes, " bytes of tensors");
  return true;
}

std::vector<std::string> FuzzSeeds() {
  const auto with_header = [](std::string header, size_t data) {
    return LittleEndian(header.size(), 8) + header + std::string(data, '\1');
  };
  return {
      with_header("{}", 0),
      with_header(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8),
      with_header(R"({"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},)"
                  R"("b.c":{"dtype":"U8","shape":[],"data_offsets":[12,13]},)"
                  R"("e":{"dtype":"I64","shape":[0,4],"data_offsets":[13,13]}}   )",
                  13),
      with_header(R"({"\u0061":{"dtype":"F8_E4M3","shape":[1,1],"data_offsets":[0,1]}})", 1),
  };
}

}  // namespace trireme
