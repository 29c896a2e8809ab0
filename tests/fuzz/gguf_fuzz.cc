#include "models/formats/gguf/gguf.h"
#include "models/formats/gguf/gguf_model.h"
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
  const auto facts = ReadGgufFacts(**opened);
  if (!facts.ok()) return true;
  for (const GgufTensor& tensor : (*opened)->tensors()) {
    const auto name = ToCanonicalName(*facts->architecture, tensor.name);
    if (!name.has_value()) continue;
    const int64_t columns = std::min<int64_t>(tensor.columns(), 4096);
    std::vector<float> values(columns);
    (void)ReadGgufRows(**opened, *facts, *name, tensor.rows() - 1, tensor.rows(), 0, columns, values.data());
  }
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
  GgufModelFacts facts;
  facts.name = "m";
  facts.block_count = 1;
  facts.context_length = 8;
  facts.embedding_length = facts.feed_forward_length = 8;
  facts.head_count = facts.head_count_kv = 2;
  facts.head_dim = 4;
  facts.vocab_size = 2;
  facts.layer_norm_rms_epsilon = 1e-5;
  facts.rope_scaling = GgufRopeScaling{8, 1, 4, 4};
  for (const GgufType type : {GgufType::kF32, GgufType::kF16}) {
    const auto tensors = GgufModelTensors(facts, type);
    TRIREME_CHECK(tensors.ok(), tensors.status().message());
    seeds.push_back(Written(GgufModelMetadata(facts, type), *tensors));
    facts.rope_scaling.reset();
    facts.tied_embeddings = true;
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
