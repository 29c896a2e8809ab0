#include "models/formats/hf/bitsandbytes.h"

#include <absl/strings/match.h>
#include <absl/strings/str_join.h>
#include <absl/strings/strip.h>

#include <algorithm>
#include <charconv>
#include <cstring>

namespace trireme {
namespace {

using Json = nlohmann::json;

constexpr char kNf4State[] = ".quant_state.bitsandbytes__nf4", kFp4State[] = ".quant_state.bitsandbytes__fp4";
constexpr char kRowScales[] = ".SCB", kWeight[] = ".weight";
constexpr uint64_t kMaxStateBytes = 1 << 16;

// Writes a number as Python's repr() does: the fewest digits that are read back as the same number.
std::string Digits(double value) {
  char text[32];
  const std::string digits(text, std::to_chars(text, text + sizeof(text), value).ptr);
  return digits.find_first_of(".e") == std::string::npos ? digits + ".0" : digits;
}

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Reader {
  const HfDirectory& directory;
  BnbTensors* tensors;

  template <typename... What>
  absl::Status Bad(const std::string& name, const What&... what) const {
    return Error(ExitCode::kData, "model ", directory.folder(), ": ", name, " ", what...);
  }

  // The bytes of a tensor that must be there, `count` elements of `dtype` ("" : any dtype, and count is of bytes).
  absl::StatusOr<const uint8_t*> Bytes(const std::string& name, const std::string& dtype, int64_t count) const {
    const auto found = directory.tensors().find(name);
    if (found == directory.tensors().end()) return Bad(name, "is missing, which a quantized matrix needs");
    const SafetensorsEntry& entry = *found->second.entry;
    const uint64_t size = dtype.empty() ? 1 : static_cast<uint64_t>(SafetensorsElementSize(dtype));
    if ((!dtype.empty() && entry.dtype != dtype) || entry.end - entry.begin != static_cast<uint64_t>(count) * size)
      return Bad(name, "is ", entry.dtype, " of ", entry.end - entry.begin, " bytes; the matrix needs ", count, " ",
                 dtype.empty() ? "bytes" : absl::StrCat("elements of ", dtype));
    tensors->parts.insert(name);
    return found->second.data();
  }
  // Floats, which may lie unaligned in the file.
  absl::Status Floats(const std::string& name, int64_t count, std::vector<float>* out) const {
    ASSIGN_OR_RETURN(const uint8_t* bytes, Bytes(name, "F32", count));
    out->resize(static_cast<size_t>(count));
    std::memcpy(out->data(), bytes, out->size() * sizeof(float));
    return absl::OkStatus();
  }

  absl::Status ReadNf4(const std::string& name) const;
  absl::Status ReadInt8(const std::string& module) const;
};

absl::Status Reader::ReadNf4(const std::string& name) const {
  const std::string state_name = name + kNf4State;
  const HfDirectory::Tensor& state = directory.tensors().at(state_name);
  const uint64_t bytes = state.entry->end - state.entry->begin;
  if (state.entry->dtype != "U8" || bytes > kMaxStateBytes) return Bad(state_name, "is no text of a few hundred bytes");
  const std::string text(reinterpret_cast<const char*>(state.data()), bytes);
  ASSIGN_OR_RETURN(const Json object,
                   ParseJsonObject(text, absl::StrCat("model ", directory.folder(), ": ", state_name)));
  std::vector<std::string> problems;
  JsonReader json(object, "", &problems);
  json.Require("quant_type", "nf4", "is not supported");
  json.Require("blocksize", kNf4Block, "is not supported");
  json.Require("nested_blocksize", kNestedBlock, "is not supported");
  json.Require("nested_dtype", "float32", "is not supported");
  QuantizedMatrix matrix;
  matrix.format.nested = json.Has("nested_offset");
  matrix.nested.offset = static_cast<float>(json.Number("nested_offset").value_or(0));
  const std::string dtype = json.Text("dtype");
  matrix.type = dtype == "bfloat16"  ? ValueType::kBfloat16
                : dtype == "float16" ? ValueType::kFloat16
                                     : ValueType::kFloat32;
  if (dtype != "bfloat16" && dtype != "float16" && dtype != "float32")
    problems.push_back(absl::StrCat("dtype: \"", dtype, "\" is not supported"));
  if (const Json* shape = json.Find("shape"); shape != nullptr && shape->is_array() && shape->size() == 2) {
    for (const Json& extent : *shape) {
      const int64_t size = JsonInteger(extent).value_or(0);
      if (size > 0 && size < int64_t{1} << 31) matrix.shape.push_back(size);
    }
  }
  if (matrix.shape.size() != 2) problems.push_back("shape: is not that of a matrix");
  if (!problems.empty()) return Bad(state_name, "cannot be followed: ", absl::StrJoin(problems, "; "));
  tensors->parts.insert(state_name);
  const int64_t numel = matrix.shape[0] * matrix.shape[1], blocks = numel / kNf4Block;
  if (numel % kNf4Block != 0) return Bad(name, "has ", numel, " elements, no whole blocks of ", kNf4Block);
  ASSIGN_OR_RETURN(matrix.codes, Bytes(name, "", numel / 2));
  std::vector<float> map;
  RETURN_IF_ERROR(Floats(name + ".quant_map", 16, &map));
  if (!std::equal(map.begin(), map.end(), kNf4Codes)) return Bad(name + ".quant_map", "is another than NF4's");
  if (!matrix.format.nested) {
    RETURN_IF_ERROR(Floats(name + ".absmax", blocks, &matrix.absmax));
  } else {
    ASSIGN_OR_RETURN(matrix.scale_codes, Bytes(name + ".absmax", "U8", blocks));
    RETURN_IF_ERROR(Floats(name + ".nested_absmax", CeilDiv(blocks, kNestedBlock), &matrix.nested.absmax));
    std::vector<float> nested_map;
    RETURN_IF_ERROR(Floats(name + ".nested_quant_map", 256, &nested_map));
    std::copy(nested_map.begin(), nested_map.end(), matrix.nested.map.begin());
  }
  tensors->matrices.emplace(name, std::move(matrix));
  return absl::OkStatus();
}

absl::Status Reader::ReadInt8(const std::string& module) const {
  const std::string name = module + kWeight;
  const auto found = directory.tensors().find(name);
  if (found == directory.tensors().end()) return Bad(name, "is missing, beside ", module, kRowScales);
  QuantizedMatrix matrix;
  matrix.format.method = QuantizationFormat::kInt8;
  matrix.shape = found->second.entry->shape;
  if (matrix.shape.size() != 2 || matrix.shape[0] < 1 || matrix.shape[1] < 1) return Bad(name, "is no matrix");
  ASSIGN_OR_RETURN(matrix.codes, Bytes(name, "I8", matrix.shape[0] * matrix.shape[1]));
  RETURN_IF_ERROR(Floats(module + kRowScales, matrix.shape[0], &matrix.absmax));
  // Rows as they are; other formats are layouts of single GPUs.
  if (const std::string format = module + ".weight_format"; directory.tensors().count(format) > 0) {
    ASSIGN_OR_RETURN(const uint8_t* value, Bytes(format, "U8", 1));
    if (*value != 0) return Bad(format, "is ", static_cast<int>(*value), "; only 0 (rows) is supported");
  }
  tensors->matrices.emplace(name, std::move(matrix));
  return absl::OkStatus();
}

}  // namespace

std::string NameOf(const QuantizationFormat& format) {
  if (format.method == QuantizationFormat::kInt8) return "INT8";
  return format.nested ? "NF4 with double quantization" : "NF4";
}

absl::StatusOr<BnbTensors> ReadBnbTensors(const HfDirectory& directory) {
  BnbTensors tensors;
  const Reader reader = {directory, &tensors};
  for (const auto& [name, tensor] : directory.tensors()) {
    if (absl::EndsWith(name, kFp4State)) return reader.Bad(name, "is FP4; NF4 is supported");
    if (absl::EndsWith(name, kNf4State))
      RETURN_IF_ERROR(reader.ReadNf4(std::string(absl::StripSuffix(name, kNf4State))));
    if (absl::EndsWith(name, kRowScales))
      RETURN_IF_ERROR(reader.ReadInt8(std::string(absl::StripSuffix(name, kRowScales))));
  }
  return tensors;
}

void ReadBnbConfig(const Json& object, QuantizationConfig* quantization, std::vector<std::string>* problems) {
  JsonReader json(object, "quantization_config.", problems);
  if (const std::string method = json.Text("quant_method"); method != "bitsandbytes") {
    problems->push_back(
        absl::StrCat("quantization_config.quant_method: \"", method,
                     "\" is not supported; \"bitsandbytes\", \"mxfp4\" and \"fp8\" are, and unquantized models"));
    return;
  }
  const bool four = json.Bool("load_in_4bit").value_or(false), eight = json.Bool("load_in_8bit").value_or(false);
  if (four == eight)
    problems->push_back("quantization_config: neither or both of load_in_4bit and load_in_8bit are set");
  quantization->set_method(eight ? QuantizationConfig::INT8 : QuantizationConfig::NF4);
  if (four) {
    if (const std::string type = json.Text("bnb_4bit_quant_type"); type != "nf4")
      problems->push_back(absl::StrCat("quantization_config.bnb_4bit_quant_type: \"", type.empty() ? "fp4" : type,
                                       "\" is not supported; \"nf4\" is"));
    quantization->set_double_quantization(json.Bool("bnb_4bit_use_double_quant").value_or(false));
  }
  const Json* skip = json.Find("llm_int8_skip_modules");
  if (skip == nullptr) return;
  if (!skip->is_array()) return json.Bad("llm_int8_skip_modules", *skip, "is no list of names");
  for (const Json& name : *skip) {
    const std::string* text = JsonText(name);
    if (text == nullptr) return json.Bad("llm_int8_skip_modules", *skip, "is no list of names");
    quantization->add_skip_modules(*text);
  }
}

Json WriteBnbConfig(const QuantizationConfig& quantization, const std::string& dtype) {
  const bool four = quantization.method() == QuantizationConfig::NF4;
  Json skip;
  if (!quantization.skip_modules().empty()) {
    // Transformers' own exception, the head, holds only where nothing is named.
    skip = {"lm_head"};
    for (const std::string& name : quantization.skip_modules()) {
      if (name != "lm_head") skip.push_back(name);
    }
  }
  return {{"_load_in_4bit", four},
          {"_load_in_8bit", !four},
          {"bnb_4bit_compute_dtype", dtype},
          {"bnb_4bit_quant_storage", "uint8"},
          {"bnb_4bit_quant_type", "nf4"},
          {"bnb_4bit_use_double_quant", four && quantization.double_quantization()},
          {"llm_int8_enable_fp32_cpu_offload", false},
          {"llm_int8_has_fp16_weight", false},
          {"llm_int8_skip_modules", skip},
          {"llm_int8_threshold", 6.0},
          {"load_in_4bit", four},
          {"load_in_8bit", !four},
          {"quant_method", "bitsandbytes"}};
}

std::string BnbQuantState(const std::vector<int64_t>& shape, const std::string& dtype, float nested_offset) {
  // The spaces are those of Python's json.dumps.
  return absl::StrCat("{\"quant_type\": \"nf4\", \"blocksize\": ", kNf4Block, ", \"dtype\": \"", dtype,
                      "\", \"shape\": [", absl::StrJoin(shape, ", "), "], \"nested_blocksize\": ", kNestedBlock,
                      ", \"nested_dtype\": \"float32\", \"nested_offset\": ", Digits(nested_offset), "}");
}

std::vector<SafetensorsEntry> BnbNf4Entries(const std::string& name, const std::vector<int64_t>& shape,
                                            const std::string& quant_state) {
  const int64_t numel = shape[0] * shape[1], blocks = numel / kNf4Block;
  const auto entry = [&](const char* suffix, const char* dtype, std::vector<int64_t> extents) {
    SafetensorsEntry made;
    made.name = name + suffix;
    made.dtype = dtype;
    made.shape = std::move(extents);
    return made;
  };
  return {entry("", "U8", {numel / 2, 1}),
          entry(".absmax", "U8", {blocks}),
          entry(".nested_absmax", "F32", {CeilDiv(blocks, kNestedBlock)}),
          entry(".nested_quant_map", "F32", {256}),
          entry(".quant_map", "F32", {16}),
          entry(kNf4State, "U8", {static_cast<int64_t>(quant_state.size())})};
}

}  // namespace trireme
