#include "trainer/loop/check_against.h"

#include <absl/strings/match.h>
#include <absl/strings/str_format.h>
#include <absl/strings/str_replace.h>
#include <absl/strings/str_split.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "launch/base/json.h"

namespace trireme {
namespace {

using Json = nlohmann::json;

// "pipeline 1 x data_replicate 1 x ... x tensor 2, expert 2" -> degree by axis.
std::map<std::string, int> Degrees(const std::string& mesh) {
  std::map<std::string, int> degrees;
  const std::string axes = absl::StrReplaceAll(mesh, {{", ", " x "}});
  for (const std::string& part : std::vector<std::string>(absl::StrSplit(axes, " x "))) {
    const std::vector<std::string> words = absl::StrSplit(part, ' ');
    if (words.size() == 2) degrees[words[0]] = std::atoi(words[1].c_str());
  }
  // It is named where experts are cut over ranks.
  if (!degrees.empty()) degrees.emplace("expert", 1);
  return degrees;
}

// Reads a number that MetricsLog wrote: what is not finite is a string there.
std::optional<double> NumberIn(const Json& json) {
  if (json.is_number()) return JsonNumber(json);
  if (json == "NaN") return std::nan("");
  if (json == "Infinity") return std::numeric_limits<double>::infinity();
  if (json == "-Infinity") return -std::numeric_limits<double>::infinity();
  return std::nullopt;
}

// Two runs whose numbers stop being finite in the same place are the same.
bool Same(double a, double b, double allowed) {
  return std::abs(a - b) <= allowed || a == b || (std::isnan(a) && std::isnan(b));
}

bool Contains(const std::string& text, const char* part) { return absl::StrContains(text, part); }

}  // namespace

std::string LikelyCause(const std::vector<std::pair<std::string, double>>& differing, size_t total,
                        const std::string& mesh, const std::string& other_mesh) {
  TRIREME_CHECK(!differing.empty(), "nothing differs");
  const std::map<std::string, int> here = Degrees(mesh);
  std::map<std::string, int> there = Degrees(other_mesh);
  if (there.empty()) return absl::StrCat("unknown: the other run does not say its layout; this one is ", mesh);
  const auto differs = [&](const char* axis) {
    const auto found = here.find(axis);
    return found != here.end() && there[axis] != found->second;
  };
  const auto all_of = [&](auto&& matches) {
    return std::all_of(differing.begin(), differing.end(), [&](const auto& item) { return matches(item.first); });
  };
  const double first = differing.front().second;
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
  if (differs("expert") && all_of([](const std::string& name) { return Contains(name, ".experts."); }))
    return "axis expert: only experts differ, whose rows travel between its ranks";
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

absl::StatusOr<RunComparison> RunComparison::Open(const std::string& run_dir, const std::string& mesh, double tolerance,
                                                  const std::function<void()>& alive) {
  RunComparison comparison;
  comparison.run_dir_ = run_dir;
  comparison.mesh_ = mesh;
  comparison.tolerance_ = tolerance;
  const std::string path = run_dir + "/metrics.jsonl";
  std::ifstream file(path);
  if (!file) return Error(ExitCode::kConfig, "--check-against: ", path, " cannot be read; give the run_dir of a run");
  std::string line, mesh_there;
  int64_t number = 0;
  while (std::getline(file, line)) {
    ++number;
    if (alive) alive();
    // A run that was killed may leave half a line at the end.
    JsonProblem problem;
    const std::optional<Json> parsed = ParseJson<Json>(line, {}, &problem);
    if (!parsed.has_value() || !parsed->is_object()) continue;
    const Json& json = *parsed;
    const std::string type = JsonTextOr(JsonMember(json, "type"), "");
    // Resumed, perhaps on another layout.
    if (type == "run" || type == "resume") mesh_there = JsonTextOr(JsonMember(json, "mesh"), "");
    if (type != "gradient_norms") continue;
    Recorded recorded;
    recorded.mesh = mesh_there;
    const int64_t step = JsonInteger(JsonMember(json, "step")).value_or(0);
    const std::optional<double> loss = NumberIn(JsonMember(json, "loss"));
    const Json& norms = JsonMember(json, "norms");
    bool whole = step > 0 && loss.has_value() && norms.is_object();
    for (const auto& [name, value] : norms.items()) {
      const std::optional<double> norm = NumberIn(value);
      whole &= norm.has_value();
      recorded.norms[name] = norm.value_or(0);
    }
    if (!whole) {
      return Error(ExitCode::kConfig, "--check-against: ", path, " line ", number,
                   " is damaged: gradient norms without their step, loss or numbers");
    }
    recorded.loss = *loss;
    comparison.steps_[step] = std::move(recorded);
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
  for (const auto& [name, norm] : other.norms) {
    if (std::isfinite(norm)) largest = std::max(largest, norm);
  }
  // Round-off of the whole gradient, in fp32 about 1e-7 of it, reaches small ones: below ten times that, relative
  // differences mean nothing.
  const double floor = 1e-6 * largest;
  std::vector<std::pair<std::string, double>> differing;
  std::string first, missing;
  for (const auto& [name, norm] : norms) {
    const auto expected = other.norms.find(name);
    if (expected == other.norms.end()) {
      if (missing.empty()) missing = name;
      continue;
    }
    if (Same(norm, expected->second, std::max(tolerance_ * std::abs(expected->second), floor))) continue;
    differing.emplace_back(name, expected->second != 0 ? norm / expected->second : std::nan(""));
    if (first.empty()) first = absl::StrFormat("%s: gradient norm %.9g here, %.9g there", name, norm, expected->second);
  }
  if (!missing.empty() || norms.size() != other.norms.size()) {
    return Error(ExitCode::kCheckFailed, "step ", step, ": ", run_dir_, " is a run of another model: it recorded ",
                 other.norms.size(), " parameters, this one has ", norms.size(),
                 missing.empty() ? "" : absl::StrCat("; ", missing, " is not among them"));
  }
  const bool loss_differs = !Same(loss, other.loss, tolerance_ * std::abs(other.loss));
  if (differing.empty() && !loss_differs) return absl::OkStatus();
  const std::string losses = absl::StrFormat("loss %.9g here, %.9g there", loss, other.loss);
  if (differing.empty()) {
    return Error(ExitCode::kCheckFailed, "step ", step, " differs from ", run_dir_, ": ", losses,
                 "; all gradient norms agree within ", tolerance_);
  }
  return Error(ExitCode::kCheckFailed, "step ", step, " differs from ", run_dir_, " (", losses, ")\n  first: ", first,
               "\n  ", differing.size(), " of ", norms.size(), " parameters differ by more than ", tolerance_,
               "\n  likely: ", LikelyCause(differing, norms.size(), mesh_, other.mesh));
}

}  // namespace trireme
