#include "trainer/loop/checkpointer.h"

#include <absl/strings/match.h>
#include <absl/strings/str_format.h>
#include <absl/strings/str_join.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <set>

#include "launch/base/file.h"
#include "launch/base/folder.h"
#include "launch/base/log.h"
#include "launch/base/version.h"
#include "models/spec/parameters.h"
#include "models/weights/checkpoint_list.h"
#include "models/weights/checkpoint_manifest.h"
#include "models/weights/sharded_tensors.h"
#include "parallel/comm/agreement.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

// Puts the folder `from` in the place of `to`, which may exist; what stood there then has a temporary's name. At every
// moment one of the two is there: where a file system cannot exchange names, RestoreReplaced() knows the old one.
constexpr char kReplaced[] = ".tmp-replaced";
absl::Status PutInPlace(const std::string& from, const std::string& to) {
  if (!Exists(to)) return RenameDurably(from, to);
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0)
    return SyncDirectory(fs::path(to).parent_path().string());
  const std::string replaced = to + kReplaced;
  RETURN_IF_ERROR(RemoveAll(replaced));
  RETURN_IF_ERROR(RenameDurably(to, replaced));
  return RenameDurably(from, to);
}

// After a crash between the two renames of PutInPlace().
void RestoreReplaced(const std::string& run_dir) {
  const std::string root = CheckpointsRoot(run_dir);
  const absl::StatusOr<std::vector<std::string>> names = ListFolder(root);
  for (const std::string& name : names.ok() ? *names : std::vector<std::string>()) {
    if (!absl::EndsWith(name, kReplaced)) continue;
    const std::string path = absl::StrCat(root, "/", name);
    const std::string own = path.substr(0, path.size() - std::strlen(kReplaced));
    if (!Exists(own)) RenameDurably(path, own).IgnoreError();
  }
}

// All that is no folder, in `folder` and those in it, as far as it can be; links are removed, not followed.
void RemoveFiles(const std::string& folder, const std::function<void()>& alive) {
  const absl::StatusOr<std::vector<std::string>> names = ListFolder(folder);
  for (const std::string& name : names.ok() ? *names : std::vector<std::string>()) {
    const std::string path = absl::StrCat(folder, "/", name);
    std::error_code error;
    if (fs::is_directory(fs::symlink_status(path, error))) {
      RemoveFiles(path, alive);
    } else {
      fs::remove(path, error);
      alive();
    }
  }
}

// RemoveAll(), file by file: deleting large ones may take long.
absl::Status RemoveSlowly(const std::string& folder, const std::function<void()>& alive) {
  RemoveFiles(folder, alive);
  return RemoveAll(folder);
}

// An error of a condition that every rank sees alike.
template <typename... Args>
absl::Status AgreedError(ExitCode code, const Args&... args) {
  return MarkAgreed(Error(code, args...));
}

}  // namespace

bool IsSaved(const ParameterBuffer& buffer, const DecoderSpec& model) {
  return model.adapter == nullptr || buffer.trainable() || buffer.specs()[0].added;
}

Checkpointer::Checkpointer(const Recipe& recipe, Mesh& mesh, Engine& model, Optimizer& optimizer,
                           std::vector<std::string> corpus_digests, std::string base_digest,
                           std::optional<RunText> text, WeightAverage* average)
    : recipe_(recipe),
      mesh_(mesh),
      model_(model),
      optimizer_(optimizer),
      corpus_digests_(std::move(corpus_digests)),
      base_digest_(std::move(base_digest)),
      text_(std::move(text)),
      average_(average) {}

