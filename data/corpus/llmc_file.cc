#include "data/corpus/llmc_file.h"

#include <array>
#include <fstream>

namespace trireme {
namespace {

struct Variant {
  int32_t magic;
  int32_t version;
  TokenType type;
  int64_t first_of_document;
};

constexpr int64_t kLlmcHeaderBytes = 256 * sizeof(int32_t);
constexpr Variant kVariants[] = {
    {20240520, 1, TokenType::kUint16, 50256},   // GPT-2's <|endoftext|>
    {20240801, 7, TokenType::kUint32, 128000},  // Llama 3's <|begin_of_text|>
};

}  // namespace

absl::StatusOr<std::shared_ptr<const LlmcFile>> LlmcFile::Open(const std::string& path, int64_t vocab_size) {
  std::array<int32_t, 3> header = {};
  std::ifstream in(path, std::ios::binary);
  if (!in) return SystemError("open", path, /*writing=*/false);
  in.read(reinterpret_cast<char*>(header.data()), sizeof(header));
  const bool whole = in.gcount() == sizeof(header);
  in.close();
  for (const Variant& variant : kVariants) {
    if (!whole || header[0] != variant.magic || header[1] != variant.version) continue;
    ASSIGN_OR_RETURN(std::unique_ptr<TokenFile> tokens,
                     TokenFile::Open(path, variant.type, kLlmcHeaderBytes, vocab_size));
    if (tokens->num_tokens() != header[2]) {
      return Error(ExitCode::kData, "open ", path, ": its header says ", header[2], " tokens but its size is that of ",
                   tokens->num_tokens(), "; the file is truncated or damaged");
    }
    return std::shared_ptr<const LlmcFile>(new LlmcFile(std::move(tokens), variant.first_of_document));
  }
  return Error(ExitCode::kData, "open ", path, ": neither an llm.c token file (magic ", kVariants[0].magic, " version ",
               kVariants[0].version, ", or ", kVariants[1].magic, " version ", kVariants[1].version,
               ") nor the .bin of a Megatron corpus (there is no .idx beside it)");
}

absl::Status LlmcFile::DocumentStarts(int64_t begin, int64_t count, std::vector<int32_t>* out) const {
  std::vector<int64_t> tokens(count);
  return ReadWithStarts(begin, count, tokens.data(), out);
}

absl::Status LlmcFile::ReadWithStarts(int64_t begin, int64_t count, int64_t* out, std::vector<int32_t>* starts) const {
  starts->clear();
  RETURN_IF_ERROR(Read(begin, count, out));
  for (int64_t i = 1; i < count; ++i) {
    if (out[i] == first_of_document_) starts->push_back(static_cast<int32_t>(i));
  }
  return absl::OkStatus();
}

}  // namespace trireme
