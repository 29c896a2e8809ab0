// trainer/observe/trace.h
// What every rank did when, in chosen steps, beside what the simulator predicts: run_dir/trace/step-N.json, in the
// format of Chrome's tracing and Perfetto.
#ifndef TRIREME_TRAINER_OBSERVE_TRACE_H_
#define TRIREME_TRAINER_OBSERVE_TRACE_H_

#include <string>
#include <vector>

#include "parallel/pipeline/executor.h"
#include "trainer/recipe/recipe.h"

namespace trireme {

class StepTrace {
 public:
  StepTrace(const Recipe& recipe, Mesh& mesh, PipelineExecutor& executor);

  // Whether `step` is to be recorded.
  bool wants(int64_t step) const;
  // Around the step's forward and backward. Finish is collective over the job: rank 0 writes the file.
  void Start();
  absl::Status Finish(int64_t step);

 private:
  const Recipe& recipe_;
  Mesh& mesh_;
  PipelineExecutor& executor_;
  double start_ = 0;
  std::vector<ActionTimes> actions_;
};

// The file's text. by_rank: each rank's actions, in seconds since its step began. Costs of a stage are means over
// microbatches and ranks, without the time an action waited for its input.
std::string TraceText(const Recipe& recipe, const std::vector<std::vector<ActionTimes>>& by_rank,
                      const std::vector<int>& pipeline_rank_of);

}  // namespace trireme

#endif  // TRIREME_TRAINER_OBSERVE_TRACE_H_
