#include "models/blocks/decoder.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

#include "models/blocks/units.h"
#include "parallel/comm/mpi_group.h"

namespace trireme {
namespace {

std::shared_ptr<const DecoderShared> MakeShared(const DecoderSpec& spec, const BufferOptions& options,
                                                const BufferOptions& expert_options,
                                                const AttentionBackend& attention) {
  auto shared = std::make_shared<DecoderShared>();
  shared->spec = spec;
  shared->tensor = options.tensor_group != nullptr ? options.tensor_group : MakeSelfGroup("alone");
  shared->rotations = std::make_unique<RotationTables>(ArithmeticType(options.compute), options.device);
  shared->expert = expert_options.tensor_group != nullptr ? expert_options.tensor_group : MakeSelfGroup("alone");
  shared->parts = {attention, shared->rotations.get(), shared->tensor.get(), shared->expert.get()};
  return shared;
}

// Makes the buffers of units and the units on them, in the model's order.
class Builder {
 public:
  Builder(const DecoderSpec& spec, const BufferOptions& options, const BufferOptions& expert_options,
          const AttentionBackend& attention)
      : spec_(spec),
        options_(options),
        expert_options_(expert_options),
        shared_(MakeShared(spec, options, expert_options, attention)) {}

  ParameterBuffer* AddEmbeddingMatrix(bool used_twice) {
    return AddBuffer(kEmbeddingName, EmbeddingParameters(spec_), used_twice ? 2 : 1);
  }

  void AddEmbedding(ParameterBuffer* matrix) {
    const std::vector<ParameterSpec> extras = EmbeddingExtras(spec_);
    ParameterBuffer* buffer = extras.empty() ? nullptr : AddBuffer(kPositionsName, extras);
    decoder_.units.push_back(MakeEmbeddingUnit(kEmbeddingName, matrix, buffer, shared_));
  }

  void AddBlock(int64_t layer) {
    const std::string name = BlockName(layer);
    const std::vector<ParameterSpec> parameters = BlockParameters(spec_, layer);
    BlockStorage storage;
    storage.weights.resize(parameters.size());
    std::vector<Rectangle> rectangles(parameters.size());
    for (const char* kind : {"", " (float32)", " (experts)", " (quantized)", " (quantized experts)"}) {
      std::vector<ParameterSpec> specs;
      std::vector<size_t> places;
      for (size_t i = 0; i < parameters.size(); ++i) {
        if (KindOf(parameters[i]) != kind) continue;
        specs.push_back(parameters[i]);
        places.push_back(i);
      }
      if (specs.empty()) continue;
      storage.buffers.push_back(AddBuffer(absl::StrCat(name, kind), std::move(specs)));
      for (size_t i = 0; i < places.size(); ++i) {
        storage.weights[places[i]] = &storage.buffers.back()->weight(static_cast<int>(i));
        rectangles[places[i]] = storage.buffers.back()->rectangle(static_cast<int>(i));
      }
    }
    std::vector<std::unique_ptr<Adapter>> of_experts;
    const auto adapt = [&](const char* ending, bool experts, std::vector<std::unique_ptr<Adapter>>* adapters) {
      UnitAdapters added = MakeUnitAdapters(spec_, parameters, experts);
      if (added.groups.empty()) return std::move(added.groups);
      storage.buffers.push_back(AddBuffer(name + ending, added.parameters));
      for (const GroupAdapter& group : added.groups) {
        adapters->push_back(
            std::make_unique<Adapter>(MakeAdapter(rectangles, *storage.buffers.back(), group, *spec_.adapter)));
        storage.weights[group.base]->set_adapter(adapters->back().get());
      }
      return std::move(added.groups);
    };
    adapt(".adapter (experts)", /*experts=*/true, &of_experts);
    storage.groups = adapt(".adapter", /*experts=*/false, &storage.adapters);
    std::move(of_experts.begin(), of_experts.end(), std::back_inserter(storage.adapters));
    storage.parameters = parameters;
    decoder_.units.push_back(MakeBlockUnit(layer, std::move(storage), shared_));
  }