absl::Status Checkpointer::Save(const TrainProgress& progress) {
  ProcessGroup& world = mesh_.control();
  mesh_.log().Beat(absl::StrCat("saving step ", progress.step()));
  const std::string folder = CheckpointFolder(recipe_.config.run_dir(), progress.step());
  const int64_t now = std::chrono::system_clock::now().time_since_epoch().count();
  const std::string temporary =
      absl::StrCat(folder, ".tmp-", BroadcastBytes(world, absl::StrFormat("%x-%x", now, ::getpid())));
  const absl::Status status = Write(temporary, progress);
  if (!status.ok()) {
    if (world.rank() == 0) RemoveSlowly(temporary, [this] { mesh_.log().Beat("removing"); }).IgnoreError();
    world.Barrier();
    return MarkAgreed(Annotate(status, absl::StrCat("saving step ", progress.step())));
  }
  absl::Status renamed = absl::OkStatus();
  if (world.rank() == 0) {
    // A checkpoint of this step can only stand there from a run that is being repeated: the new one takes its place,
    // and the old one, under a temporary's name now, goes with the sweep.
    renamed = PutInPlace(temporary, folder);
    if (renamed.ok()) {
      renamed = WriteFileAtomically(CheckpointsRoot(recipe_.config.run_dir()) + "/LATEST",
                                    fs::path(folder).filename().string() + "\n");
    }
    if (renamed.ok()) Sweep(progress, folder);
  }
  return Agree(world, renamed);
}

std::vector<TensorPart> Checkpointer::WeightParts(bool averaged, bool unique) const {
  std::vector<TensorPart> parts;
  for (ParameterBuffer* buffer : model_.buffers()) {
    if (!IsSaved(*buffer, recipe_.engine.model)) continue;
    const at::Tensor& own = averaged && buffer->trainable() ? average_->Of(buffer) : buffer->own_weights();
    for (TensorPart& part : PartsOf(*buffer, own, "", unique)) parts.push_back(std::move(part));
  }
  return parts;
}

absl::Status Checkpointer::Write(const std::string& folder, const TrainProgress& progress) {
  ProcessGroup& world = mesh_.control();
  absl::Status status = absl::OkStatus();
  if (world.rank() == 0) {
    for (const char* part : {kWeightsPart, "optimizer", kAveragesPart}) {
      if (part == std::string(kAveragesPart) && average_ == nullptr) continue;
      if (status.ok()) status = MakeDirectories(absl::StrCat(folder, "/", part));
    }
  }
  RETURN_IF_ERROR(Agree(world, status));

  // One copy of each element: the first replica saves.
  std::vector<TensorPart> weights, states, averages;
  if (mesh_.coordinate(Axis::kDataReplicate) == 0) {
    weights = WeightParts(/*averaged=*/false, /*unique=*/true);
    if (average_ != nullptr) averages = WeightParts(/*averaged=*/true, /*unique=*/true);
    for (const Optimizer::State& state : optimizer_.states()) {
      for (TensorPart& part :
           PartsOfSegments(*state.buffer, state.tensor, state.begin, state.block, state.name, /*unique=*/true))
        states.push_back(std::move(part));
    }
  }
  CheckpointManifest own;
  const auto alive = [this, phase = absl::StrCat("saving step ", progress.step())] { mesh_.log().Beat(phase); };
  const auto write = [&](const char* part, const std::vector<TensorPart>& parts) -> absl::Status {
    ASSIGN_OR_RETURN(std::vector<CheckpointFile> files,
                     WriteParts(absl::StrCat(folder, "/", part), world.rank(), parts, alive));
    for (CheckpointFile& file : files) *own.add_file() = std::move(file);
    return absl::OkStatus();
  };
  status = write(kWeightsPart, weights);
  if (status.ok()) status = write("optimizer", states);
  if (status.ok() && average_ != nullptr) status = write(kAveragesPart, averages);
  RETURN_IF_ERROR(Agree(world, status));

  // The manifest, once every rank's files are durable.
  const std::vector<std::string> parts = GatherBytes(world, own.SerializeAsString());
  if (world.rank() == 0) {
    CheckpointManifest manifest;
    manifest.set_version(kCheckpointVersion);
    *manifest.mutable_progress() = progress;
    *manifest.mutable_config() = recipe_.config;
    for (int size : recipe_.engine.mesh.size) manifest.add_mesh(size);
    for (const std::string& digest : corpus_digests_) manifest.add_corpus_digest(digest);
    if (!base_digest_.empty()) manifest.set_base_digest(base_digest_);
    if (text_.has_value()) *manifest.mutable_text() = RecordOf(*text_);
    manifest.set_written_by(absl::StrCat("trireme ", kVersion));
    for (const std::string& bytes : parts) {
      CheckpointManifest part;
      TRIREME_CHECK(part.ParseFromString(bytes));
      manifest.mutable_file()->MergeFrom(part.file());
    }
    status = WriteFileAtomically(folder + "/manifest.pb", SealManifest(std::move(manifest)));
    if (status.ok()) status = SyncDirectory(folder);
  }
  return Agree(world, status);
}

