#include "configs/config_loader.h"

#include <absl/strings/match.h>
#include <absl/strings/str_join.h>
#include <google/protobuf/text_format.h>

#include "configs/merge.h"
#include "configs/text_parser.h"
#include "launch/base/file.h"

namespace trireme {
namespace {

constexpr uint64_t kMaxFileBytes = 1 << 20;

}  // namespace

absl::StatusOr<RunConfig> LoadConfig(const std::vector<std::string>& files, const std::vector<std::string>& overrides) {
  RunConfig config;
  std::vector<std::string> problems;
  for (const std::string& file : files) {
    absl::StatusOr<std::string> text = ReadFile(file, kMaxFileBytes);
    if (!text.ok()) {
      problems.push_back(std::string(text.status().message()));
      continue;
    }
    RunConfig layer;
    constexpr absl::string_view kByteOrderMark = "\xEF\xBB\xBF";  // some editors begin a file with it
    if (absl::StartsWith(*text, kByteOrderMark)) text->erase(0, kByteOrderMark.size());
    ParseConfigText({file, *std::move(text), "", 0}, &layer, &problems);
    MergeOver(layer, &config);
  }
  for (const std::string& text : overrides) ApplyOverride(text, &config, &problems);
  if (problems.empty()) return config;
  return Error(ExitCode::kConfig, "config: ", problems.size(), problems.size() == 1 ? " problem\n" : " problems\n",
               absl::StrJoin(problems, "\n"));
}

std::string ConfigText(const RunConfig& config) {
  google::protobuf::TextFormat::Printer printer;
  printer.SetUseUtf8StringEscaping(true);
  std::string text;
  printer.PrintToString(config, &text);
  return text;
}

}  // namespace trireme
