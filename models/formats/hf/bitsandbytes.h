// models/formats/hf/bitsandbytes.h
// Quantized matrices as bitsandbytes stores them in safetensors. NF4: X.weight, the codes as bytes, with
// X.weight.absmax, X.weight.quant_map, X.weight.quant_state.bitsandbytes__nf4 (JSON as bytes) and, where scales are
// quantized too, X.weight.nested_absmax and X.weight.nested_quant_map. INT8: X.weight with X.SCB and X.weight_format.
#ifndef TRIREME_MODELS_FORMATS_HF_BITSANDBYTES_H_
#define TRIREME_MODELS_FORMATS_HF_BITSANDBYTES_H_

#include <map>
#include <set>
#include <string>
#include <vector>

#include "configs/run_config.pb.h"
#include "kernels/matrix/quantized_matrix.h"
#include "models/formats/base/json_file.h"
#include "models/formats/hf/hf_directory.h"

namespace trireme {

std::string NameOf(const QuantizationFormat& format);  // "NF4 with double quantization"

struct BnbTensors {
  std::map<std::string, QuantizedMatrix> matrices;  // by "X.weight"; they point into the directory's files
  std::set<std::string> parts;                      // every tensor that belongs to one
};

// All quantized matrices of a directory; none is fine. Errors are kData: what is missing, of another size, or in a
// variant that is not supported (FP4, other block sizes).
absl::StatusOr<BnbTensors> ReadBnbTensors(const HfDirectory& directory);

// config.json's quantization_config. What cannot be followed is added to `problems`.
void ReadBnbConfig(const nlohmann::json& object, QuantizationConfig* quantization, std::vector<std::string>* problems);
nlohmann::json WriteBnbConfig(const QuantizationConfig& quantization, const std::string& dtype);

// The tensors of one NF4 matrix with nested scales, in their order in a file, and its quant_state. dtype as
// Transformers names it: what values are rounded to.
std::string BnbQuantState(const std::vector<int64_t>& shape, const std::string& dtype, float nested_offset);
std::vector<SafetensorsEntry> BnbNf4Entries(const std::string& name, const std::vector<int64_t>& shape,
                                            const std::string& quant_state);

}  // namespace trireme

#endif  // TRIREME_MODELS_FORMATS_HF_BITSANDBYTES_H_
