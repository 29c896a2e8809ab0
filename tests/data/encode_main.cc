// Runs the tokenizer for tests/oracle/tokenizer_oracle.py.
//   encode_main TOKENIZER.json < texts > ids      texts: uint32 length and bytes, each; ids: uint32 count and int32
//   ids, each encode_main TOKENIZER.json --decode < texts   texts after encoding and decoding: uint32 length and bytes,
//   each encode_main TOKENIZER.json --speed FILE...    seconds to encode every file once, whole, on one thread
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "data/tokenizer/tokenizer.h"
#include "launch/base/log.h"

namespace {

bool ReadExactly(void* data, size_t size) { return std::fread(data, 1, size, stdin) == size; }

int Speed(const trireme::Tokenizer& tokenizer, int argc, char** argv) {
  std::vector<std::string> texts;
  for (int i = 3; i < argc; ++i) {
    auto text = trireme::ReadFile(argv[i]);
    if (!text.ok()) return std::fprintf(stderr, "%s\n", text.status().ToString().c_str()), 1;
    texts.push_back(*std::move(text));
  }
  double best = 1e30;
  size_t bytes = 0, num_ids = 0;
  for (int pass = 0; pass < 3; ++pass) {
    bytes = num_ids = 0;
    const double start = trireme::MonotonicSeconds();
    for (const std::string& text : texts) {
      std::vector<int32_t> ids;
      if (!tokenizer.Encode(text, &ids).ok()) return 1;
      bytes += text.size();
      num_ids += ids.size();
    }
    best = std::min(best, trireme::MonotonicSeconds() - start);
  }
  std::printf("%zu bytes %zu ids %.4f s\n", bytes, num_ids, best);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  auto tokenizer = trireme::Tokenizer::Load(argv[1]);
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n", tokenizer.status().ToString().c_str());
    return static_cast<int>(trireme::ExitCodeOf(tokenizer.status()));
  }
  const bool decode = argc > 2 && std::strcmp(argv[2], "--decode") == 0;
  if (argc > 2 && std::strcmp(argv[2], "--speed") == 0) return Speed(**tokenizer, argc, argv);
  uint32_t length;
  while (ReadExactly(&length, sizeof(length))) {
    std::string text(length, '\0');
    if (!ReadExactly(text.data(), length)) return 1;
    std::vector<int32_t> ids;
    if (const absl::Status status = (*tokenizer)->Encode(text, &ids); !status.ok()) {
      std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
      return static_cast<int>(trireme::ExitCodeOf(status));
    }
    if (decode) {
      const std::string decoded = (*tokenizer)->Decode(ids);
      const auto size = static_cast<uint32_t>(decoded.size());
      std::fwrite(&size, sizeof(size), 1, stdout);
      std::fwrite(decoded.data(), 1, size, stdout);
    } else {
      const auto count = static_cast<uint32_t>(ids.size());
      std::fwrite(&count, sizeof(count), 1, stdout);
      if (count > 0) std::fwrite(ids.data(), sizeof(int32_t), count, stdout);
    }
  }
  return 0;
}
