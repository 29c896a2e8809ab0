// tests/models/tiny_decoder.h
// A small decoder on one rank, and batches for it.
#ifndef TRIREME_TESTS_MODELS_TINY_DECODER_H_
#define TRIREME_TESTS_MODELS_TINY_DECODER_H_

#include <ATen/ops/zeros.h>

#include <memory>
#include <vector>

#include "models/blocks/decoder.h"
#include "models/parts/draft.h"
#include "parallel/comm/mpi_group.h"
#include "parallel/sharding/stage.h"
#include "tests/kernels/test_tensors.h"

namespace trireme {

// The sizes that a test names of Llama's decoder.
struct DecoderSizes {
  int64_t layers, hidden, heads, kv_heads, width, vocab;
  int64_t positions = 48;
  int64_t window = 0;
};
inline DecoderSpec LlamaSpec(const DecoderSizes& sizes) {
  ModelConfig config;
  config.set_num_hidden_layers(static_cast<int32_t>(sizes.layers));
  config.set_hidden_size(static_cast<int32_t>(sizes.hidden));
  config.set_num_attention_heads(static_cast<int32_t>(sizes.heads));
  config.set_num_key_value_heads(static_cast<int32_t>(sizes.kv_heads));
  config.set_intermediate_size(static_cast<int32_t>(sizes.width));
  config.set_vocab_size(static_cast<int32_t>(sizes.vocab));
  config.set_max_position_embeddings(static_cast<int32_t>(sizes.positions));
  config.set_sliding_window(static_cast<int32_t>(sizes.window));
  std::vector<std::string> problems;
  DecoderSpec spec = DraftDecoder(config, &problems).Build(&problems);
  TRIREME_CHECK(problems.empty(), problems.front());
  return spec;
}

inline DecoderSpec TinyDecoderSpec(int64_t layers = 2, int64_t window = 0) {
  DecoderSpec spec = LlamaSpec({layers, 32, 4, 2, 44, 61, 48, window});
  spec.initializer_range = 0.2;
  return spec;
}

inline BufferOptions OneRankOptions() {
  BufferOptions options;
  options.gather_group = options.reduce_group = options.replicate_group = MakeSelfGroup("self");
  return options;
}

// With weights from seed 1.
inline std::unique_ptr<Stage> MakeStage(const DecoderSpec& spec, const BufferOptions& options,
                                        const StageOptions& stage_options,
                                        const AttentionBackend& attention = CpuAttention()) {
  DecoderUnits decoder = BuildDecoder(spec, options, attention);
  for (auto& buffer : decoder.buffers) {
    buffer->Initialize(1);
    if (options.gather_group->size() == 1) buffer->Publish(/*converted=*/false);
  }
  return std::make_unique<Stage>(std::move(decoder.units), std::move(decoder.buffers), stage_options);
}

// Random tokens and targets in segments of these lengths.
inline MicrobatchTensors TinyBatch(const DecoderSpec& spec, const std::vector<int32_t>& lengths, uint64_t seed = 7) {
  std::vector<int64_t> positions;
  std::vector<int32_t> ends = {0};
  MicrobatchTensors batch;
  for (const int32_t length : lengths) {
    ends.push_back(ends.back() + length);
    for (int64_t i = 0; i < length; ++i) positions.push_back(i);
    batch.max_seqlen = std::max<int64_t>(batch.max_seqlen, length);
  }
  TestTensors random(seed);
  batch.tokens = random.Ids(ends.back(), spec.vocab_size);
  batch.targets = random.Ids(ends.back(), spec.vocab_size);
  batch.positions = TensorOf(positions);
  batch.cu_seqlens = TensorOf(ends);
  return batch;
}

inline at::Tensor NoSums() { return at::zeros({2}, at::TensorOptions().dtype(at::kDouble)); }

// One step of one microbatch; returns the sum of the losses. Own gradients stand in the stage's buffers.
inline double ForwardBackward(Stage& stage, const MicrobatchTensors& batch, double loss_scale = 1) {
  at::Tensor sums = NoSums();
  MicrobatchState state;
  state.batch = batch;
  stage.BeginStep();
  stage.Forward(state, {}, loss_scale, sums);
  stage.Backward(state, {}, loss_scale, sums, /*last=*/true);
  stage.FinishGradients(1);
  return sums[0].item<double>();
}

}  // namespace trireme

#endif  // TRIREME_TESTS_MODELS_TINY_DECODER_H_
