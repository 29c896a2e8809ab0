#include "trainer/recipe/same_everywhere.h"

#include <absl/strings/match.h>
#include <absl/strings/str_join.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <thread>

#include "configs/config_loader.h"
#include "launch/base/folder.h"
#include "launch/base/log.h"
#include "launch/base/version.h"
#include "parallel/comm/agreement.h"

namespace trireme {
namespace {

constexpr double kPatience = 5;  // seconds that a shared file system may take to show another machine's file
constexpr size_t kMaxShown = 3;  // different values in one message

constexpr char kSharedPrefix[] = "seen-by-all-";

void RemoveShared(const std::string& folder) {
  const absl::StatusOr<std::vector<std::string>> names = ListFolder(folder);
  for (const std::string& name : names.ok() ? *names : std::vector<std::string>()) {
    if (absl::StartsWith(name, kSharedPrefix)) ::unlink(absl::StrCat(folder, "/", name).c_str());
  }
}

bool AllSame(const std::vector<std::string>& values) {
  return std::all_of(values.begin(), values.end(), [&](const std::string& value) { return value == values[0]; });
}

// The ranks that hold each value, the value of the lowest rank first.
std::vector<std::pair<std::string, std::vector<int>>> Holders(const std::vector<std::string>& values) {
  std::vector<std::pair<std::string, std::vector<int>>> holders;
  for (size_t rank = 0; rank < values.size(); ++rank) {
    auto found = std::find_if(holders.begin(), holders.end(), [&](const auto& h) { return h.first == values[rank]; });
    if (found == holders.end()) found = holders.insert(found, {values[rank], {}});
    found->second.push_back(static_cast<int>(rank));
  }
  return holders;
}

// What is left must be the same on all ranks. A path that is set stays set, so that one rank's `from` is still noticed.
RunConfig Comparable(RunConfig config) {
  const std::string path = "(given)";
  const auto hide = [&](bool set, std::string* field) {
    if (set) *field = path;
  };
  ModelConfig& model = *config.mutable_model();
  if (model.has_from()) hide(true, model.mutable_from());
  if (model.has_config()) hide(true, model.mutable_config());
  if (config.has_adapter() && config.adapter().has_from()) hide(true, config.mutable_adapter()->mutable_from());
  if (config.has_data()) {
    DataConfig& data = *config.mutable_data();
    for (DataSource& source : *data.mutable_source()) hide(source.has_path(), source.mutable_path());
    if (data.has_conversations()) {
      ConversationData& conversations = *data.mutable_conversations();
      for (std::string& file : *conversations.mutable_path()) file = path;
      for (std::string& file : *conversations.mutable_validation_path()) file = path;
      if (conversations.has_tokenizer()) hide(true, conversations.mutable_tokenizer());
      if (conversations.has_chat_template()) hide(true, conversations.mutable_chat_template());
    }
    data.clear_prefetch_steps();
    data.clear_verify_checksums();
  }
  config.clear_run_dir();
  config.mutable_logging()->clear_every_steps();
  config.mutable_logging()->clear_tensorboard();
  if (config.has_export_() && config.export_().has_output()) hide(true, config.mutable_export_()->mutable_output());
  return config;
}

}  // namespace

std::vector<SharedFact> ProgramFacts(at::Device device) {
  return {{"the version of trireme", kVersion}, {"launch.device", device.is_cuda() ? "a GPU" : "a CPU"}};
}

absl::Status CompareFacts(ProcessGroup& world, const std::vector<SharedFact>& facts) {
  std::string names, all;
  for (const SharedFact& fact : facts) {
    absl::StrAppend(&names, fact.name, "\n");
    absl::StrAppend(&all, fact.name.size(), " ", fact.name, fact.value.size(), " ", fact.value);
  }
  if (AllSame(GatherBytes(world, HashBytes(all.data(), all.size())))) return absl::OkStatus();
  if (!AllSame(GatherBytes(world, names)))
    return MarkAgreed(Error(ExitCode::kConfig,
                            "start: the ranks of this job run different commands of trireme, or read different kinds "
                            "of data; give every rank the same command line"));
  for (const SharedFact& fact : facts) {
    const std::vector<std::string> values = GatherBytes(world, fact.value);
    if (AllSame(values)) continue;
    const auto holders = Holders(values);
    std::vector<std::string> shown;
    for (size_t i = 0; i < std::min(holders.size(), kMaxShown); ++i)
      shown.push_back(absl::StrCat(RankNames(holders[i].second), holders[i].second.size() == 1 ? " has " : " have ",
                                   holders[i].first));
    if (holders.size() > kMaxShown) shown.push_back(absl::StrCat(holders.size() - kMaxShown, " more"));
    return MarkAgreed(Error(fact.code, "start: ", fact.name, " is not the same on all ranks: ",
                            absl::StrJoin(shown, ", "), "; give every rank the same"));
  }
  return absl::OkStatus();
}

absl::Status CompareConfigs(ProcessGroup& world, const RunConfig& config) {
  const RunConfig own = Comparable(config);
  const std::string text = ConfigText(own);
  if (AllSame(GatherBytes(world, HashBytes(text.data(), text.size())))) return absl::OkStatus();
  const auto holders = Holders(GatherBytes(world, own.SerializeAsString()));
  std::vector<RunConfig> configs(holders.size());
  for (size_t i = 0; i < holders.size(); ++i) TRIREME_CHECK(configs[i].ParseFromString(holders[i].first));
  std::string message;
  for (size_t i = 1; i < std::min(holders.size(), kMaxShown + 1); ++i) {
    absl::StrAppend(&message, message.empty() ? "" : "\n", RankNames(holders[i].second),
                    holders[i].second.size() == 1 ? " has" : " have", " another config than rank 0 (rank 0's -> ",
                    holders[i].second.size() == 1 ? "its" : "their", " value):\n  ",
                    absl::StrJoin(DiffConfigs(configs[0], configs[i]), "\n  "));
  }
  return MarkAgreed(
      Error(ExitCode::kConfig, "start: ", message, "\nstart every rank with the same files and --set options"));
}

std::vector<SharedFact> ContentFacts(const std::vector<std::pair<std::string, Digest>>& contents) {
  std::vector<SharedFact> facts;
  for (const auto& [name, digest] : contents)
    facts.push_back({absl::StrCat("the content of ", name), digest, ExitCode::kData});
  return facts;
}

std::string DigestOrError(const absl::StatusOr<Digest>& digest) {
  return digest.ok() ? *digest : absl::StrCat("none (", digest.status().message(), ")");
}

absl::StatusOr<Digest> DigestOncePerMachine(ProcessGroup& world, const std::string& host, const std::string& path,
                                            const std::function<absl::StatusOr<Digest>()>& read) {
  std::error_code error;
  const std::filesystem::path whole = std::filesystem::weakly_canonical(path, error);
  const std::vector<std::string> places = GatherBytes(world, absl::StrCat(host, ":", error ? path : whole.string()));
  const auto first = std::find(places.begin(), places.end(), places[world.rank()]) - places.begin();
  const absl::StatusOr<Digest> own = first == world.rank() ? read() : Digest();
  const std::string code = absl::StrCat(own.ok() ? 0 : static_cast<int>(ExitCodeOf(own.status())));
  const int failed = std::atoi(GatherBytes(world, code)[first].c_str());
  const std::string text = GatherBytes(world, own.ok() ? *own : std::string(own.status().message()))[first];
  if (failed != 0) return MakeError(static_cast<ExitCode>(failed), text);
  return text;
}

absl::Status CheckSharedFolder(ProcessGroup& world, const std::string& field, const std::string& folder,
                               const std::string& host) {
  if (world.size() == 1) return absl::OkStatus();
  const int64_t now = std::chrono::system_clock::now().time_since_epoch().count();
  // A name that nobody has looked for yet: file systems remember what was not there.
  const std::string id = BroadcastBytes(world, absl::StrCat(kSharedPrefix, now, "-", ::getpid()));
  const std::string path = absl::StrCat(folder, "/", id);
  const std::string writer = BroadcastBytes(world, host);
  std::error_code error;
  const std::string here = std::filesystem::absolute(folder, error).string();
  const std::string written = BroadcastBytes(world, here);
  absl::Status status = absl::OkStatus();
  if (world.rank() == 0) {
    RemoveShared(folder);  // of a start that was killed
    status = WriteFileAtomically(path, id);
  }
  RETURN_IF_ERROR(Agree(world, status));
  const auto seen = [&] { return ReadFile(path, id.size()).value_or("") == id; };
  const double end = MonotonicSeconds() + kPatience;
  while (!seen() && MonotonicSeconds() < end) std::this_thread::sleep_for(std::chrono::milliseconds(100));
  if (!seen())
    status = Error(ExitCode::kConfig, field, ": what rank 0 on ", writer, " writes into ", written,
                   " is not to be seen on ", host, " in ", here,
                   here == written ? "; give a folder that all machines share"
                                   : "; give every rank the same folder, one that all machines share");
  status = Agree(world, status);
  if (world.rank() == 0) RemoveShared(folder);
  return status;
}

}  // namespace trireme
