// trainer/session.h
// A model ready to be asked: SOURCE opened, spread over the job's ranks, its weights loaded.
#ifndef TRIREME_TRAINER_SESSION_H_
#define TRIREME_TRAINER_SESSION_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "trainer/corpora.h"
#include "trainer/export_source.h"
#include "trainer/model.h"
#include "trainer/model_text.h"
#include "trainer/same_everywhere.h"

namespace trireme {

struct SessionOptions {
  std::string source;                  // as for OpenExportSource()
  std::string adapter;                 // an adapter to put on it (adapter_source.h); "": the source's own, if any
  std::vector<std::string> overrides;  // --set: parallel, precision, kernels and launch
  int expected_ranks = 0;              // 0: any
  // What to evaluate on; without source and conversations: nothing. Samples are read by the model's own tokenizer.
  DataConfig data;
  int32_t micro_batch_size = 1;
  std::vector<SharedFact> asked;  // what else every rank must have been told alike
};

struct Session {
  const Process& process;
  const ExportSource& source;
  const Recipe& recipe;
  const Corpora& corpora;
  Mesh& mesh;
  Model& model;
  const absl::StatusOr<ModelText>& text;  // the source's tokenizer and template, or why it has none
};

// Starts MPI and everything else, then calls `run` on every rank. Its error may be one rank's own, or marked as agreed.
// Ends the process on every error, as Train() does.
absl::Status WithSession(const SessionOptions& options, const Extensions& extensions,
                         const std::function<absl::Status(Session&)>& run);

// The same with one model after the other; only one is in memory.
absl::Status WithSessions(const std::vector<SessionOptions>& options, const Extensions& extensions,
                          const std::function<absl::Status(Session&)>& run);

}  // namespace trireme

#endif  // TRIREME_TRAINER_SESSION_H_
