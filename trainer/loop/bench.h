// trainer/loop/bench.h
// How fast the training step is, without files.
#ifndef TRIREME_TRAINER_LOOP_BENCH_H_
#define TRIREME_TRAINER_LOOP_BENCH_H_

#include <string>
#include <vector>

#include "models/engine/extensions.h"

namespace trireme {

struct BenchOptions {
  std::vector<std::string> configs, overrides;
  int expected_ranks = 0;
  int steps = 10;  // timed
  int warmup = 3;  // before
};

// Runs the recipe's whole step (forward, backward, clipping, update) on synthetic tokens and prints one JSON line on
// rank 0's standard output: tokens_per_second (global, from the median step), step_ms {median, min}, peak_memory_bytes
// (of rank 0), idle_memory_bytes (before the model was made), model_flops_utilization (absent when the device's peak is
// unknown), and what ran. data.source is not read.
absl::Status Bench(const BenchOptions& options, const Extensions& extensions);

}  // namespace trireme

#endif  // TRIREME_TRAINER_LOOP_BENCH_H_
