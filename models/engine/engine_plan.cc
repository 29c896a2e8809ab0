#include "models/engine/engine_plan.h"

namespace trireme {

EnginePlan PlanForOneRank(const DecoderSpec& model) {
  EnginePlan plan;
  plan.model = model;
  plan.schedule = *MakeSchedule("1F1B", 1, 1, 1);
  plan.stage_units = {static_cast<int>(model.num_layers) + 2};
  return plan;
}

}  // namespace trireme
