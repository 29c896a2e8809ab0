// The first byte chooses: llm.c's .bin, or Megatron's .idx beside a .bin of as many zero bytes as the second byte says.
#include "data/corpus/indexed_file.h"
#include "data/corpus/llmc_file.h"
#include "tests/fuzz/fuzz_files.h"
#include "tests/fuzz/fuzz_target.h"

namespace trireme {
namespace {

constexpr int64_t kVocabulary = 300;

struct Files {
  Files() {
    folder.Link(bin, "a.bin");
    folder.Link(idx, "a.idx");
  }
  ScratchFolder folder;
  MemoryFile bin, idx;
};

void Use(const TokenStream& stream) {
  const int64_t count = std::min<int64_t>(stream.num_tokens(), 1 << 12);
  std::vector<int64_t> tokens(count);
  std::vector<int32_t> starts;
  for (const int64_t begin : {int64_t{0}, stream.num_tokens() - count}) {
    if (!stream.Read(begin, count, tokens.data()).ok()) continue;
    for (const int64_t token : tokens) TRIREME_CHECK(token >= 0 && token < kVocabulary, "token ", token);
    if (!stream.DocumentStarts(begin, count, &starts).ok()) continue;
    for (const int32_t start : starts) TRIREME_CHECK(start >= 0 && start < count, "a document starts at ", start);
  }
}

}  // namespace

bool FuzzOne(const std::string& input) {
  static Files files;
  if (input.size() < 2) return false;
  const absl::string_view rest = absl::string_view(input).substr(2);
  if (input[0] == 'l') {
    files.bin.Write(rest);
    const auto file = LlmcFile::Open(files.folder / "a.bin", kVocabulary);
    if (!file.ok()) return false;
    Use(**file);
    (void)(*file)->Fingerprint();
    return true;
  }
  files.bin.Write(std::string(static_cast<unsigned char>(input[1]), '\0'));
  files.idx.Write(rest);
  const auto file = IndexedFile::Open(files.folder / "a", kVocabulary);
  if (!file.ok()) return false;
  Use(**file);
  (void)(*file)->Fingerprint();
  return true;
}

std::vector<std::string> FuzzSeeds() {
  std::vector<std::string> seeds;
  for (const int64_t vocab_size : {kVocabulary, int64_t{70000}}) {
    const ScratchFolder folder;
    const auto writer = IndexedFileWriter::Create(folder / "a", vocab_size);
    TRIREME_CHECK(writer.ok());
    const int32_t ids[] = {1, 2, 3, 4};
    for (const int count : {3, 1, 4}) TRIREME_CHECK((*writer)->AddDocument(ids, count).ok());
    TRIREME_CHECK((*writer)->Finish().ok());
    seeds.push_back(std::string("i") + static_cast<char>((*writer)->bin_bytes()) + Contents(folder / "a.idx"));
  }
  for (const auto& [magic, version, bytes] : {std::array{20240520, 1, 2}, std::array{20240801, 7, 4}}) {
    std::string file = LittleEndian(magic, 4) + LittleEndian(version, 4) + LittleEndian(3, 4);
    file.resize(1024);
    for (const int token : {5, 6, 5}) file += LittleEndian(token, bytes);
    seeds.push_back("l " + file);
  }
  return seeds;
}

}  // namespace trireme
