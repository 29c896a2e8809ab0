#include "trainer/observe/metrics.h"

#include <absl/strings/str_format.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "launch/base/file.h"
#include "launch/base/json.h"
#include "launch/base/log.h"
#include "trainer/observe/append.h"

namespace trireme {
namespace {

using Json = nlohmann::ordered_json;

// JSON has no NaN or infinity: they become strings.
Json Number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return value;
}

// The largest load of any expert, as a multiple of the mean of its layer.
double WorstLoad(const RouterResults& routers) {
  double worst = 0;
  for (const LayerLoad& load : routers.layers) worst = std::max(worst, load.max_over_mean);
  return worst;
}

std::string Line(const Json& json) { return DumpJson(json) + "\n"; }

std::string RunLine(const RunDescription& run) {
  return Line({{"type", "run"},
               {"version", run.version},
               {"started", run.started},
               {"ranks", run.ranks},
               {"mesh", run.mesh},
               {"device", run.device},
               {"parameters", run.parameters},
               {"total_steps", run.total_steps},
               {"config", run.config}});
}

// Rewrites the file so that it holds the run up to `step`, followed by the resume line.
absl::Status CutAfter(const std::string& path, int64_t step, const RunDescription& run,
                      const std::function<void()>& alive) {
  const std::string run_line = RunLine(run);
  const std::string temporary = path + ".tmp";
  ASSIGN_OR_RETURN(std::unique_ptr<FileWriter> writer, FileWriter::Create(temporary));
  std::ifstream earlier(path, std::ios::binary);
  std::string line;
  bool described = false;
  int64_t damaged = 0;
  while (std::getline(earlier, line)) {
    if (alive) alive();
    const bool torn = earlier.eof();  // no newline behind it
    JsonProblem problem;
    const std::optional<Json> json = torn ? std::nullopt : ParseJson<Json>(line, {}, &problem);
    if (!json.has_value() || !json->is_object()) {
      damaged += !torn;
      continue;
    }
    if (JsonInteger(JsonMember(*json, "step")).value_or(0) > step) continue;
    if (!described && JsonMember(*json, "type") != "run")
      RETURN_IF_ERROR(writer->Append(run_line.data(), run_line.size()));
    described = true;
    line += '\n';
    RETURN_IF_ERROR(writer->Append(line.data(), line.size()));
  }
  if (damaged > 0) Warning("metrics: ", path, " had ", damaged, " damaged lines; they are left out");
  if (!described) RETURN_IF_ERROR(writer->Append(run_line.data(), run_line.size()));
  const std::string resume = Line({{"type", "resume"},
                                   {"step", step},
                                   {"version", run.version},
                                   {"started", run.started},
                                   {"ranks", run.ranks},
                                   {"mesh", run.mesh},
                                   {"device", run.device},
                                   {"total_steps", run.total_steps}});
  RETURN_IF_ERROR(writer->Append(resume.data(), resume.size()));
  RETURN_IF_ERROR(writer->Close());
  return RenameDurably(temporary, path);
}

}  // namespace

