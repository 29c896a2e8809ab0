// models/blocks/shared.h
// What the units of one decoder share on a rank.
#ifndef TRIREME_MODELS_BLOCKS_SHARED_H_
#define TRIREME_MODELS_BLOCKS_SHARED_H_

#include <memory>

#include "kernels/attention/attention.h"
#include "kernels/base/ops.h"
#include "models/spec/decoder_spec.h"
#include "models/spec/parameters.h"
#include "parallel/comm/process_group.h"
#include "parallel/layers/adapter.h"
#include "parallel/sharding/unit.h"

namespace trireme {

struct DecoderShared {
  DecoderSpec spec;
  std::shared_ptr<ProcessGroup> tensor, expert;
  std::unique_ptr<RotationTables> rotations;
  PartResources parts;
};

// The weights of the norm called `name`, of the buffer's parameters or of those given; null ones where it has none.
NormWeights FindNorm(const NormSpec& norm, const std::string& name, ParameterBuffer& buffer);
NormWeights FindNorm(const NormSpec& norm, const std::string& name, const std::vector<ParameterSpec>& parameters,
                     const std::vector<Weight*>& weights);

// A group's adapter on this rank. rectangles: this rank's, of the unit's own parameters. added: the buffer of its
// adapters, which outlives the result.
Adapter MakeAdapter(const std::vector<Rectangle>& rectangles, ParameterBuffer& added, const GroupAdapter& group,
                    const AdapterSpec& spec);

// The numbers by which adapters drop elements of their input in training; undefined where nothing is dropped.
at::Tensor DroppedTokens(const UnitContext& context);

}  // namespace trireme

#endif  // TRIREME_MODELS_BLOCKS_SHARED_H_
