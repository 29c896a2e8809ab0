#include <google/protobuf/text_format.h>

#include "models/formats/gguf/gguf.h"
#include "models/formats/gguf/gguf_config.h"
#include "models/formats/gguf/gguf_writer.h"
#include "tests/fuzz/fuzz_files.h"
#include "tests/fuzz/fuzz_target.h"

namespace trireme {
namespace {

void ReadTensors(const GgufFile& file, uint64_t file_bytes) {
  for (const GgufTensor& tensor : file.tensors()) {
    TRIREME_CHECK(tensor.begin <= tensor.end && tensor.end <= file_bytes, tensor.name);
    const int64_t columns = std::min<int64_t>(tensor.columns(), 4096), rows = std::min<int64_t>(tensor.rows(), 16);
    std::vector<float> values(rows * columns);
    // All of the first rows and the end of the last one.
    (void)file.Read(tensor, 0, rows, 0, columns, values.data());
    (void)file.Read(tensor, tensor.rows() - 1, tensor.rows(), tensor.columns() - columns, tensor.columns(),
                    values.data());
  }
}

std::string Written(const GgufMetadata& metadata, const std::vector<GgufTensor>& tensors) {
  const ScratchFolder folder;
  auto writer = GgufWriter::Create(folder / "seed.gguf", metadata, tensors);
  TRIREME_CHECK(writer.ok(), writer.status().message());
  while (const GgufTensor* tensor = (*writer)->current()) {
    const std::vector<float> values(tensor->rows() * tensor->columns(), 0.5f);
    TRIREME_CHECK((*writer)->Append(values.data(), static_cast<int64_t>(values.size())).ok());
  }
  TRIREME_CHECK((*writer)->Close().ok());
  return Contents(folder / "seed.gguf");
}

}  // namespace

bool FuzzOne(const std::string& input) {
  static MemoryFile file;
  file.Write(input);
  const auto opened = GgufFile::Open(file.path());
  if (!opened.ok()) return false;
  for (const auto& [key, value] : (*opened)->metadata()) {
    (void)(*opened)->Integer(key);
    (void)(*opened)->Number(key);
    (void)(*opened)->String(key);
  }
  ReadTensors(**opened, input.size());
  (void)ReadGgufModel(**opened);
  return true;
}

std::vector<std::string> FuzzSeeds() {
  std::vector<std::string> seeds;
  const GgufMetadata kinds = {{"u8", uint8_t{1}},
                              {"i16", int16_t{-1}},
                              {"f32", 0.5f},
                              {"b", true},
                              {"s", std::string("text")},
                              {"i64", int64_t{-1}},
                              {"f64", 0.5},
                              {"words", GgufArray(std::vector<std::string>{"", "a", "bc"})},
                              {"flags", GgufArray(std::vector<bool>{true, false})},
                              {"bytes", GgufArray(std::vector<uint8_t>{1, 2})}};
  seeds.push_back(Written(kinds, {}));
  seeds.push_back(
      Written({}, {{"a", GgufType::kF32, {3}}, {"b", GgufType::kF16, {2, 1, 2}}, {"c", GgufType::kQ8_0, {1, 32}}}));
  for (const char* fields :
       {"family: 'llama' rope_scaling { rope_type: LLAMA3 factor: 8 original_max_position_embeddings: 4 }",
        "family: 'gemma3_text' tie_word_embeddings: true sliding_window: 4",
        "family: 'qwen3_moe' num_experts: 4 num_experts_per_tok: 2 moe_intermediate_size: 8",
        "family: 'cohere2' tie_word_embeddings: true sliding_window: 4 layer_types: 'full_attention'"}) {
    ModelConfig model;
    TRIREME_CHECK(google::protobuf::TextFormat::ParseFromString(
                      absl::StrCat("num_hidden_layers: 1 max_position_embeddings: 8 hidden_size: 8 "
                                   "intermediate_size: 8 num_attention_heads: 2 vocab_size: 2 ",
                                   fields),
                      &model),
                  fields);
    std::vector<GgufTensor> tensors = {{"token_embd.weight", GgufType::kF32, {2, 8}},
                                       {"blk.0.attn_norm.weight", GgufType::kF16, {8}}};
    if (!model.tie_word_embeddings()) tensors.push_back({"output.weight", GgufType::kF16, {2, 8}});
    for (const auto& [name, values] : GgufPositionFactors(model, 4))
      tensors.push_back({name, GgufType::kF32, {static_cast<int64_t>(values.size())}});
    const auto metadata = GgufModelMetadata(model, "m", GgufType::kF16);
    TRIREME_CHECK(metadata.ok(), metadata.status().message());
    seeds.push_back(Written(*metadata, tensors));
  }
  // One row of every type, whatever its size.
  for (uint32_t number = 2; number < 64; ++number) {
    const GgufTypeInfo* info = FindGgufType(static_cast<GgufType>(number));
    if (info == nullptr) continue;
    std::string file = "GGUF" + LittleEndian(3, 4) + LittleEndian(1, 8) + LittleEndian(0, 8) + LittleEndian(1, 8) +
                       "t" + LittleEndian(1, 4) + LittleEndian(info->block_elements, 8) + LittleEndian(number, 4) +
                       LittleEndian(0, 8);
    file.resize((file.size() + 31) / 32 * 32 + info->block_bytes, '\2');
    seeds.push_back(file);
  }
  return seeds;
}

}  // namespace trireme
