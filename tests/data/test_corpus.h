// tests/data/test_corpus.h
// Small corpora for the tests of data/.
#ifndef TRIREME_TESTS_DATA_TEST_CORPUS_H_
#define TRIREME_TESTS_DATA_TEST_CORPUS_H_

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/corpus/corpus.h"
#include "data/corpus/indexed_file.h"
#include "launch/base/file.h"

namespace trireme {

// A folder that goes away with the object.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "trireme-test-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

inline void WriteText(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary).write(text.data(), static_cast<std::streamsize>(text.size()));
}

inline std::string ReadText(const std::string& path) { return ReadFile(path).value(); }

// Contents of all files of a folder by name.
inline std::map<std::string, std::string> ReadFolder(const std::string& path) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    files[entry.path().filename().string()] = ReadText(entry.path().string());
  }
  return files;
}

inline constexpr int kEndOfDocument = 256;
inline constexpr int kTestVocabSize = 257;

// A tokenizer.json with a token for each byte, no merges, and <|endoftext|>. Bytes are named as GPT-2 names them.
inline void WriteByteTokenizer(const std::string& path) {
  nlohmann::json vocab;
  int next_unprintable = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    const int code_point = printable ? byte : next_unprintable++;
    std::string name;
    if (code_point < 0x80) {
      name += static_cast<char>(code_point);
    } else {
      name += static_cast<char>(0xc0 | code_point >> 6);
      name += static_cast<char>(0x80 | (code_point & 0x3f));
    }
    vocab[name] = byte;
  }
  vocab["<|endoftext|>"] = kEndOfDocument;
  const nlohmann::json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  const nlohmann::json tokenizer = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens",
       {{{"id", kEndOfDocument},
         {"content", "<|endoftext|>"},
         {"single_word", false},
         {"lstrip", false},
         {"rstrip", false},
         {"normalized", false},
         {"special", true}}}},
      {"normalizer", nullptr},
      {"pre_tokenizer", byte_level},
      {"post_processor", nullptr},
      {"decoder", byte_level},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"vocab", vocab},
        {"merges", nlohmann::json::array()}}},
  };
  WriteText(path, tokenizer.dump());
}

using Documents = std::vector<std::vector<int32_t>>;

inline void WriteIndexed(const std::string& prefix, const Documents& documents, int64_t vocab_size = 1000) {
  auto writer = IndexedFileWriter::Create(prefix, vocab_size);
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (const auto& document : documents) {
    ASSERT_TRUE((*writer)->AddDocument(document.data(), static_cast<int64_t>(document.size())).ok());
  }
  ASSERT_TRUE((*writer)->Finish().ok());
}

inline std::vector<int64_t> ReadAll(const TokenStream& stream) {
  std::vector<int64_t> tokens(stream.num_tokens());
  const absl::Status status = stream.Read(0, stream.num_tokens(), tokens.data());
  EXPECT_TRUE(status.ok()) << status;
  return tokens;
}

// Tokens 0, 1, 2, ... of which every `document_length`-th starts a document. Fails to read token `broken_at`.
class CountingStream : public TokenStream {
 public:
  CountingStream(int64_t num_tokens, int64_t document_length, int64_t broken_at = -1)
      : num_tokens_(num_tokens), document_length_(document_length), broken_at_(broken_at) {}
  int64_t num_tokens() const override { return num_tokens_; }
  int64_t num_documents() const override { return (num_tokens_ + document_length_ - 1) / document_length_; }
  absl::Status Read(int64_t begin, int64_t count, int64_t* out) const override {
    if (begin <= broken_at_ && broken_at_ < begin + count) return Error(ExitCode::kData, "broken at ", broken_at_);
    for (int64_t i = 0; i < count; ++i) out[i] = begin + i;
    return absl::OkStatus();
  }
  absl::Status DocumentStarts(int64_t begin, int64_t count, std::vector<int32_t>* out) const override {
    out->clear();
    for (int64_t i = 1; i < count; ++i) {
      if ((begin + i) % document_length_ == 0) out->push_back(static_cast<int32_t>(i));
    }
    return absl::OkStatus();
  }
  std::string description() const override { return "counting stream"; }

 private:
  int64_t num_tokens_;
  int64_t document_length_;
  int64_t broken_at_;
};

}  // namespace trireme

// `status` is an error of this exit code whose message contains `part`.
#define EXPECT_ERROR(status, code, part)                                                              \
  do {                                                                                                \
    const absl::Status checked_status = (status);                                                     \
    EXPECT_EQ(ExitCodeOf(checked_status), code) << checked_status;                                    \
    EXPECT_NE(std::string(checked_status.message()).find(part), std::string::npos) << checked_status; \
  } while (false)

#endif  // TRIREME_TESTS_DATA_TEST_CORPUS_H_
