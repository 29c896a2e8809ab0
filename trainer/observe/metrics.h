// trainer/observe/metrics.h
// What a run reports of itself: console, run_dir/metrics.jsonl and TensorBoard events.
#ifndef TRIREME_TRAINER_OBSERVE_METRICS_H_
#define TRIREME_TRAINER_OBSERVE_METRICS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "launch/base/status.h"
#include "parallel/layers/expert_loads.h"
#include "trainer/observe/event_file.h"

namespace trireme {

// The first line of metrics.jsonl.
struct RunDescription {
  std::string config;   // textproto of the resolved config
  std::string version;  // of trireme
  int ranks = 1;
  std::string mesh;  // "data_shard=4 tensor=2"
  int64_t parameters = 0;
  std::string device;
  std::string started;  // ISO 8601
  int64_t total_steps = 0;
};

struct TrainRecord {
  int64_t step = 0;
  double loss = 0;
  std::optional<double> z_loss;          // when the config has one
  std::optional<RouterResults> routers;  // of a model with experts
  double grad_norm = 0;                  // before clipping
  double learning_rate = 0;
  int64_t tokens = 0;            // trained on since step 1, over all ranks
  double tokens_per_second = 0;  // over all ranks
  double step_ms = 0;
  double data_wait_ms = 0;  // the part of step_ms spent waiting for data
  int64_t peak_memory_bytes = 0;
  std::optional<double> mfu;  // 0 to 1; absent when the device's peak is unknown
  double eta_seconds = 0;
};

// The current time as RunDescription::started wants it: "2030-01-31T12:00:00Z".
std::string TimestampUtc();

// With experts also the largest load of one, as a multiple of the mean of its layer.
// "step 120/500 loss 4.1234 load 1.31 grad 1.02 lr 5.9e-04 12.30k tok/s 132 ms data 0.1% mem 512.0 MB ETA 3 min 10 s"
std::string ConsoleLine(const TrainRecord& record, int64_t total_steps);

// Rank 0 only. Every line of metrics.jsonl is whole whenever the process dies; errors are kStorage.
class MetricsLog {
 public:
  // resume_step 0: a fresh run; an earlier metrics.jsonl is set aside as metrics.previous.jsonl. Otherwise lines of
  // later steps, which the earlier attempt wrote but the run will repeat, and a torn last line are removed, and a line
  // {"type":"resume","step":...} is added. alive: called for each line that is read; may be empty.
  static absl::StatusOr<std::unique_ptr<MetricsLog>> Open(const std::string& run_dir, bool tensorboard,
                                                          const RunDescription& description, int64_t resume_step,
                                                          const std::function<void()>& alive = nullptr);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;

  // Records a step. The console shows the first and the last step and otherwise at most a line per 2 s (on a terminal:
  // a live line, and one that stays per 10 s).
  absl::Status Train(const TrainRecord& record);
  absl::Status ParameterNorms(int64_t step, double loss, const std::vector<std::pair<std::string, double>>& norms);
  // Records and prints an evaluation after `step`.
  absl::Status Evaluation(int64_t step, double eval_loss);
  // Makes what was recorded durable.
  absl::Status Flush();

 private:
  MetricsLog(std::string path, int fd, int64_t total_steps)
      : path_(std::move(path)), fd_(fd), total_steps_(total_steps) {}
  void Print(const TrainRecord& record);

  std::string path_;
  int fd_;
  int64_t total_steps_;
  std::unique_ptr<EventFile> events_;  // null without TensorBoard
  double last_printed_ = -1;           // MonotonicSeconds(); -1: nothing yet
};

}  // namespace trireme

#endif  // TRIREME_TRAINER_OBSERVE_METRICS_H_
