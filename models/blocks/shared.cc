#include "models/blocks/shared.h"

#include "kernels/base/philox.h"

namespace trireme {

NormWeights FindNorm(const NormSpec& norm, const std::string& name, const std::vector<ParameterSpec>& parameters,
                     const std::vector<Weight*>& weights) {
  NormWeights found;
  found.spec = norm;
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (norm.weight && parameters[i].name == name + ".weight") found.weight = weights[i];
    if (norm.bias && parameters[i].name == name + ".bias") found.bias = weights[i];
  }
  TRIREME_CHECK((found.weight != nullptr) == norm.weight && (found.bias != nullptr) == norm.bias,
                "no parameters of the norm ", name);
  return found;
}

NormWeights FindNorm(const NormSpec& norm, const std::string& name, ParameterBuffer& buffer) {
  std::vector<Weight*> weights;
  // Norms are no part of fused groups, so each of their parameters is a weight.
  for (size_t i = 0; i < buffer.specs().size(); ++i) weights.push_back(&buffer.weight(static_cast<int>(i)));
  return FindNorm(norm, name, buffer.specs(), weights);
}

Adapter MakeAdapter(const std::vector<Rectangle>& rectangles, ParameterBuffer& added, const GroupAdapter& group,
                    const AdapterSpec& spec) {
  Adapter adapter;
  adapter.a = &added.weight(group.a);
  if (group.initial_a >= 0) adapter.initial_a = &added.weight(group.initial_a);
  adapter.dropout.rate = spec.dropout;
  adapter.dropout.key =
      MakeRandomKey(spec.seed, RandomPurpose::kDropout, StableId(added.specs()[group.a].name.c_str()), /*step=*/0);
  adapter.dropout.first_column = rectangles[group.base].offset[1];
  for (const GroupAdapter::Member& part : group.members) {
    AdapterMember member;
    for (int i = group.base; i < part.base; ++i) member.first_row += rectangles[i].size[0];
    member.rows = rectangles[part.base].size[0];
    member.first_rank = part.first_rank;
    member.rank = part.rank;
    member.b = &added.weight(part.b);
    if (part.magnitude >= 0) member.magnitude = &added.weight(part.magnitude);
    if (part.initial_b >= 0) member.initial_b = &added.weight(part.initial_b);
    member.scale = part.scale;
    adapter.members.push_back(member);
  }
  return adapter;
}

at::Tensor DroppedTokens(const UnitContext& context) {
  return context.phase == Phase::kTrain ? context.batch->numbers : at::Tensor();
}

}  // namespace trireme