void Checkpointer::Sweep(const TrainProgress& progress, const std::string& saved) const {
  const CheckpointConfig& config = recipe_.config.checkpoint();
  std::error_code error;
  std::vector<std::string> leftovers;
  const std::string root = CheckpointsRoot(recipe_.config.run_dir());
  const absl::StatusOr<std::vector<std::string>> names = ListFolder(root);
  for (const std::string& name : names.ok() ? *names : std::vector<std::string>()) {
    if (absl::StrContains(name, ".tmp-")) leftovers.push_back(absl::StrCat(root, "/", name));
  }
  const std::string best = config.keep_best() && progress.has_best_step()
                               ? CheckpointFolder(recipe_.config.run_dir(), progress.best_step())
                               : "";
  int kept = 0;
  for (const std::string& folder : ListCheckpoints(recipe_.config.run_dir())) {
    if (config.keep_last() <= 0 || folder == best) continue;
    const bool enough = kept >= config.keep_last();
    // What is damaged saves nobody: it takes no other's place.
    const bool whole = ReadCheckpointManifest(folder, /*verify=*/false, 0, 1).ok();
    if (whole) ++kept;
    if (enough && folder != saved) leftovers.push_back(folder);
  }
  for (const std::string& folder : leftovers) {
    // Renamed first, so that a folder half removed is never taken for a checkpoint.
    const std::string doomed = absl::StrContains(folder, ".tmp-") ? folder : folder + ".tmp-removed";
    if (doomed != folder) fs::rename(folder, doomed, error);
    const absl::Status removed = RemoveSlowly(doomed, [this] { mesh_.log().Beat("removing old checkpoints"); });
    if (!removed.ok()) Warning("old checkpoint: ", removed.message());
  }
}

absl::StatusOr<CheckpointManifest> Checkpointer::Inspect(const std::string& folder, bool verify) {
  ProcessGroup& world = mesh_.control();
  absl::StatusOr<CheckpointManifest> manifest = ReadCheckpointManifest(
      folder, verify, world.rank(), world.size(), [this] { mesh_.log().Beat("checking a checkpoint"); });
  RETURN_IF_ERROR(Agree(world, manifest.status()));
  return manifest;
}

