// models/engine/layout.h
// Whether a mesh fits a model and a batch, and which one nearby does.
#ifndef TRIREME_MODELS_ENGINE_LAYOUT_H_
#define TRIREME_MODELS_ENGINE_LAYOUT_H_

#include <string>
#include <vector>

#include "configs/run_config.pb.h"
#include "models/spec/decoder_spec.h"
#include "parallel/comm/mesh.h"
#include "parallel/pipeline/schedule.h"

namespace trireme {

// Everything that keeps `mesh` from carrying this model, one line each, with the remedy; empty when it fits.
std::vector<std::string> LayoutProblems(const RunConfig& config, const DecoderSpec& model, const MeshShape& mesh);

// The mesh of `world` ranks that fits and is closest to the wished one (fewest doublings over all axes), as a textproto
// fragment "parallel { tensor: 2 ... }"; "" when none fits.
std::string ProposeLayout(const RunConfig& config, const DecoderSpec& model, const MeshShape& wished, int world);

// The schedule that `config` asks for, over mesh[pipeline] ranks.
absl::StatusOr<Schedule> MakePipelineSchedule(const ParallelConfig& config, int num_ranks, int num_microbatches);

// Relative cost of each unit of the model (embedding, blocks, head): operations of one token's forward.
std::vector<double> UnitCosts(const DecoderSpec& model, int64_t sequence_length);

// Units of each stage: as given by pipeline_blocks, else balanced by cost.
absl::StatusOr<std::vector<int>> StageUnits(const ParallelConfig& config, const DecoderSpec& model,
                                            int64_t sequence_length, int num_stages);

}  // namespace trireme

#endif  // TRIREME_MODELS_ENGINE_LAYOUT_H_
