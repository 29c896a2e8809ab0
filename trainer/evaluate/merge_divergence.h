// trainer/evaluate/merge_divergence.h
// How far a merged model is from its base and adapter used side by side.
#ifndef TRIREME_TRAINER_EVALUATE_MERGE_DIVERGENCE_H_
#define TRIREME_TRAINER_EVALUATE_MERGE_DIVERGENCE_H_

#include "models/engine/extensions.h"
#include "trainer/export/export.h"

namespace trireme {

// Logs KL(base with adapter || options.output), in nats per token, over a few hundred tokens of English that this
// program brings; rounding, and merging onto another base than training saw, make it. Loads both models, one after the
// other. Starts MPI.
absl::Status ReportMergeDivergence(const ExportOptions& options, const Extensions& extensions);

}  // namespace trireme

#endif  // TRIREME_TRAINER_EVALUATE_MERGE_DIVERGENCE_H_
