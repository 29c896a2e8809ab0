#include "models/engine/layout.h"

#include <absl/strings/match.h>
#include <absl/strings/str_join.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "models/spec/parameters.h"
#include "parallel/pipeline/balance.h"

namespace trireme {
namespace {

int StagesPerRank(const PipelineChoice& pipeline) {
  if (pipeline.stages_per_rank > 0) return pipeline.stages_per_rank;
  return pipeline.schedule == "Interleaved1F1B" || pipeline.schedule == "ZB-V" ? 2 : 1;
}

// Divisors of n, ascending.
std::vector<int> Divisors(int n) {
  std::vector<int> divisors;
  for (int d = 1; d <= n; ++d) {
    if (n % d == 0) divisors.push_back(d);
  }
  return divisors;
}

}  // namespace

std::vector<std::string> LayoutProblems(const BatchShape& batch, const PipelineChoice& choice, const DecoderSpec& model,
                                        const MeshShape& mesh) {
  std::vector<std::string> problems;
  const int tensor = mesh[Axis::kTensor], context = mesh[Axis::kContext], pipeline = mesh[Axis::kPipeline];
  const int64_t data = mesh[Axis::kDataReplicate] * mesh[Axis::kDataShard];
  const int64_t length = batch.sequence_length, micro = batch.micro_batch_size, global = batch.global_batch_size;
  for (const LayerSpec& layer : model.layers) {
    layer.mixer->CheckRanks(mesh, &problems);
    layer.feed_forward->CheckRanks(mesh, &problems);
    if (!problems.empty()) break;  // other layers would say the same
  }
  const int inner = mesh[Axis::kDataShard] * context * tensor;
  if (mesh.expert > 1 && !model.has_experts())
    problems.push_back(absl::StrCat("parallel.expert: is ", mesh.expert, ", but the model has no experts; remove it"));
  if (inner % mesh.expert != 0)
    problems.push_back(absl::StrCat("parallel.expert: ", mesh.expert,
                                    " does not divide data_shard x context x tensor = ", inner, " ranks"));
  if (problems.empty() && model.quantization.has_value()) {
    for (const ParameterSpec& parameter : DecoderParameters(model)) {
      if (!parameter.quantized) continue;
      const absl::Status possible =
          CheckQuantizable(parameter, *model.quantization, parameter.expert ? mesh.expert : tensor);
      if (possible.ok()) continue;
      problems.push_back(
          absl::StrCat(parameter.expert ? "model.quantization.experts: " : "parallel.tensor: ", possible.message()));
      break;
    }
  }
  if (tensor > model.vocab_size)
    problems.push_back(absl::StrCat("parallel.tensor: ", tensor, " exceeds model.vocab_size ", model.vocab_size));
  if (length > 0 && length % (2 * context) != 0 && context > 1) {
    problems.push_back(absl::StrCat("parallel.context: data.sequence_length ", length, " is not a multiple of ",
                                    2 * context, ": each rank takes two of ", 2 * context, " equal chunks"));
  } else if (length > 0 && micro > 0 && micro * length / context % tensor != 0) {
    problems.push_back(absl::StrCat("parallel.tensor: ", tensor, " does not divide the ", micro * length / context,
                                    " tokens of a microbatch on one rank (micro_batch_size x data.sequence_length / "
                                    "parallel.context)"));
  }
  if (micro >= 1 && global >= 1 && global % (micro * data) != 0) {
    problems.push_back(absl::StrCat("global_batch_size: ", global, " is not a multiple of micro_batch_size ", micro,
                                    " x ", data, " data-parallel ranks = ", micro * data));
  }
  const int stages = pipeline * StagesPerRank(choice);
  if (!absl::EndsWith(choice.schedule, ".csv")) {
    if (stages > model.num_layers + 2) {
      problems.push_back(absl::StrCat("parallel.pipeline: ", pipeline, " ranks x ", StagesPerRank(choice),
                                      " stages need ", stages, " units, but the model has ", model.num_layers,
                                      " blocks, an embedding and a head"));
    } else if (const absl::Status status = StageUnits(choice, model, std::max<int64_t>(1, length), stages).status();
               !status.ok()) {
      problems.push_back(std::string(status.message()));
    }
  }
  return problems;
}

std::string ProposeLayout(const BatchShape& batch, const PipelineChoice& choice, const DecoderSpec& model,
                          const MeshShape& wished, int world) {
  MeshShape best;
  double best_distance = std::numeric_limits<double>::infinity();
  for (int tensor : Divisors(world)) {
    for (int pipeline : Divisors(world / tensor)) {
      for (int context : Divisors(world / tensor / pipeline)) {
        for (int replicate : Divisors(world / tensor / pipeline / context)) {
          MeshShape mesh;
          mesh[Axis::kTensor] = tensor;
          mesh[Axis::kPipeline] = pipeline;
          mesh[Axis::kContext] = context;
          mesh[Axis::kDataReplicate] = replicate;
          mesh[Axis::kDataShard] = world / tensor / pipeline / context / replicate;
          for (int expert : wished.expert == 1 ? std::vector<int>{1} : Divisors(world / pipeline / replicate)) {
            mesh.expert = expert;
            double distance = std::abs(std::log2(static_cast<double>(expert) / wished.expert));
            for (int axis = 0; axis < kNumAxes; ++axis)
              distance += std::abs(std::log2(static_cast<double>(mesh.size[axis]) / wished.size[axis]));
            if (distance < best_distance - 1e-9 && LayoutProblems(batch, choice, model, mesh).empty()) {
              best = mesh;
              best_distance = distance;
            }
          }
        }
      }
    }
  }
  if (!std::isfinite(best_distance)) return "";
  std::string text = "parallel {";
  for (Axis axis : {Axis::kTensor, Axis::kPipeline, Axis::kContext, Axis::kDataShard, Axis::kDataReplicate}) {
    if (best[axis] > 1) absl::StrAppend(&text, " ", AxisName(axis), ": ", best[axis]);
  }
  if (best.expert > 1) absl::StrAppend(&text, " expert: ", best.expert);
  return absl::StrCat(text, " }");
}

absl::StatusOr<Schedule> MakePipelineSchedule(const PipelineChoice& pipeline, int num_ranks, int num_microbatches) {
  // One rank has nothing to overlap with: one stage, and each microbatch's backward right after its forward.
  if (num_ranks == 1 && pipeline.stages_per_rank <= 1) return MakeSchedule("1F1B", 1, 1, num_microbatches);
  absl::StatusOr<Schedule> schedule =
      MakeSchedule(pipeline.schedule, num_ranks, StagesPerRank(pipeline), num_microbatches);
  if (schedule.ok() && (schedule->num_ranks() != num_ranks || schedule->num_microbatches != num_microbatches)) {
    return Error(ExitCode::kConfig, "parallel.pipeline_schedule: ", pipeline.schedule, " is for ",
                 schedule->num_ranks(), " ranks and ", schedule->num_microbatches, " microbatches, the run has ",
                 num_ranks, " and ", num_microbatches);
  }
  return schedule;
}

std::vector<double> UnitCosts(const DecoderSpec& model, int64_t sequence_length) {
  std::vector<double> costs = {2.0 * static_cast<double>(model.hidden_size)};  // the embedding, a copy
  for (int64_t i = 0; i < model.num_layers; ++i) costs.push_back(model.BlockForwardFlopsPerToken(i, sequence_length));
  costs.push_back(model.HeadForwardFlopsPerToken());
  return costs;
}

absl::StatusOr<std::vector<int>> StageUnits(const PipelineChoice& pipeline, const DecoderSpec& model,
                                            int64_t sequence_length, int num_stages) {
  if (pipeline.blocks.empty()) return BalanceStages(UnitCosts(model, sequence_length), num_stages);
  std::vector<int> units = pipeline.blocks;
  const std::string given = absl::StrJoin(units, ", ");
  const int64_t sum = std::accumulate(units.begin(), units.end(), int64_t{0});
  const bool negative = std::any_of(units.begin(), units.end(), [](int n) { return n < 0; });
  if (static_cast<int>(units.size()) != num_stages || sum != model.num_layers || negative) {
    return Error(ExitCode::kConfig, "parallel.pipeline_blocks: [", given, "] must be ", num_stages,
                 " numbers, one per stage, that sum to the model's ", model.num_layers, " blocks");
  }
  ++units.front();
  ++units.back();
  for (size_t i = 0; i < units.size(); ++i) {
    if (units[i] == 0)
      return Error(ExitCode::kConfig, "parallel.pipeline_blocks: [", given, "] leaves stage ", i, " with nothing");
  }
  return units;
}

}  // namespace trireme
