#include "trainer/recipe/optimization.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>

#include "kernels/base/moment_codes.h"
#include "models/spec/parameters.h"

namespace trireme {
namespace {

using Problems = std::vector<std::string>;

void InRange(const std::string& field, double value, double low, double high, Problems* problems) {
  if (!(value >= low && value < high))
    problems->push_back(absl::StrCat(field, ": is ", value, "; must be in [", low, ", ", high, ")"));
}

void Positive(const std::string& field, double value, Problems* problems) {
  if (!(value > 0)) problems->push_back(absl::StrCat(field, ": is ", value, "; must be positive"));
}

void CheckRate(const std::string& rule, double rate, double decay, Problems* problems) {
  InRange(rule + ".learning_rate", rate, 0, 1e6, problems);
  InRange(rule + ".weight_decay", decay, 0, 1e6, problems);
}

void CheckAdamW(const std::string& rule, const AdamW& adamw, Problems* problems) {
  InRange(rule + ".beta1", adamw.beta1(), 0, 1, problems);
  InRange(rule + ".beta2", adamw.beta2(), 0, 1, problems);
  Positive(rule + ".eps", adamw.eps(), problems);
  CheckRate(rule, adamw.learning_rate(), adamw.weight_decay(), problems);
}

void CheckMuon(const Muon& muon, Problems* problems) {
  constexpr int kMaxSteps = 100;
  InRange("optimizer.muon.momentum", muon.momentum(), 0, 1, problems);
  CheckRate("optimizer.muon", muon.learning_rate(), muon.weight_decay(), problems);
  if (muon.learning_rate() == 0)
    problems->push_back(
        "optimizer.muon.learning_rate: is 0; give a positive one, which muon.adamw.learning_rate stands beside, and "
        "set optimizer { groups { frozen: true } } for what is not to be trained");
  Positive("optimizer.muon.eps", muon.eps(), problems);
  if (muon.newton_schulz_steps() < 1 || muon.newton_schulz_steps() >= kMaxSteps)
    problems->push_back(absl::StrCat("optimizer.muon.newton_schulz_steps: is ", muon.newton_schulz_steps(),
                                     "; must be in [1, ", kMaxSteps, ")"));
  const int coefficients = muon.newton_schulz_coefficient_size();
  if (coefficients != 0 && coefficients != 3)
    problems->push_back(absl::StrCat("optimizer.muon.newton_schulz_coefficient: stands ", coefficients,
                                     coefficients == 1 ? " time" : " times", "; give three numbers, or none"));
  for (const double coefficient : muon.newton_schulz_coefficient()) {
    if (!std::isfinite(coefficient))
      problems->push_back(
          absl::StrCat("optimizer.muon.newton_schulz_coefficient: is ", coefficient, "; give a finite number"));
  }
  CheckAdamW("optimizer.muon.adamw", muon.adamw(), problems);
}

void CheckGroups(const OptimizerConfig& optimizer, Problems* problems) {
  for (const ParameterGroup& group : optimizer.groups()) {
    if (group.names_size() == 0)
      problems->push_back(
          "optimizer.groups.names: not set; name the parameters of the group, as in names: \"*.q_proj.weight\"");
    InRange("optimizer.groups.learning_rate_factor", group.learning_rate_factor(), 0, 1e6, problems);
    InRange("optimizer.groups.weight_decay", group.weight_decay(), 0, 1e6, problems);
  }
}

// Of a schedule that goes from one to zero: how far it is at `progress`.
double Cosine(double progress) { return 0.5 * (1 + std::cos(M_PI * progress)); }

// remaining: share of the descent that is still to come.
double TailOf(WsdShape::Tail tail, double remaining) {
  switch (tail) {
    case WsdShape::LINEAR:
      return remaining;
    case WsdShape::ONE_MINUS_SQRT:
      return 1 - std::sqrt(1 - remaining);
    case WsdShape::COSINE:
      return Cosine(1 - remaining);
  }
  return 0;
}

}  // namespace

void CheckOptimizer(const OptimizerConfig& optimizer, const PrecisionConfig& precision, Problems* problems) {
  switch (optimizer.rule_case()) {
    case OptimizerConfig::kAdamw:
      CheckAdamW("optimizer.adamw", optimizer.adamw(), problems);
      break;
    case OptimizerConfig::kSgd:
      InRange("optimizer.sgd.momentum", optimizer.sgd().momentum(), 0, 1, problems);
      CheckRate("optimizer.sgd", optimizer.sgd().learning_rate(), optimizer.sgd().weight_decay(), problems);
      break;
    case OptimizerConfig::kMuon:
      CheckMuon(optimizer.muon(), problems);
      break;
    case OptimizerConfig::kLion:
      InRange("optimizer.lion.beta1", optimizer.lion().beta1(), 0, 1, problems);
      InRange("optimizer.lion.beta2", optimizer.lion().beta2(), 0, 1, problems);
      CheckRate("optimizer.lion", optimizer.lion().learning_rate(), optimizer.lion().weight_decay(), problems);
      break;
    case OptimizerConfig::RULE_NOT_SET:
      problems->push_back("optimizer: no rule; write optimizer { adamw { learning_rate: 3e-4 } }");
  }
  CheckGroups(optimizer, problems);
  if (!precision.master_weights() && precision.compute() != PrecisionConfig::BF16) {
    problems->push_back(
        "precision.master_weights: off needs precision.compute: BF16; FP32 weights are their own master");
  }
  if (!precision.master_weights() && optimizer.has_sgd()) {
    problems->push_back(
        "precision.master_weights: off needs optimizer.adamw, muon or lion; sgd has no stochastic rounding");
  }
}

void CheckSchedule(const LrScheduleConfig& schedule, const EvaluationConfig& evaluation, Problems* problems) {
  if (schedule.warmup_steps() < 0)
    problems->push_back(absl::StrCat("lr_schedule.warmup_steps: is ", schedule.warmup_steps(), "; give 0 or more"));
  if (!(schedule.clip_grad_norm() >= 0))
    problems->push_back(
        absl::StrCat("lr_schedule.clip_grad_norm: is ", schedule.clip_grad_norm(), "; give 0 for no clipping"));
  const auto ratio = [&](const char* shape, double value) {
    if (!(value >= 0 && value <= 1))
      problems->push_back(absl::StrCat("lr_schedule.", shape, ".min_ratio: is ", value, "; must be in [0, 1]"));
  };
  const auto at_least = [&](const char* field, int64_t value, int64_t least) {
    if (value < least)
      problems->push_back(absl::StrCat("lr_schedule.", field, ": is ", value, "; give ", least, " or more"));
  };
  switch (schedule.shape_case()) {
    case LrScheduleConfig::kCosine:
      ratio("cosine", schedule.cosine().min_ratio());
      at_least("cosine.cycles", schedule.cosine().cycles(), 1);
      break;
    case LrScheduleConfig::kLinear:
      ratio("linear", schedule.linear().min_ratio());
      break;
    case LrScheduleConfig::kWsd:
      ratio("wsd", schedule.wsd().min_ratio());
      if (schedule.wsd().decay_steps() < 1)
        problems->push_back("lr_schedule.wsd.decay_steps: not set; give the length of the final descent in steps");
      break;
    case LrScheduleConfig::kPolynomial:
      ratio("polynomial", schedule.polynomial().min_ratio());
      InRange("lr_schedule.polynomial.power", schedule.polynomial().power(), 0, 1e3, problems);
      break;
    case LrScheduleConfig::kInverseSqrt:
      if (schedule.inverse_sqrt().has_timescale())
        at_least("inverse_sqrt.timescale", schedule.inverse_sqrt().timescale(), 1);
      break;
    case LrScheduleConfig::kPlateau: {
      const PlateauShape& plateau = schedule.plateau();
      ratio("plateau", plateau.min_ratio());
      InRange("lr_schedule.plateau.factor", plateau.factor(), 0, 1, problems);
      InRange("lr_schedule.plateau.threshold", plateau.threshold(), 0, 1, problems);
      at_least("plateau.patience", plateau.patience(), 0);
      at_least("plateau.cooldown", plateau.cooldown(), 0);
      if (evaluation.every_steps() == 0)
        problems->push_back(
            "lr_schedule.plateau: follows the evaluation loss, but evaluation.every_steps is 0; set it, or choose "
            "another shape");
      break;
    }
    default:
      break;
  }
}

const AdamW& AdamWOf(const OptimizerConfig& optimizer) {
  return optimizer.has_muon() ? optimizer.muon().adamw() : optimizer.adamw();
}

double PeakLearningRate(const OptimizerConfig& optimizer) {
  switch (optimizer.rule_case()) {
    case OptimizerConfig::kSgd:
      return optimizer.sgd().learning_rate();
    case OptimizerConfig::kMuon:
      return optimizer.muon().learning_rate();
    case OptimizerConfig::kLion:
      return optimizer.lion().learning_rate();
    default:
      return optimizer.adamw().learning_rate();
  }
}

double LearningRateAt(const LrScheduleConfig& schedule, double peak, int64_t step, int64_t total_steps) {
  const int64_t warmup = schedule.warmup_steps();
  if (step <= warmup) return peak * static_cast<double>(step) / static_cast<double>(warmup);
  // How much of the way from the end of warm-up to the last step is behind us.
  const double progress =
      total_steps > warmup ? static_cast<double>(step - warmup) / static_cast<double>(total_steps - warmup) : 1.0;
  const auto between = [peak](double min_ratio, double remaining) {
    return peak * (min_ratio + (1 - min_ratio) * remaining);
  };
  switch (schedule.shape_case()) {
    case LrScheduleConfig::kCosine: {
      const double cycles = progress * schedule.cosine().cycles();
      return between(schedule.cosine().min_ratio(), progress < 1 ? Cosine(cycles - std::floor(cycles)) : 0);
    }
    case LrScheduleConfig::kLinear:
      return between(schedule.linear().min_ratio(), 1 - progress);
    case LrScheduleConfig::kWsd: {
      const WsdShape& wsd = schedule.wsd();
      if (step <= total_steps - wsd.decay_steps()) return peak;
      return between(wsd.min_ratio(), TailOf(wsd.tail(), static_cast<double>(total_steps - step) / wsd.decay_steps()));
    }
    case LrScheduleConfig::kPolynomial:
      return between(schedule.polynomial().min_ratio(), std::pow(1 - progress, schedule.polynomial().power()));
    case LrScheduleConfig::kInverseSqrt: {
      constexpr int64_t kWithoutWarmup = 10000;
      const int64_t usual = warmup > 0 ? warmup : kWithoutWarmup;
      const auto timescale =
          static_cast<double>(schedule.inverse_sqrt().has_timescale() ? schedule.inverse_sqrt().timescale() : usual);
      return peak * std::sqrt(timescale / (static_cast<double>(step - warmup) + timescale));
    }
    default:
      return peak;
  }
}

bool DependsOnLength(const LrScheduleConfig& schedule) {
  return schedule.has_cosine() || schedule.has_linear() || schedule.has_wsd() || schedule.has_polynomial();
}

void ObserveEvaluation(const PlateauShape& shape, double peak, double loss, PlateauProgress* progress) {
  constexpr double kLeastChange = 1e-8;  // of the learning rate, below which it stays
  if (!progress->has_best() || loss < progress->best() * (1 - shape.threshold())) {
    progress->set_best(loss);
    progress->set_bad_evaluations(0);
  } else {
    progress->set_bad_evaluations(progress->bad_evaluations() + 1);
  }
  if (progress->cooldown() > 0) {
    progress->set_cooldown(progress->cooldown() - 1);
    progress->set_bad_evaluations(0);
  }
  if (progress->bad_evaluations() <= shape.patience()) return;
  const double lower = std::max(progress->factor() * shape.factor(), shape.min_ratio());
  if ((progress->factor() - lower) * peak > kLeastChange) progress->set_factor(lower);
  progress->set_cooldown(shape.cooldown());
  progress->set_bad_evaluations(0);
}

bool ByMuon(const OptimizerConfig& config, const ParameterSpec& spec) {
  return config.has_muon() && spec.trainable && spec.block_matrix;
}

bool InEightBits(const AdamW& config, const ParameterSpec& spec) {
  return config.state() == AdamW::INT8 && KeepsMomentCodes(spec);
}

std::vector<StateKind> StatesOf(const OptimizerConfig& config, const ParameterSpec& spec) {
  if (!spec.trainable) return {};
  if (ByMuon(config, spec)) return {{"momentum_buffer"}};
  if (config.has_lion()) return {{"exp_avg"}};
  if (config.has_sgd())
    return config.sgd().momentum() > 0 ? std::vector<StateKind>{{"velocity"}} : std::vector<StateKind>();
  if (!InEightBits(AdamWOf(config), spec)) return {{"exp_avg"}, {"exp_avg_sq"}};
  return {{"exp_avg_codes", at::kByte},
          {"exp_avg_sq_codes", at::kByte},
          {"exp_avg_absmax", at::kFloat, kMomentBlock},
          {"exp_avg_sq_absmax", at::kFloat, kMomentBlock}};
}

OptimizerMemory MemoryOf(const OptimizerConfig& optimizer) {
  OptimizerMemory memory;
  memory.state_bytes = [optimizer](const ParameterSpec& spec) {
    double bytes = 0;
    for (const StateKind& kind : StatesOf(optimizer, spec))
      bytes += static_cast<double>(c10::elementSize(kind.type)) / static_cast<double>(kind.block);
    return bytes;
  };
  if (!optimizer.has_muon()) return memory;
  memory.workspace_bytes = [](const ParameterSpec& spec) {
    if (!spec.block_matrix) return int64_t{0};
    const int64_t rows = spec.shape[0] / spec.matrices, columns = spec.shape[1], small = std::min(rows, columns);
    // The matrix, the iteration's X and the next one, X X^T and its polynomial.
    return 4 * (3 * rows * columns + 2 * small * small);
  };
  return memory;
}

void CheckMomentBlocks(const OptimizerConfig& optimizer, const EnginePlan& plan, Problems* problems) {
  if (AdamWOf(optimizer).state() != AdamW::INT8) return;
  const int tensor = plan.mesh[Axis::kTensor], shards = plan.mesh[Axis::kDataShard] * plan.mesh[Axis::kContext];
  const bool cut = plan.storage.shard != ShardLevel::kNone;
  int64_t before = 0;
  const auto check = [&](const std::vector<ParameterSpec>& parameters) {
    for (const ParameterSpec& spec : parameters) {
      const int over = spec.expert ? shards * tensor / plan.mesh.expert : shards;
      const absl::Status fits =
          CheckBlocks(spec, kMomentBlock, spec.expert ? plan.mesh.expert : tensor, cut ? over : 1, &before);
      if (fits.ok() || !spec.trainable || ByMuon(optimizer, spec) || !InEightBits(AdamWOf(optimizer), spec)) continue;
      problems->push_back(absl::StrCat("optimizer: state: INT8 has a scale for each ", kMomentBlock,
                                       " elements of a parameter, but ", fits.message(),
                                       ", so that ranks would share one; use state: FP32, or other numbers of ranks"));
      return false;
    }
    return true;
  };
  for (const std::vector<ParameterSpec>& unit : UnitParameters(plan.model)) {
    if (!check(unit)) return;
  }
  check(AdapterParameters(plan.model));
}

}  // namespace trireme
