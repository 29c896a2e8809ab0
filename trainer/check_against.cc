#include "trainer/check_against.h"

#include <absl/strings/match.h>
#include <absl/strings/str_format.h>
#include <absl/strings/str_split.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "parallel/comm/mesh.h"

namespace trireme {
namespace {

using Json = nlohmann::json;

// "pipeline 1 x data_replicate 1 x ..." -> degree by axis.
std::map<std::string, int> Degrees(const std::string& mesh) {
  std::map<std::string, int> degrees;
  for (const std::string& part : std::vector<std::string>(absl::StrSplit(mesh, " x "))) {
    const std::vector<std::string> words = absl::StrSplit(part, ' ');
    if (words.size() == 2) degrees[words[0]] = std::atoi(words[1].c_str());
  }
  return degrees;
}

bool Contains(const std::string& text, const char* part) { return absl::StrContains(text, part); }

}  // namespace

std::string LikelyCause(const std::vector<std::pair<std::string, double>>& differing, size_t total,
                        const std::string& mesh, const std::string& other_mesh) {
  const std::map<std::string, int> here = Degrees(mesh);
  std::map<std::string, int> there = Degrees(other_mesh);
  const auto differs = [&](const char* axis) {
    const auto found = here.find(axis);
    return found != here.end() && there[axis] != found->second;
  };
  const auto all_of = [&](auto&& matches) {
    return std::all_of(differing.begin(), differing.end(), [&](const auto& item) { return matches(item.first); });
  };
  const double first = differing.empty() ? 1 : differing.front().second;
  const bool one_ratio = std::all_of(differing.begin(), differing.end(),
                                     [&](const auto& item) { return std::abs(item.second / first - 1) < 1e-3; });
  if (differing.size() == total && one_ratio) {
    for (const char* axis : {"data_shard", "data_replicate", "context"}) {
      const double ratio = here.count(axis) > 0 && there[axis] > 0
                               ? static_cast<double>(here.at(axis)) / static_cast<double>(there[axis])
                               : 1;
      if (ratio != 1 && (std::abs(first * ratio - 1) < 1e-2 || std::abs(first / ratio - 1) < 1e-2))
        return absl::StrFormat("axis %s: every gradient is off by the same factor %.4g, its degree", axis, first);
    }
    return absl::StrFormat("the loss's normalization: every gradient is off by the same factor %.4g", first);
  }
  if (differs("tensor") && all_of([](const std::string& name) { return Contains(name, "norm"); }))
    return "axis tensor: only norms differ, whose gradients are summed over tensor ranks";
  if (differs("tensor") &&
      all_of([](const std::string& name) { return Contains(name, "k_proj") || Contains(name, "v_proj"); }))
    return "axis tensor: only keys and values differ, whose heads several tensor ranks hold";
  if (differs("pipeline") && all_of([](const std::string& name) { return Contains(name, "embed_tokens"); }))
    return "axis pipeline: only the tied matrix differs, whose gradients the first and the last stage add";
  if (differs("context") &&
      std::any_of(differing.begin(), differing.end(),
                  [](const auto& item) { return Contains(item.first, "self_attn"); }) &&
      !Contains(differing.front().first, "lm_head"))
    return "axis context: attention differs, which is all that it changes";
  std::string axes;
  for (const auto& [axis, degree] : here) {
    if (there[axis] != degree) absl::StrAppend(&axes, axes.empty() ? "" : ", ", axis);
  }
  return axes.empty() ? "not the layout, which is the same: another seed, data, precision or build"
                      : absl::StrCat("one of the axes in which the layouts differ: ", axes);
}

absl::StatusOr<RunComparison> RunComparison::Open(const std::string& run_dir, const std::string& mesh,
                                                  double tolerance) {
  RunComparison comparison;
  comparison.run_dir_ = run_dir;
  comparison.mesh_ = mesh;
  comparison.tolerance_ = tolerance;
  const std::string path = run_dir + "/metrics.jsonl";
  std::ifstream file(path);
  if (!file) return Error(ExitCode::kConfig, "--check-against: ", path, " cannot be read; give the run_dir of a run");
  std::string line;
  while (std::getline(file, line)) {
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) continue;
    const std::string type = json.value("type", "");
    if (type == "run") comparison.other_mesh_ = json.value("mesh", "");
    if (type != "gradient_norms" || !json.contains("norms") || !json["norms"].is_object()) continue;
    Recorded& recorded = comparison.steps_[json.value("step", int64_t{0})];
    recorded.loss = json.value("loss", std::nan(""));
    for (const auto& [name, value] : json["norms"].items()) {
      if (value.is_number()) recorded.norms[name] = value.get<double>();
    }
  }
  if (comparison.steps_.empty()) {
    return Error(ExitCode::kConfig, "--check-against: ", path,
                 " holds no gradient norms; run it again with --set logging.parameter_norms=true");
  }
  return comparison;
}

absl::Status RunComparison::Compare(int64_t step, double loss, const GradientNorms& norms) {
  const auto found = steps_.find(step);
  if (found == steps_.end()) return absl::OkStatus();
  const Recorded& other = found->second;
  ++compared_steps_;
  double largest = 0;
  for (const auto& [name, norm] : other.norms) largest = std::max(largest, norm);
  // Round-off of the whole gradient reaches small ones: below this, relative differences mean nothing.
  const double floor = 1e-6 * largest;
  std::vector<std::pair<std::string, double>> differing;
  std::string first, missing;
  for (const auto& [name, norm] : norms) {
    const auto expected = other.norms.find(name);
    if (expected == other.norms.end()) {
      if (missing.empty()) missing = name;
      continue;
    }
    const double difference = std::abs(norm - expected->second);
    if (difference <= tolerance_ * std::max(std::abs(expected->second), floor / std::max(tolerance_, 1e-12))) continue;
    differing.emplace_back(name, expected->second != 0 ? norm / expected->second : std::nan(""));
    if (first.empty()) first = absl::StrFormat("%s: gradient norm %.9g here, %.9g there", name, norm, expected->second);
  }
  if (!missing.empty() || norms.size() != other.norms.size()) {
    return Error(ExitCode::kCheckFailed, "step ", step, ": ", run_dir_, " is a run of another model: it recorded ",
                 other.norms.size(), " parameters, this one has ", norms.size(),
                 missing.empty() ? "" : absl::StrCat("; ", missing, " is not among them"));
  }
  const bool loss_differs = !(std::abs(loss - other.loss) <= tolerance_ * std::abs(other.loss));
  if (differing.empty() && !loss_differs) return absl::OkStatus();
  const std::string losses = absl::StrFormat("loss %.9g here, %.9g there", loss, other.loss);
  if (differing.empty()) {
    return Error(ExitCode::kCheckFailed, "step ", step, " differs from ", run_dir_, ": ", losses,
                 "; all gradient norms agree within ", tolerance_);
  }
  return Error(ExitCode::kCheckFailed, "step ", step, " differs from ", run_dir_, " (", losses, ")\n  first: ", first,
               "\n  ", differing.size(), " of ", norms.size(), " parameters differ by more than ", tolerance_,
               "\n  likely: ", LikelyCause(differing, norms.size(), mesh_, other_mesh_));
}

}  // namespace trireme
