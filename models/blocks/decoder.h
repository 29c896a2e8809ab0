// models/blocks/decoder.h
// The decoder all families share: embedding, blocks, head, as units.
#ifndef TRIREME_MODELS_BLOCKS_DECODER_H_
#define TRIREME_MODELS_BLOCKS_DECODER_H_

#include <memory>
#include <string>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/base/ops.h"
#include "models/spec/decoder_spec.h"
#include "models/spec/parameters.h"
#include "parallel/sharding/unit.h"

namespace trireme {

struct DecoderUnits {
  std::vector<std::unique_ptr<Unit>> units;  // embedding, block 0 .. n-1, head
  std::vector<std::unique_ptr<ParameterBuffer>>
      buffers;  // one per unit and storage format; a tied matrix or table of positions is one of its own
};

// Which of the units 0 (embedding), 1 .. n (blocks), n + 1 (head) a pipeline stage has.
struct UnitRange {
  int64_t begin = 0, end = int64_t{1} << 40;
  // A tied matrix that an earlier stage on this rank has already; null: none.
  ParameterBuffer* embedding = nullptr;
  bool whole_embedding = true;  // tied: both its uses are on this rank
};

// `options` gives everything of a buffer but its name, uses and quantization; options.tied_group applies to a tied
// matrix only. expert_options does so for buffers of experts, whose tensor group are the ranks that experts are
// cut over; without it each rank has all. Not collective.
DecoderUnits BuildDecoder(const DecoderSpec& spec, const BufferOptions& options, const AttentionBackend& attention,
                          const UnitRange& range = {}, const BufferOptions* expert_options = nullptr);

// Examples of what the decoder asks of attention on one of `tensor` ranks, to choose a backend by.
std::vector<AttentionArguments> ExampleAttentions(const DecoderSpec& spec, int tensor, at::ScalarType compute,
                                                  at::Device device);

}  // namespace trireme

#endif  // TRIREME_MODELS_BLOCKS_DECODER_H_
