// models/engine/layout.h
// Whether a mesh fits a model and a batch, and which one nearby does.
#ifndef TRIREME_MODELS_ENGINE_LAYOUT_H_
#define TRIREME_MODELS_ENGINE_LAYOUT_H_

#include <string>
#include <vector>

#include "models/spec/decoder_spec.h"
#include "parallel/comm/mesh.h"
#include "parallel/pipeline/schedule.h"

namespace trireme {

// What a step is made of, over all ranks.
struct BatchShape {
  int64_t sequence_length = 0;   // tokens
  int64_t micro_batch_size = 0;  // sequences
  int64_t global_batch_size = 0;
};

// How a pipeline is cut and run, as parallel.pipeline_* of a config say it.
struct PipelineChoice {
  std::string schedule = "1F1B";  // by name, or a .csv
  int stages_per_rank = 0;        // 0: as many as the schedule has by itself
  std::vector<int> blocks;        // of each stage; empty: balanced by cost
};

// Everything that keeps `mesh` from carrying this model, one line each, with the remedy; empty when it fits.
std::vector<std::string> LayoutProblems(const BatchShape& batch, const PipelineChoice& pipeline,
                                        const DecoderSpec& model, const MeshShape& mesh);

// The mesh of `world` ranks that fits and is closest to the wished one (fewest doublings over all axes), as a textproto
// fragment "parallel { tensor: 2 ... }"; "" when none fits.
std::string ProposeLayout(const BatchShape& batch, const PipelineChoice& pipeline, const DecoderSpec& model,
                          const MeshShape& wished, int world);

absl::StatusOr<Schedule> MakePipelineSchedule(const PipelineChoice& pipeline, int num_ranks, int num_microbatches);

// Relative cost of each unit of the model (embedding, blocks, head): operations of one token's forward.
std::vector<double> UnitCosts(const DecoderSpec& model, int64_t sequence_length);

// Units of each stage: as given by pipeline.blocks, else balanced by cost.
absl::StatusOr<std::vector<int>> StageUnits(const PipelineChoice& pipeline, const DecoderSpec& model,
                                            int64_t sequence_length, int num_stages);

}  // namespace trireme

#endif  // TRIREME_MODELS_ENGINE_LAYOUT_H_
