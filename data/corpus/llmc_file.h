// data/corpus/llmc_file.h
// llm.c's .bin: 256 int32 of header {magic, version, number of tokens}, then tokens. Version 1 holds GPT-2's in u16,
// version 7 Llama 3's in u32. Every document begins with its end-of-text token; there is no index. Format:
// dev/data/data_common.py of llm.c.
#ifndef TRIREME_DATA_CORPUS_LLMC_FILE_H_
#define TRIREME_DATA_CORPUS_LLMC_FILE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/corpus/corpus.h"
#include "data/corpus/token_file.h"

namespace trireme {

class LlmcFile : public TokenStream {
 public:
  static absl::StatusOr<std::shared_ptr<const LlmcFile>> Open(const std::string& path, int64_t vocab_size);

  int64_t num_tokens() const override { return tokens_->num_tokens(); }
  int64_t num_documents() const override { return 0; }  // Not recorded.
  absl::Status Read(int64_t begin, int64_t count, int64_t* out) const override {
    return tokens_->Read(begin, count, out);
  }
  // Reads the tokens.
  absl::Status DocumentStarts(int64_t begin, int64_t count, std::vector<int32_t>* out) const override;
  absl::Status ReadWithStarts(int64_t begin, int64_t count, int64_t* out, std::vector<int32_t>* starts) const override;
  std::string description() const override { return tokens_->path(); }

  absl::StatusOr<Digest> Fingerprint() const { return tokens_->Fingerprint(); }

 private:
  LlmcFile(std::unique_ptr<TokenFile> tokens, int64_t first_of_document)
      : tokens_(std::move(tokens)), first_of_document_(first_of_document) {}

  std::unique_ptr<TokenFile> tokens_;
  int64_t first_of_document_;  // The token every document begins with.
};

}  // namespace trireme

#endif  // TRIREME_DATA_CORPUS_LLMC_FILE_H_