  // embedding: the tied matrix; null where the head has one of its own.
  void AddHead(ParameterBuffer* embedding) {
    const std::vector<ParameterSpec> head = HeadParameters(spec_);
    ParameterBuffer* buffer = head.empty() ? nullptr : AddBuffer("head", head);  // tied, a norm without parameters
    const UnitAdapters adapters = MakeUnitAdapters(spec_, head);
    ParameterBuffer* added = nullptr;
    std::unique_ptr<Adapter> adapter;
    if (!adapters.groups.empty()) {
      std::vector<Rectangle> rectangles;
      for (size_t i = 0; i < head.size(); ++i) rectangles.push_back(buffer->rectangle(static_cast<int>(i)));
      added = AddBuffer("head.adapter", adapters.parameters);
      adapter = std::make_unique<Adapter>(MakeAdapter(rectangles, *added, adapters.groups[0], *spec_.adapter));
    }
    decoder_.units.push_back(MakeHeadUnit("head", buffer, embedding != nullptr ? embedding : buffer,
                                          embedding != nullptr ? 0 : static_cast<int>(head.size()) - 1, added,
                                          std::move(adapter), shared_));
  }

  DecoderUnits Take() { return std::move(decoder_); }

 private:
  // Parameters of one kind share a buffer.
  static std::string KindOf(const ParameterSpec& parameter) {
    if (parameter.quantized) return parameter.expert ? " (quantized experts)" : " (quantized)";
    return parameter.expert ? " (experts)" : parameter.wide ? " (float32)" : "";
  }

  ParameterBuffer* AddBuffer(const std::string& name, std::vector<ParameterSpec> specs, int uses = 1) {
    BufferOptions options = specs[0].expert ? expert_options_ : options_;
    if (specs[0].wide) options.compute = options.reduce = ArithmeticType(options.compute);
    options.name = name;
    options.uses = uses;
    if (specs[0].quantized) options.quantization = spec_.quantization;
    // Only a tied matrix stands on more than one pipeline rank.
    if (!spec_.tied_embeddings || name != kEmbeddingName) options.tied_group = nullptr;
    decoder_.buffers.push_back(std::make_unique<ParameterBuffer>(std::move(specs), options));
    return decoder_.buffers.back().get();
  }

  const DecoderSpec& spec_;
  const BufferOptions &options_, &expert_options_;
  std::shared_ptr<const DecoderShared> shared_;
  DecoderUnits decoder_;
};

}  // namespace

DecoderUnits BuildDecoder(const DecoderSpec& spec, const BufferOptions& options, const AttentionBackend& attention,
                          const UnitRange& range, const BufferOptions* given) {
  BufferOptions expert_options = given != nullptr ? *given : options;
  if (given == nullptr) expert_options.tensor_group = nullptr;
  Builder builder(spec, options, expert_options, attention);
  const auto has = [&](int64_t unit) { return unit >= range.begin && unit < range.end; };
  const bool first = has(0), last = has(spec.num_layers + 1);
  ParameterBuffer* embedding = range.embedding;
  if (embedding == nullptr && (first || (last && spec.tied_embeddings)))
    embedding = builder.AddEmbeddingMatrix(/*used_twice=*/spec.tied_embeddings && range.whole_embedding);
  if (first) builder.AddEmbedding(embedding);
  for (int64_t layer = 0; layer < spec.num_layers; ++layer) {
    if (has(layer + 1)) builder.AddBlock(layer);
  }
  if (last) builder.AddHead(spec.tied_embeddings ? embedding : nullptr);
  return builder.Take();
}

std::vector<AttentionArguments> ExampleAttentions(const DecoderSpec& spec, int tensor, at::ScalarType compute,
                                                  at::Device device) {
  std::vector<AttentionArguments> examples;
  for (const AttentionShape& shape : spec.attentions()) {
    const at::TensorOptions options = at::TensorOptions().dtype(compute).device(device);
    AttentionArguments example;
    example.q = at::empty({1, shape.heads / tensor, shape.head_dim}, options);
    const int64_t kv_heads = std::max<int64_t>(1, shape.kv_heads / tensor);
    example.k = at::empty({1, kv_heads, shape.head_dim}, options);
    example.v = at::empty({1, kv_heads, shape.value_dim}, options);
    example.cu_seqlens_q = example.cu_seqlens_k = at::zeros({2}, options.dtype(at::kInt));
    example.max_q = example.max_k = 1;
    example.window = shape.window;
    example.scale = shape.scale > 0 ? shape.scale : 1.0 / std::sqrt(static_cast<double>(shape.head_dim));
    example.softcap = shape.softcap;
    if (shape.alibi) example.slopes = at::zeros({shape.heads / tensor}, options.dtype(at::kFloat));
    examples.push_back(std::move(example));
  }
  return examples;
}

}  // namespace trireme
