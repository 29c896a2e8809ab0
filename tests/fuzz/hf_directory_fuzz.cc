// The index of a model directory that also holds two good files.
#include <filesystem>

#include "launch/base/file.h"
#include "models/formats/hf/hf_directory.h"
#include "tests/fuzz/fuzz_files.h"
#include "tests/fuzz/fuzz_target.h"

namespace trireme {
namespace {

struct ModelFolder {
  ModelFolder() {
    folder.Link(index, kHfIndexName);
    for (const std::string name : {"a", "b"}) {
      const auto produce = [](const SafetensorsEntry&, FileWriter& writer) { return writer.Append("\1\2", 2); };
      TRIREME_CHECK(WriteSafetensors(folder / (name + ".safetensors"), {{name, "U8", {2}}}, {}, produce).ok());
    }
  }
  ScratchFolder folder;
  MemoryFile index;
};

}  // namespace

bool FuzzOne(const std::string& input) {
  static ModelFolder model;
  model.index.Write(input);
  const auto opened = HfDirectory::Open(model.folder.path());
  if (!opened.ok()) return false;
  for (const auto& [name, tensor] : opened->tensors()) {
    TRIREME_CHECK(std::filesystem::path(tensor.file->path()).parent_path() == model.folder.path(), tensor.file->path());
    TRIREME_CHECK(tensor.data()[0] == 1, name);
  }
  return true;
}

std::vector<std::string> FuzzSeeds() {
  return {
      R"({"metadata":{"total_size":4},"weight_map":{"a":"a.safetensors","b":"b.safetensors"}})",
      R"({"weight_map":{"a":"a.safetensors"}})",
      R"({"weight_map":{"a":"../a.safetensors","b":"/etc/passwd"}})",
      R"({"weight_map":{"a":"a.safetensors\u0000","b":"."}})",
  };
}

}  // namespace trireme
