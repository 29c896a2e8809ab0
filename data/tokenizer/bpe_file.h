// data/tokenizer/bpe_file.h
// Reading a tokenizer.json, which may come from anyone.
#ifndef TRIREME_DATA_TOKENIZER_BPE_FILE_H_
#define TRIREME_DATA_TOKENIZER_BPE_FILE_H_

#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>
#include <absl/strings/string_view.h>

#include <memory>
#include <string>
#include <vector>

#include "data/pretokenizer/normalizer.h"
#include "data/pretokenizer/pretokenizer.h"
#include "data/tokenizer/bpe_added_tokens.h"
#include "data/tokenizer/bpe_decoder.h"
#include "data/tokenizer/bpe_model.h"

namespace trireme {

// What a tokenizer.json says, checked.
struct BpeFile {
  std::vector<AddedToken> added_tokens;
  bool added_tokens_are_normalized = false;  // their contents, where they are looked for in normalized text
  absl::flat_hash_set<int32_t> special_ids;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  BpeDecoder decoder;
  std::unique_ptr<BpeModel> model;
  absl::flat_hash_map<std::string, int32_t> id_of_token;  // by token string, added tokens too
  std::vector<std::string> bytes_of_id;  // what each id decodes to, wherever it stands; empty where no token has the id
};

// Refuses (ExitCode::kData) what is malformed and what this program would not reproduce exactly. Ignores truncation,
// padding and post_processor.
absl::StatusOr<BpeFile> ParseBpeFile(absl::string_view contents);
// Parses the same file and adds the tokens that the files beside it add.
struct TokenizerFolder;  // data/tokenizer/tokenizer_folder.h
absl::StatusOr<BpeFile> ParseBpeFile(absl::string_view contents, const TokenizerFolder& folder);

// Whether no merge joins a U+2581 to a character before it that is none.
bool MergesStayWithinWords(const std::vector<BpeModel::Merge>& merges, const BpeFile& file);

}  // namespace trireme

#endif  // TRIREME_DATA_TOKENIZER_BPE_FILE_H_
