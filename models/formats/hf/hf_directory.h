// models/formats/hf/hf_directory.h
// A model directory as Hugging Face's libraries write it: config.json beside model.safetensors, or beside
// model.safetensors.index.json and the files that it names.
#ifndef TRIREME_MODELS_FORMATS_HF_HF_DIRECTORY_H_
#define TRIREME_MODELS_FORMATS_HF_HF_DIRECTORY_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "models/formats/base/safetensors.h"

namespace trireme {

inline constexpr char kHfConfigName[] = "config.json";
inline constexpr char kHfWeightsName[] = "model.safetensors";
inline constexpr char kHfIndexName[] = "model.safetensors.index.json";

// The folder that a user means: `name` itself when it is a folder; the downloaded snapshot of main when it is ORG/NAME
// and no folder (in $HF_HUB_CACHE, $HF_HOME/hub or ~/.cache/huggingface/hub). Nothing is downloaded: the error
// (kConfig) says how to.
absl::StatusOr<std::string> FindHfDirectory(const std::string& name);

// The weights of a directory, mapped.
class HfDirectory {
 public:
  struct Tensor {
    const SafetensorsFile* file;
    const SafetensorsEntry* entry;
    const uint8_t* data() const { return file->data(*entry); }
  };

  // Symbolic links are followed; names in the index must be names of files in the folder itself. Errors are kData: a
  // missing file, a tensor that stands in two files or not in the one that the index names.
  static absl::StatusOr<HfDirectory> Open(const std::string& folder);

  const std::string& folder() const { return folder_; }
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }

 private:
  absl::Status Add(const std::string& file_name);
  absl::Status CheckIndex(const std::map<std::string, std::string>& file_of_tensor) const;

  std::string folder_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Tensor> tensors_;
};

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_HF_HF_DIRECTORY_H_
