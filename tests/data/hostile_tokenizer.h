// tests/data/hostile_tokenizer.h
// A tokenizer for which some texts are too much.
#ifndef TRIREME_TESTS_DATA_HOSTILE_TOKENIZER_H_
#define TRIREME_TESTS_DATA_HOSTILE_TOKENIZER_H_

#include <absl/strings/match.h>

#include <memory>
#include <new>
#include <utility>

#include "data/tokenizer/tokenizer.h"

namespace trireme {

// Runs out of memory on a text with "EXHAUST" in it, and has an error for one with "REFUSE".
class HostileTokenizer : public Tokenizer {
 public:
  explicit HostileTokenizer(std::shared_ptr<const Tokenizer> tokenizer) : tokenizer_(std::move(tokenizer)) {}
  absl::Status Encode(absl::string_view text, std::vector<int32_t>* ids) const override {
    if (absl::StrContains(text, "EXHAUST")) throw std::bad_alloc();
    if (absl::StrContains(text, "REFUSE")) return Error(ExitCode::kData, "too hard a text");
    return tokenizer_->Encode(text, ids);
  }
  std::string Decode(const std::vector<int32_t>& ids) const override { return tokenizer_->Decode(ids); }
  absl::string_view TokenBytes(int32_t id) const override { return tokenizer_->TokenBytes(id); }
  int32_t vocab_size() const override { return tokenizer_->vocab_size(); }
  int32_t end_of_document() const override { return tokenizer_->end_of_document(); }
  int32_t TokenId(absl::string_view token) const override { return tokenizer_->TokenId(token); }
  bool IsSpecial(int32_t id) const override { return tokenizer_->IsSpecial(id); }
  const Digest& digest() const override { return tokenizer_->digest(); }

 private:
  const std::shared_ptr<const Tokenizer> tokenizer_;
};

}  // namespace trireme

#endif  // TRIREME_TESTS_DATA_HOSTILE_TOKENIZER_H_
