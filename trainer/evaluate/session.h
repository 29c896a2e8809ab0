// trainer/evaluate/session.h
// A model ready to be asked: SOURCE opened, spread over the job's ranks, its weights loaded.
#ifndef TRIREME_TRAINER_EVALUATE_SESSION_H_
#define TRIREME_TRAINER_EVALUATE_SESSION_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "models/engine/engine.h"
#include "models/source/model_source.h"
#include "models/source/model_text.h"
#include "trainer/recipe/corpora.h"
#include "trainer/recipe/same_everywhere.h"

namespace trireme {

struct SessionOptions {
  std::string source;                  // as for OpenModelSource()
  std::string adapter;                 // an adapter to put on it (adapter_source.h); "": the source's own, if any
  std::vector<std::string> overrides;  // --set: parallel, precision, kernels and launch
  int expected_ranks = 0;              // 0: any
  // What to evaluate on; without source and conversations: nothing. Samples are read by the model's own tokenizer. A
  // document_mask that is not set is that of the run that trained the model.
  DataConfig data;
  int32_t micro_batch_size = 1;
  std::vector<SharedFact> asked;  // what else every rank must have been told alike
};

struct Session {
  const Process& process;
  const ModelSource& source;
  const Recipe& recipe;
  const Corpora& corpora;
  Mesh& mesh;
  Engine& model;
  const absl::StatusOr<ModelText>& text;  // the source's tokenizer and template, or why it has none
};

// Starts MPI and everything else, then calls `run` on every rank. Its error may be one rank's own, or marked as agreed.
// After an error the process must end soon (models/engine/job.h).
absl::Status WithSession(const SessionOptions& options, const Extensions& extensions,
                         const std::function<absl::Status(Session&)>& run);

// Does the same with one model after the other. Only one is in memory at a time.
absl::Status WithSessions(const std::vector<SessionOptions>& options, const Extensions& extensions,
                          const std::function<absl::Status(Session&)>& run);

}  // namespace trireme

#endif  // TRIREME_TRAINER_EVALUATE_SESSION_H_