std::string TimestampUtc() {
  const std::time_t now = std::time(nullptr);
  std::tm parts;
  ::gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

std::string ConsoleLine(const TrainRecord& record, int64_t total_steps) {
  std::string line = absl::StrCat("step ", record.step);
  if (total_steps > 0) absl::StrAppend(&line, "/", total_steps);
  absl::StrAppendFormat(&line, " loss %.4f", record.loss);
  if (record.z_loss.has_value()) absl::StrAppendFormat(&line, " z %.3g", *record.z_loss);
  if (record.routers.has_value()) absl::StrAppendFormat(&line, " load %.2f", WorstLoad(*record.routers));
  absl::StrAppendFormat(&line, " grad %.3g lr %.2e %s tok/s", record.grad_norm, record.learning_rate,
                        HumanCount(record.tokens_per_second));
  absl::StrAppendFormat(&line, " %.*f ms", record.step_ms < 100 ? 1 : 0, record.step_ms);
  absl::StrAppendFormat(&line, " data %.1f%%", record.step_ms > 0 ? 100 * record.data_wait_ms / record.step_ms : 0.0);
  absl::StrAppend(&line, " mem ", HumanBytes(record.peak_memory_bytes));
  if (record.mfu.has_value()) absl::StrAppendFormat(&line, " mfu %.1f%%", 100 * *record.mfu);
  absl::StrAppend(&line, " ETA ", HumanSeconds(record.eta_seconds));
  return line;
}

absl::StatusOr<std::unique_ptr<MetricsLog>> MetricsLog::Open(const std::string& run_dir, bool tensorboard,
                                                             const RunDescription& description, int64_t resume_step,
                                                             const std::function<void()>& alive) {
  RETURN_IF_ERROR(MakeDirectories(run_dir));
  const std::string path = run_dir + "/metrics.jsonl";
  if (resume_step > 0) {
    RETURN_IF_ERROR(CutAfter(path, resume_step, description, alive));
  } else {
    if (Exists(path)) RETURN_IF_ERROR(RenameDurably(path, run_dir + "/metrics.previous.jsonl"));
    RETURN_IF_ERROR(WriteFileAtomically(path, RunLine(description)));
  }
  const int fd = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (fd < 0) return SystemError("open", path, /*writing=*/true);
  std::unique_ptr<MetricsLog> log(new MetricsLog(path, fd, description.total_steps));
  if (tensorboard) {
    ASSIGN_OR_RETURN(log->events_, EventFile::Create(run_dir + "/tensorboard", resume_step + 1));
  }
  return log;
}

MetricsLog::~MetricsLog() {
  ShowLiveLine("");
  ::close(fd_);
}

absl::Status MetricsLog::Train(const TrainRecord& record) {
  Print(record);
  Json json = {{"type", "train"}, {"step", record.step}, {"loss", Number(record.loss)}};
  if (record.z_loss.has_value()) json["z_loss"] = Number(*record.z_loss);
  if (record.routers.has_value()) {
    json["router_aux_loss"] = Number(record.routers->aux_loss);
    json["router_z_loss"] = Number(record.routers->z_loss);
    for (const LayerLoad& load : record.routers->layers) {
      json["expert_load"][load.block] = {{"max_over_mean", Number(load.max_over_mean)},
                                         {"entropy", Number(load.entropy)},
                                         {"idle", Number(load.idle)}};
    }
  }
  json["grad_norm"] = Number(record.grad_norm);
  json["learning_rate"] = Number(record.learning_rate);
  json["tokens"] = record.tokens;
  json["tokens_per_second"] = Number(record.tokens_per_second);
  json["step_ms"] = Number(record.step_ms);
  json["data_wait_ms"] = Number(record.data_wait_ms);
  json["peak_memory_bytes"] = record.peak_memory_bytes;
  if (record.mfu.has_value()) json["mfu"] = Number(*record.mfu);
  json["eta_seconds"] = Number(record.eta_seconds);
  RETURN_IF_ERROR(AppendWhole(fd_, Line(json), path_));
  if (events_ == nullptr) return absl::OkStatus();
  std::vector<std::pair<std::string, double>> scalars = {
      {"train/loss", record.loss},
      {"train/grad_norm", record.grad_norm},
      {"train/learning_rate", record.learning_rate},
      {"train/tokens", static_cast<double>(record.tokens)},
      {"train/tokens_per_second", record.tokens_per_second},
      {"train/step_ms", record.step_ms},
      {"train/data_wait_ms", record.data_wait_ms},
      {"train/peak_memory_bytes", static_cast<double>(record.peak_memory_bytes)}};
  if (record.z_loss.has_value()) scalars.emplace_back("train/z_loss", *record.z_loss);
  if (record.routers.has_value()) {
    scalars.emplace_back("train/router_aux_loss", record.routers->aux_loss);
    scalars.emplace_back("train/router_z_loss", record.routers->z_loss);
    scalars.emplace_back("train/expert_load", WorstLoad(*record.routers));
    for (const LayerLoad& load : record.routers->layers) {
      scalars.emplace_back(absl::StrCat("expert_load/max_over_mean/", load.block), load.max_over_mean);
      scalars.emplace_back(absl::StrCat("expert_load/entropy/", load.block), load.entropy);
      scalars.emplace_back(absl::StrCat("expert_load/idle/", load.block), load.idle);
    }
  }
  if (record.mfu.has_value()) scalars.emplace_back("train/mfu", *record.mfu);
  return events_->AddScalars(record.step, scalars);
}

absl::Status MetricsLog::ParameterNorms(int64_t step, double loss,
                                        const std::vector<std::pair<std::string, double>>& norms) {
  Json values = Json::object();
  for (const auto& [name, norm] : norms) values[name] = Number(norm);
  return AppendWhole(fd_, Line({{"type", "gradient_norms"}, {"step", step}, {"loss", Number(loss)}, {"norms", values}}),
                     path_);
}

absl::Status MetricsLog::Evaluation(int64_t step, double eval_loss) {
  Info("step ", step, total_steps_ > 0 ? absl::StrCat("/", total_steps_) : "",
       absl::StrFormat(" eval loss %.4f", eval_loss));
  RETURN_IF_ERROR(AppendWhole(fd_, Line({{"type", "eval"}, {"step", step}, {"eval_loss", Number(eval_loss)}}), path_));
  return events_ == nullptr ? absl::OkStatus() : events_->AddScalars(step, {{"eval/loss", eval_loss}});
}

absl::Status MetricsLog::Flush() {
  if (::fsync(fd_) != 0) return SystemError("fsync", path_, /*writing=*/true);
  return events_ == nullptr ? absl::OkStatus() : events_->Sync();
}

void MetricsLog::Print(const TrainRecord& record) {
  const double now = MonotonicSeconds();
  const bool due = last_printed_ < 0 || record.step == total_steps_ || now - last_printed_ >= (HasTerminal() ? 10 : 2);
  const std::string line = ConsoleLine(record, total_steps_);
  if (due) {
    last_printed_ = now;
    Info(line);
  } else {
    ShowLiveLine(line);
  }
}

}  // namespace trireme