absl::StatusOr<bool> Checkpointer::Resume(bool allow_change, TrainProgress* progress) {
  ProcessGroup& world = mesh_.control();
  mesh_.log().Beat("resuming");
  const RunConfig::Resume policy = recipe_.config.resume();
  // Rank 0 looks; the others take its word, since a shared file system may show them another moment.
  std::vector<std::string> candidates;
  const std::string &run_dir = recipe_.config.run_dir(), root = CheckpointsRoot(run_dir);
  if (world.rank() == 0) RestoreReplaced(run_dir);
  const std::string joined = BroadcastBytes(world, absl::StrJoin(ListCheckpoints(run_dir), "\n"));
  for (size_t begin = 0; begin < joined.size();) {
    const size_t end = std::min(joined.find('\n', begin), joined.size());
    candidates.push_back(joined.substr(begin, end - begin));
    begin = end + 1;
  }
  if (policy == RunConfig::NEVER && !candidates.empty()) {
    return AgreedError(ExitCode::kCheckpoint, "resume: NEVER, but ", root, " already holds ", candidates.size(),
                       " checkpoints (newest ", candidates[0], "); choose another run_dir, or resume: AUTO");
  }
  for (const std::string& folder : candidates) {
    absl::StatusOr<CheckpointManifest> manifest = Inspect(folder, recipe_.config.checkpoint().verify());
    if (!manifest.ok()) {
      if (world.rank() == 0) Warning(manifest.status().message(), "; trying an older one");
      continue;
    }
    std::vector<std::string> changes = NumericChanges(manifest->config(), recipe_.config);
    const std::vector<std::string> digests(manifest->corpus_digest().begin(), manifest->corpus_digest().end());
    if (digests != corpus_digests_)
      changes.push_back(absl::StrCat("data.", recipe_.config.data().has_conversations() ? "conversations" : "source",
                                     ": the content differs from what the run was trained on"));
    if (manifest->has_base_digest() && manifest->base_digest() != base_digest_)
      changes.push_back("model.from: the files there are not those that the adapter was trained on");
    if (!changes.empty()) {
      const std::string list = absl::StrJoin(changes, "\n  ");
      if (!allow_change) {
        return AgreedError(ExitCode::kCheckpoint, "resume: the config differs from that of ", folder,
                           " in what alters numbers:\n  ", list,
                           "\nundo the change, choose another run_dir, or pass --allow-change");
      }
      if (world.rank() == 0) Warning("resuming although the config changed (--allow-change):\n  ", list);
    }
    RETURN_IF_ERROR(Agree(world, Load(folder, *manifest)));
    for (ParameterBuffer* buffer : model_.buffers()) buffer->Publish(/*converted=*/false);
    *progress = manifest->progress();
    if (!progress->has_updates()) progress->set_updates(progress->step());
    model_.RestoreUpdates(progress->updates(), progress->consecutive_skips());
    Info("resumed from ", folder);
    return true;
  }
  if (!candidates.empty()) {
    return AgreedError(ExitCode::kCheckpoint, "resume: none of the ", candidates.size(), " checkpoints in ", root,
                       " is whole; repair one, or remove them to start over");
  }
  if (policy == RunConfig::REQUIRED)
    return AgreedError(ExitCode::kCheckpoint, "resume: REQUIRED, but ", root, " holds no checkpoint");
  return false;
}

absl::Status Checkpointer::LoadAverage(const std::string& folder, const CheckpointManifest& manifest) {
  average_->set_updates(manifest.progress().ema_updates());
  // A run that went on without one (--allow-change) begins its average now.
  if (!manifest.progress().has_ema_updates()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const ShardedTensorReader averages,
                   ShardedTensorReader::Open(folder, manifest, kAveragesPart,
                                             [this] { mesh_.log().Beat("loading the averaged weights"); }));
  for (ParameterBuffer* buffer : model_.buffers()) {
    if (!buffer->trainable()) continue;
    for (const TensorPart& part : PartsOf(*buffer, average_->Of(buffer), "", /*unique=*/false))
      RETURN_IF_ERROR(averages.Read(part));
  }
  return absl::OkStatus();
}

absl::Status Checkpointer::Load(const std::string& folder, const CheckpointManifest& manifest) {
  ASSIGN_OR_RETURN(const ShardedTensorReader weights, ShardedTensorReader::Open(folder, manifest, kWeightsPart, [this] {
                     mesh_.log().Beat("loading weights");
                   }));
  std::set<std::string> known;
  for (const auto& parameters : {DecoderParameters(recipe_.engine.model), AdapterParameters(recipe_.engine.model)}) {
    for (const ParameterSpec& parameter : parameters) known.insert(parameter.name);
  }
  for (const auto& [name, shape] : weights.shapes()) {
    if (known.count(name) == 0)
      return Error(ExitCode::kCheckpoint, "checkpoint ", folder, ": holds ", name,
                   ", which the model of this config does not have; it would be lost");
  }
  for (const TensorPart& part : WeightParts(/*averaged=*/false, /*unique=*/false)) RETURN_IF_ERROR(weights.Read(part));
  mesh_.log().Beat("loading weights");
  if (average_ != nullptr) RETURN_IF_ERROR(LoadAverage(folder, manifest));
  if (optimizer_.states().empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const ShardedTensorReader states, ShardedTensorReader::Open(folder, manifest, "optimizer", [this] {
                     mesh_.log().Beat("loading optimizer");
                   }));
  for (const Optimizer::State& state : optimizer_.states()) {
    for (const TensorPart& part :
         PartsOfSegments(*state.buffer, state.tensor, state.begin, state.block, state.name, /*unique=*/false))
      RETURN_IF_ERROR(states.Read(part));
    mesh_.log().Beat("loading optimizer");
  }
  return absl::OkStatus();
}

}  // namespace trireme
