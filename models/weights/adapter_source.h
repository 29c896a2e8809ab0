// models/weights/adapter_source.h
// An adapter on disk: a PEFT directory, or a checkpoint of a run that trains one.
#ifndef TRIREME_MODELS_WEIGHTS_ADAPTER_SOURCE_H_
#define TRIREME_MODELS_WEIGHTS_ADAPTER_SOURCE_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "models/weights/run_text.h"
#include "models/weights/weight_source.h"

namespace trireme {

struct AdapterSource {
  std::string description;            // "adapter runs/a/adapter"
  AdapterConfig config;               // without `from`
  std::string base;                   // the model it belongs to, as the source names it; may be ""
  std::vector<SourceTensor> tensors;  // canonical names; modules that were trained whole are among them
  // Frozen weights of the base that were saved too; must be the base's.
  std::vector<SourceTensor> copies;
  bool weights_tied = true;  // of a tied matrix that was trained whole both uses are meant; untied models do not care
  RunText text;              // of its run; of a PEFT directory the chat template in it
  TensorReader read;

  const SourceTensor* Find(const std::string& name) const;
};

// PATH: a PEFT directory, a run_dir (its newest whole checkpoint) or a step folder.
absl::StatusOr<std::shared_ptr<const AdapterSource>> OpenAdapter(const std::string& path,
                                                                 const std::string& part = kWeightsPart);

// What the checkpoints of a run with this resolved config will bring of its adapter, `spec` having it on: the values
// are made up, another one for each tensor.
std::shared_ptr<const AdapterSource> FutureAdapter(const RunConfig& config, const DecoderSpec& spec);

// The decoder with the adapter on it. Errors (kData) when names or shapes do not fit, listing them.
absl::StatusOr<DecoderSpec> Adapted(const AdapterSource& source, DecoderSpec spec);

// Fills what the adapter brings into the buffers of a decoder built by `spec` of Adapted(), whose base is loaded. Not
// collective; Publish() must follow. Errors are kData: the adapter's copies of frozen weights are not the base's.
// alive: called now and then meanwhile, here and below; may be empty.
absl::Status LoadAdapter(const AdapterSource& source, const DecoderSpec& spec,
                         const std::vector<ParameterBuffer*>& buffers, const std::function<void()>& alive);

// `base` with the adapter's updates added to its weights, in float32: W + s B A, DoRA's m (W + s B A) / |W + s B A|.
// keep_dtype: then rounded to the dtype of the base; otherwise changed weights are float32.
absl::StatusOr<WeightSource> MergedWeights(const WeightSource& base, std::shared_ptr<const AdapterSource> adapter,
                                           const DecoderSpec& spec, bool keep_dtype,
                                           const std::function<void()>& alive);

// Into `folder`, which exists: adapter_config.json and adapter_model.safetensors as PEFT's save_pretrained() writes
// them, in the dtype they are stored in.
absl::Status WritePeftDirectory(const AdapterSource& source, const DecoderSpec& spec, const std::string& folder,
                                const std::function<void()>& alive);

// What other software would refuse of the adapter, as sentences; empty: nothing. (vLLM: vllm/lora/peft_helper.py)
std::vector<std::string> VllmRefusals(const AdapterSpec& spec);

}  // namespace trireme

#endif  // TRIREME_MODELS_WEIGHTS_ADAPTER_SOURCE_H_
