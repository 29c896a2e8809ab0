// trainer/check_against.h
// `trireme train --check-against RUN_DIR`: is this run, on whatever layout, the same as another? Compares each step's
// loss and each parameter's gradient norm with what the other run recorded (logging.parameter_norms).
#ifndef TRIREME_TRAINER_CHECK_AGAINST_H_
#define TRIREME_TRAINER_CHECK_AGAINST_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "launch/status.h"

namespace trireme {

// By parameter, in the model's order.
using GradientNorms = std::vector<std::pair<std::string, double>>;

class RunComparison {
 public:
  // Reads run_dir/metrics.jsonl; a step that was repeated counts as it came last. mesh: this run's, as
  // MeshShape::ToString() prints it. tolerance: relative; gradient norms below 1e-6 of the step's largest may differ by
  // that much whatever it is.
  // alive: called for each line; may be empty.
  static absl::StatusOr<RunComparison> Open(const std::string& run_dir, const std::string& mesh, double tolerance,
                                            const std::function<void()>& alive = nullptr);

  // kCheckFailed: names the first parameter that differs, both values, how many do, and what the pattern points to.
  // A step that the other run did not record is passed over. NaN is the same as NaN.
  absl::Status Compare(int64_t step, double loss, const GradientNorms& norms);

  int64_t compared_steps() const { return compared_steps_; }

 private:
  struct Recorded {
    double loss = 0;
    std::map<std::string, double> norms;
    std::string mesh;  // "": not recorded
  };
  std::string run_dir_, mesh_;
  double tolerance_ = 0;
  std::map<int64_t, Recorded> steps_;
  int64_t compared_steps_ = 0;
};

// What differences of this pattern usually come from: only axes on which the two meshes differ are named. differing:
// names with the ratio of this run's norm to the other's, in the model's order, not
// empty; total: number of parameters.
std::string LikelyCause(const std::vector<std::pair<std::string, double>>& differing, size_t total,
                        const std::string& mesh, const std::string& other_mesh);

}  // namespace trireme

#endif  // TRIREME_TRAINER_CHECK_AGAINST_H_
