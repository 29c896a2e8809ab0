#include "models/weights/checkpoint_manifest.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>

#include "launch/base/file.h"
#include "launch/base/log.h"
#include "models/weights/checkpoint_list.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxManifestBytes = uint64_t{256} << 20;

bool IsPlainRelative(const std::string& path) {
  const fs::path parsed(path);
  if (parsed.is_absolute() || parsed.empty()) return false;
  return std::none_of(parsed.begin(), parsed.end(), [](const fs::path& part) { return part == ".."; });
}

// How a sealed manifest ends: the field own_digest, as protobuf writes it.
constexpr char kSealTag[] = {0x7a, 0x20};
constexpr size_t kDigestSize = 32, kSealSize = sizeof(kSealTag) + kDigestSize;

// False: the bytes end in a digest that is not theirs.
bool SealHolds(absl::string_view bytes) {
  if (bytes.size() < kSealSize) return true;
  const absl::string_view seal = bytes.substr(bytes.size() - kSealSize);
  if (seal.substr(0, sizeof(kSealTag)) != absl::string_view(kSealTag, sizeof(kSealTag))) return true;
  return seal.substr(sizeof(kSealTag)) == HashBytes(bytes.data(), bytes.size() - kSealSize);
}

// Newest first, the first whose manifest can be read.
absl::StatusOr<std::string> NewestCheckpoint(const std::string& run_dir) {
  for (const std::string& step : ListCheckpoints(run_dir)) {
    const absl::Status status = ReadCheckpointManifest(step, /*verify=*/false, 0, 1).status();
    if (status.ok()) return step;
    Warning(status.message(), "; trying an older one");
  }
  return Error(ExitCode::kCheckpoint, run_dir, ": holds no whole checkpoint");
}

}  // namespace

std::string SealManifest(CheckpointManifest manifest) {
  manifest.set_sealed(true);
  manifest.clear_own_digest();
  const std::string bytes = manifest.SerializeAsString();
  return absl::StrCat(bytes, absl::string_view(kSealTag, sizeof(kSealTag)), HashBytes(bytes.data(), bytes.size()));
}

absl::StatusOr<CheckpointManifest> ReadCheckpointManifest(const std::string& folder, bool verify, int rank, int ranks,
                                                          const std::function<void()>& alive) {
  const auto bad = [&](const auto&... why) {
    return Error(ExitCode::kCheckpoint, "checkpoint ", folder, ": ", why...);
  };
  absl::StatusOr<std::string> bytes = ReadFile(folder + "/manifest.pb", kMaxManifestBytes);
  if (!bytes.ok()) return bad(bytes.status().message());
  CheckpointManifest manifest;
  // Damage may hide in any field; a manifest without a digest is an older version's.
  if (!SealHolds(*bytes) || !manifest.ParseFromString(*bytes) || (manifest.sealed() && !manifest.has_own_digest()))
    return bad("manifest.pb is damaged");
  if (manifest.version() > kCheckpointVersion)
    return bad("has format version ", manifest.version(), ", this program knows up to ", kCheckpointVersion,
               "; use a newer one");
  const int64_t named = StepOfCheckpoint(fs::path(folder).filename().string());
  if (named >= 0 && manifest.progress().has_step() && manifest.progress().step() != named)
    return bad("holds step ", manifest.progress().step(), "; was it renamed or copied?");
  for (int i = 0; i < manifest.file_size(); ++i) {
    if (alive) alive();
    const CheckpointFile& file = manifest.file(i);
    if (!IsPlainRelative(file.path())) return bad("manifest.pb names a file outside the folder: ", file.path());
    const std::string path = absl::StrCat(folder, "/", file.path());
    struct stat info;
    if (::stat(path.c_str(), &info) != 0) return bad(file.path(), " is missing");
    if (info.st_size != file.bytes())
      return bad(file.path(), " has ", info.st_size, " bytes, the manifest says ", file.bytes());
    if (verify && i % ranks == rank) {
      ASSIGN_OR_RETURN(const Digest digest, HashFile(path, [&](uint64_t) {
                         if (alive) alive();
                       }));
      if (digest != file.digest())
        return bad(file.path(), " has another content than when it was saved (hash ", digest, ", expected ",
                   file.digest(), ")");
    }
  }
  return manifest;
}

absl::StatusOr<std::string> CheckpointOf(const std::string& source) {
  std::error_code error;
  if (fs::exists(fs::path(source) / "manifest.pb", error)) return source;
  if (fs::exists(fs::path(source) / "checkpoints", error)) return NewestCheckpoint(source);
  return std::string();
}

}  // namespace trireme
