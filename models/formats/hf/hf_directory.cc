#include "models/formats/hf/hf_directory.h"

#include <absl/strings/ascii.h>
#include <absl/strings/match.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "launch/base/file.h"
#include "models/formats/base/json_file.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

// Letters, digits, '-', '_' and '.', not beginning with a dot: what the hub allows, and no way out of a folder.
bool IsPlainName(const std::string& name) {
  return !name.empty() && name[0] != '.' && std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return absl::ascii_isalnum(c) || c == '-' || c == '_' || c == '.';
  });
}

// A name in a folder and no way out of it.
bool IsFileName(const std::string& name) {
  return !name.empty() && name[0] != '.' && std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return c != '/' && c != '\\' && !absl::ascii_iscntrl(c);
  });
}

// Looks for the cache where huggingface_hub does.
fs::path HubCache() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  const fs::path home = variable("HOME");
  const auto expand = [&](const std::string& path) {
    return absl::StartsWith(path, "~/") ? home / path.substr(2) : fs::path(path);
  };
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}) {
    if (const std::string cache = variable(name); !cache.empty()) return expand(cache);
  }
  if (const std::string hf = variable("HF_HOME"); !hf.empty()) return expand(hf) / "hub";
  const std::string caches = variable("XDG_CACHE_HOME");
  return (caches.empty() ? home / ".cache" : expand(caches)) / "huggingface" / "hub";
}

// Tensor -> file, as the index says.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& path) {
  ASSIGN_OR_RETURN(const Json index, ReadJsonObject(path));
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object() || map->empty())
    return Error(ExitCode::kData, path, ": has no weight_map that names tensors; is it an index of safetensors?");
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : map->items()) {
    const std::string* name = JsonText(file);
    if (name == nullptr || !IsFileName(*name)) {
      return Error(ExitCode::kData, path, ": \"", tensor, "\" is said to be in ", DumpJson(file),
                   ", which is not the name of a file beside the index");
    }
    files[tensor] = *name;
  }
  return files;
}

}  // namespace

absl::StatusOr<std::string> FindHfDirectory(const std::string& name) {
  std::error_code error;
  if (fs::is_directory(name, error)) return name;
  const size_t slash = name.find('/');
  const bool has_owner = slash != std::string::npos;  // the oldest models have none
  if (!IsPlainName(name.substr(0, slash)) || (has_owner && !IsPlainName(name.substr(slash + 1))))
    return Error(ExitCode::kConfig, "model ", name,
                 ": there is no such folder; give a Hugging Face model directory, or ORG/NAME of one in the cache");
  const fs::path repository = HubCache() / absl::StrCat("models--", name.substr(0, slash), has_owner ? "--" : "",
                                                        has_owner ? name.substr(slash + 1) : "");
  const auto absent = [&](const auto&... why) {
    return Error(ExitCode::kConfig, "model ", name, ": there is no such folder, and ", why...,
                 "; download it with `hf download ", name, "`, or give a folder");
  };
  const fs::path main = repository / "refs" / "main";
  if (!Exists(main)) return absent("the Hugging Face cache has no ", main.string());
  ASSIGN_OR_RETURN(const std::string text, ReadFile(main.string(), /*max_bytes=*/4096));
  const std::string commit(absl::StripAsciiWhitespace(text));
  const fs::path snapshot = repository / "snapshots" / commit;
  if (!IsPlainName(commit) || !fs::is_directory(snapshot, error))
    return absent(main.string(), " names a snapshot that is not there");
  return snapshot.string();
}

absl::Status HfDirectory::Add(const std::string& file_name) {
  ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(absl::StrCat(folder_, "/", file_name)));
  for (const SafetensorsEntry& entry : file->entries()) {
    const auto [other, added] = tensors_.emplace(entry.name, Tensor{file.get(), &entry});
    if (!added)
      return Error(ExitCode::kData, "model ", folder_, ": \"", entry.name, "\" stands in ", other->second.file->path(),
                   " and in ", file->path(), "; remove the file that does not belong there");
  }
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

absl::Status HfDirectory::CheckIndex(const std::map<std::string, std::string>& file_of_tensor) const {
  for (const auto& [tensor, file] : file_of_tensor) {
    const auto found = tensors_.find(tensor);
    if (found == tensors_.end() || fs::path(found->second.file->path()).filename() != file)
      return Error(ExitCode::kData, "model ", folder_, ": ", kHfIndexName, " says that \"", tensor, "\" is in ", file,
                   ", but it is not; are the files of one download?");
  }
  return absl::OkStatus();
}

absl::StatusOr<HfDirectory> HfDirectory::Open(const std::string& folder) {
  HfDirectory directory;
  directory.folder_ = folder;
  const fs::path root(folder);
  // One whole file goes before an index, as in Transformers.
  if (Exists(root / kHfWeightsName)) {
    RETURN_IF_ERROR(directory.Add(kHfWeightsName));
    return directory;
  }
  if (!Exists(root / kHfIndexName)) {
    return Error(ExitCode::kData, "model ", folder, ": holds neither ", kHfWeightsName, " nor ", kHfIndexName,
                 Exists(root / "pytorch_model.bin") || Exists(root / "pytorch_model.bin.index.json")
                     ? "; its pytorch_model.bin is a pickle, which is not read: convert it to safetensors"
                     : "; is it a model directory, and the download complete?");
  }
  ASSIGN_OR_RETURN(const auto file_of_tensor, ReadIndex((root / kHfIndexName).string()));
  std::set<std::string> names;
  std::vector<std::string> missing;
  for (const auto& [tensor, file] : file_of_tensor) {
    if (names.insert(file).second && !Exists(root / file)) missing.push_back(file);
  }
  if (!missing.empty())
    return Error(ExitCode::kData, "model ", folder, ": ", missing.size(), " of the ", names.size(), " files that ",
                 kHfIndexName, " names are missing: ", absl::StrJoin(missing, ", "), "; complete the download");
  for (const std::string& name : names) RETURN_IF_ERROR(directory.Add(name));
  RETURN_IF_ERROR(directory.CheckIndex(file_of_tensor));
  return directory;
}

}  // namespace trireme
