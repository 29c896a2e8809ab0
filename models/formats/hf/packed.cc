#include "models/formats/hf/packed.h"

#include <absl/strings/match.h>
#include <absl/strings/str_join.h>
#include <absl/strings/strip.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/base/nf4_math.h"

namespace trireme {
namespace {

using Json = nlohmann::json;

constexpr char kBlocks[] = "_blocks", kScales[] = "_scales", kScaleInv[] = "_scale_inv";
constexpr int64_t kMaxBlock = 1 << 20;

float OfE4m3(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                              : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  if (exponent == 15 && mantissa == 7) value = std::numeric_limits<float>::quiet_NaN();
  return code >> 7 != 0 ? -value : value;
}

const std::array<float, 256>& E4m3Values() {
  static const std::array<float, 256> values = [] {
    std::array<float, 256> made;
    for (size_t code = 0; code < made.size(); ++code) made[code] = OfE4m3(static_cast<uint8_t>(code));
    return made;
  }();
  return values;
}

float FloatAt(const uint8_t* numbers, int64_t index, bool wide) {
  uint32_t bits = 0;
  if (wide) {
    std::memcpy(&bits, numbers + index * 4, 4);
  } else {
    uint16_t half = 0;
    std::memcpy(&half, numbers + index * 2, 2);
    bits = uint32_t{half} << 16;
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

int64_t Blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

class PackedReader {
 public:
  PackedReader(const HfDirectory& directory, PackedTensors* tensors) : directory_(directory), tensors_(tensors) {}

  absl::Status Mxfp4(const std::string& name, const HfDirectory::Tensor& codes) const {
    const SafetensorsEntry& entry = *codes.entry;
    if (entry.dtype != "U8" || entry.shape.size() < 3 || entry.shape.back() != kMxfp4Block / 2)
      return Bad(name, "is ", entry.dtype, " [", absl::StrJoin(entry.shape, ", "), "], not U8 [..., ", kMxfp4Block / 2,
                 "]");
    PackedMatrix matrix;
    std::vector<int64_t> blocks(entry.shape.begin(), entry.shape.end() - 1);
    const std::string scales = absl::StrCat(absl::StripSuffix(name, kBlocks), kScales);
    ASSIGN_OR_RETURN(const HfDirectory::Tensor* found, Scales(scales, name));
    if (found->entry->dtype != "U8" || found->entry->shape != blocks)
      return Bad(scales, "is ", found->entry->dtype, " [", absl::StrJoin(found->entry->shape, ", "), "]; ", name,
                 " needs U8 [", absl::StrJoin(blocks, ", "), "]");
    blocks.back() *= kMxfp4Block;
    matrix.shape = std::move(blocks);
    matrix.block_columns = kMxfp4Block;
    Keep(name, scales, codes, *found, std::move(matrix));
    return absl::OkStatus();
  }

  absl::Status Fp8(const std::string& scales_name, const HfDirectory::Tensor& scales) {
    const std::string name(absl::StripSuffix(scales_name, kScaleInv));
    const auto codes = directory_.tensors().find(name);
    if (codes == directory_.tensors().end()) return Bad(name, "is missing, though ", scales_name, " is there");
    const SafetensorsEntry &entry = *codes->second.entry, &scale = *scales.entry;
    if (entry.dtype != "F8_E4M3" || entry.shape.size() != 2)
      return Bad(name, "is ", entry.dtype, " [", absl::StrJoin(entry.shape, ", "), "], not an F8_E4M3 matrix");
    RETURN_IF_ERROR(FindBlockSize());
    const std::vector<int64_t> expected = {Blocks(entry.shape[0], block_rows_), Blocks(entry.shape[1], block_columns_)};
    if ((scale.dtype != "F32" && scale.dtype != "BF16") || scale.shape != expected)
      return Bad(scales_name, "is ", scale.dtype, " [", absl::StrJoin(scale.shape, ", "), "]; blocks of ", block_rows_,
                 " x ", block_columns_, " need F32 or BF16 [", absl::StrJoin(expected, ", "), "]");
    PackedMatrix matrix;
    matrix.kind = PackedMatrix::kFp8;
    matrix.shape = entry.shape;
    matrix.block_rows = block_rows_;
    matrix.block_columns = block_columns_;
    matrix.wide_scales = scale.dtype == "F32";
    Keep(name, scales_name, codes->second, scales, std::move(matrix));
    return absl::OkStatus();
  }

 private:
  template <typename... What>
  absl::Status Bad(const std::string& name, const What&... what) const {
    return Error(ExitCode::kData, "model ", directory_.folder(), ": ", name, " ", what...);
  }

  absl::StatusOr<const HfDirectory::Tensor*> Scales(const std::string& name, const std::string& of) const {
    const auto found = directory_.tensors().find(name);
    if (found == directory_.tensors().end()) return Bad(name, "is missing, which ", of, " needs");
    return &found->second;
  }

  void Keep(const std::string& name, const std::string& scales_name, const HfDirectory::Tensor& codes,
            const HfDirectory::Tensor& scales, PackedMatrix matrix) const {
    matrix.codes = codes.data();
    matrix.scales = scales.data();
    tensors_->matrices.emplace(name, std::move(matrix));
    tensors_->parts.insert({name, scales_name});
  }

  // From config.json, once.
  absl::Status FindBlockSize() {
    if (block_rows_ > 0) return absl::OkStatus();
    ASSIGN_OR_RETURN(const Json config, ReadJsonObject(absl::StrCat(directory_.folder(), "/", kHfConfigName)));
    const Json& size = JsonMember(JsonMember(config, "quantization_config"), "weight_block_size");
    const std::optional<int64_t> rows = size.is_array() && size.size() == 2 ? JsonInteger(size[0]) : std::nullopt,
                                 columns = rows.has_value() ? JsonInteger(size[1]) : std::nullopt;
    const auto fits = [](const std::optional<int64_t>& n) { return n.has_value() && *n >= 1 && *n <= kMaxBlock; };
    if (!fits(rows) || !fits(columns))
      return Bad("quantization_config.weight_block_size", "is no pair of numbers from 1 to ", kMaxBlock,
                 " in config.json, which F8_E4M3 matrices need");
    block_rows_ = *rows;
    block_columns_ = *columns;
    return absl::OkStatus();
  }

  const HfDirectory& directory_;
  PackedTensors* tensors_;
  int64_t block_rows_ = 0, block_columns_ = 0;
};

}  // namespace

absl::StatusOr<PackedTensors> ReadPackedTensors(const HfDirectory& directory) {
  PackedTensors tensors;
  PackedReader reader(directory, &tensors);
  for (const auto& [name, tensor] : directory.tensors()) {
    if (absl::EndsWith(name, kBlocks)) RETURN_IF_ERROR(reader.Mxfp4(name, tensor));
    if (absl::EndsWith(name, kScaleInv)) RETURN_IF_ERROR(reader.Fp8(name, tensor));
  }
  return tensors;
}

void Unpack(const PackedMatrix& m, int64_t row, int64_t rows, int64_t column, int64_t columns, float* out) {
  const int64_t width = m.columns(), blocks = Blocks(width, m.block_columns);
  for (int64_t r = row; r < row + rows; ++r) {
    const int64_t first_scale = r / m.block_rows * blocks;
    for (int64_t c = column; c < column + columns;) {
      const int64_t block = c / m.block_columns, end = std::min(column + columns, (block + 1) * m.block_columns);
      if (m.kind == PackedMatrix::kMxfp4) {
        const int exponent = int{m.scales[first_scale + block]} - 127;
        for (; c < end; ++c) {
          const uint8_t pair = m.codes[(r * width + c) / 2];
          *out++ = std::ldexp(kMxfp4Codes[c % 2 == 0 ? pair & 15 : pair >> 4], exponent);
        }
      } else {
        const float scale = FloatAt(m.scales, first_scale + block, m.wide_scales);
        for (; c < end; ++c) *out++ = E4m3Values()[m.codes[r * width + c]] * scale;
      }
    }
  }
}

bool IsPackedConfig(const Json& object, std::vector<std::string>* problems) {
  JsonReader json(object, "quantization_config.", problems);
  const std::string method = json.Text("quant_method");
  if (method != "mxfp4" && method != "fp8") return false;
  if (method == "fp8") {
    json.Require("fmt", "e4m3", "is not supported; \"e4m3\" is");
    json.Require("expert_dtype", "fp8", "is not supported; \"fp8\" is");
    json.Require("scale_fmt", "float", "is not supported; scales are numbers");
  }
  return true;
}

}  // namespace trireme
