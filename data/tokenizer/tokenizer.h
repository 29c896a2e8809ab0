// data/tokenizer/tokenizer.h
// Text to ids and back: BPE from Hugging Face's tokenizer.json or SentencePiece's tokenizer.model.
#ifndef TRIREME_DATA_TOKENIZER_TOKENIZER_H_
#define TRIREME_DATA_TOKENIZER_TOKENIZER_H_

#include <absl/strings/string_view.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "launch/base/file.h"
#include "launch/base/status.h"

namespace trireme {

// Thread-safe after loading.
class Tokenizer {
 public:
  // `path`: a tokenizer.json, a SentencePiece model (recognized by its contents), or a folder with tokenizer.json or
  // else tokenizer.model. Tokens that the files beside it add (data/tokenizer/tokenizer_folder.h) belong to it, as in
  // Transformers. Refuses (ExitCode::kData), naming the construct, what it cannot reproduce exactly; the reference is
  // the package `tokenizers` or `sentencepiece`.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path);
  // From what such a file holds, without any beside it; `name` is for errors.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Parse(const std::string& contents, const std::string& name);
  virtual ~Tokenizer() = default;

  // Appends the ids of `text`. Special tokens written out in the text are recognized as the file says. Nothing is added
  // before or after the text, nothing is cut: the file's post_processor, truncation and padding are not applied.
  // Invalid UTF-8 is read as Python's bytes.decode(errors="replace") reads it: U+FFFD for every maximal invalid part.
  // Errors are kData: the file's own pattern takes too long on this text; `ids` then holds a part.
  virtual absl::Status Encode(absl::string_view text, std::vector<int32_t>* ids) const = 0;
  // The bytes of all tokens, special ones included. Not valid UTF-8 when the ids begin or end within a character.
  // Unknown ids give nothing.
  virtual std::string Decode(const std::vector<int32_t>& ids) const = 0;
  // The bytes of one token wherever it stands, for streaming: Decode() is these joined, less the space that tokenizers
  // in SentencePiece's manner put before the text. Valid while the tokenizer lives; empty for unknown ids.
  virtual absl::string_view TokenBytes(int32_t id) const = 0;
  virtual int32_t vocab_size() const = 0;  // largest id + 1
  // Id of <|endoftext|> or the family's equivalent, else of what the files beside it call eos_token; -1: none of them.
  virtual int32_t end_of_document() const = 0;
  virtual int32_t TokenId(absl::string_view token) const = 0;  // by the file's spelling, added tokens too; -1: unknown
  virtual bool IsSpecial(int32_t id) const = 0;                // no text of the user's: marks of begin, end, turns
  virtual const Digest& digest() const = 0;                    // of the file
};

// The tokenizer of a folder: its tokenizer.json, else its tokenizer.model; "" when it has neither.
std::string FindTokenizer(const std::string& folder);
// Which of the two names a file with such contents has.
const char* TokenizerName(absl::string_view contents);

}  // namespace trireme

#endif  // TRIREME_DATA_TOKENIZER_TOKENIZER_H_
