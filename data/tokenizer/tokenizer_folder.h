// data/tokenizer/tokenizer_folder.h
// What the files beside a tokenizer say about it, as Transformers reads them.
#ifndef TRIREME_DATA_TOKENIZER_TOKENIZER_FOLDER_H_
#define TRIREME_DATA_TOKENIZER_TOKENIZER_FOLDER_H_

#include <set>
#include <string>
#include <vector>

#include "data/tokenizer/bpe_file.h"

namespace trireme {

// What tokenizer_config.json says and, where that lists no tokens, added_tokens.json.
struct TokenizerFolder {
  std::string path;               // for messages
  bool exists = false;            // one of the files is there
  std::vector<AddedToken> added;  // those listed, ids ascending; the tokenizer's own file may have them too
  std::set<std::string> special;  // the tokens with a role (bos_token, ...)
  std::string eos;                // the one that ends a text; "": none is named
  // These three are for a SentencePiece model.
  bool add_prefix_space = true, legacy = false;
  std::string tokenizer_class;  // "": not said
};

// Nothing where neither file is there. Errors (kData): a file that is no such object, or a token that is no token.
absl::StatusOr<TokenizerFolder> ReadTokenizerFolder(const std::string& folder);

// Adds to `file` the tokens that it lacks, each with the next free id, and looks for all listed ones in the text.
// Errors (kData): the folder gives one another id than Transformers would, or a way of matching that is not supported.
absl::Status AddTokensOfFolder(const TokenizerFolder& folder, BpeFile* file);

// Copies those files where the tokenizer would be another one without them; what stands in `to` is replaced.
// `contents`: of the tokenizer's own file.
absl::Status CopyTokenizerFolder(const std::string& from, const std::string& to, const std::string& contents);

}  // namespace trireme

#endif  // TRIREME_DATA_TOKENIZER_TOKENIZER_FOLDER_H_
