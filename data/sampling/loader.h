// data/sampling/loader.h
// Prepares whole optimizer steps ahead of the trainer, in a thread of its own.
#ifndef TRIREME_DATA_SAMPLING_LOADER_H_
#define TRIREME_DATA_SAMPLING_LOADER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "data/sampling/sampler.h"
#include "launch/base/status.h"

namespace trireme {

// Sequences laid one after another: T = sequences x sequence_length tokens.
struct Microbatch {
  std::vector<int64_t> tokens;     // [T]
  std::vector<int64_t> targets;    // [T], the next token, or kIgnoredTarget
  std::vector<int64_t> positions;  // [T], restart at 0 in every segment
  std::vector<int32_t>
      cu_seqlens;  // [segments + 1], from 0 to T. A segment is a sequence, or under document_mask a piece of a document
  int32_t max_seqlen = 0;        // longest segment
  std::vector<int64_t> filling;  // of each sequence: how many of its last tokens only fill it
  int64_t num_targets = 0;       // targets that carry loss
  int64_t first_sample = 0;      // number of its first sequence in the run's order; the others follow it
};

// Adds a sample's tokens, targets, positions and segments behind those the microbatch has.
void AppendSequence(const Sample& sample, bool document_mask, Microbatch* microbatch);

// What one data-parallel rank computes in one step.
struct StepBatch {
  std::vector<Microbatch> microbatches;  // in order
  double wait_ms = 0;                    // how long Next() had to wait for the loader
};

struct LoaderOptions {
  int64_t sequence_length = 0;
  bool document_mask = false;
  int64_t global_batch_size = 0;  // sequences
  int64_t micro_batch_size = 0;   // sequences
  int data_rank = 0;              // this rank among the data-parallel ranks
  int num_data_ranks = 1;
  int64_t first_sample =
      0;  // the global cursor: samples consumed so far; step k reads samples [first + k*global, first + (k+1)*global)
  int prefetch_steps = 2;
};

// Rank r of R takes samples [r*G/R, (r+1)*G/R) of every global batch of G, in order, cut into microbatches: so the
// union over ranks, and the order, do not depend on R. Create() checks divisibility.
class Loader {
 public:
  static absl::StatusOr<std::unique_ptr<Loader>> Create(std::shared_ptr<const Sampler> sampler,
                                                        const LoaderOptions& options);
  virtual ~Loader() = default;

  // The next step. Errors (a token beyond the vocabulary, a file that became shorter) come from the step that has them.
  virtual absl::StatusOr<StepBatch> Next() = 0;
};

}  // namespace trireme

#endif  // TRIREME_DATA_SAMPLING_LOADER_H_
