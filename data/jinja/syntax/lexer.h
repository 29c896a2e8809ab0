// data/jinja/syntax/lexer.h
// A template's text as tokens, as Jinja's lexer cuts it with trim_blocks and lstrip_blocks.
#ifndef TRIREME_DATA_JINJA_SYNTAX_LEXER_H_
#define TRIREME_DATA_JINJA_SYNTAX_LEXER_H_

#include <absl/strings/string_view.h>

#include <string>
#include <vector>

#include "launch/base/status.h"

namespace trireme::jinja {

enum class TokenKind {
  kData,  // text between tags, white space control applied
  kBlockBegin,
  kBlockEnd,
  kVariableBegin,
  kVariableEnd,
  kName,
  kString,  // `text` is what it means
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind;
  int line;
  std::string text;
};

// All tokens of `source`, which must be UTF-8, and kEnd. Errors (kData) name NAME:line.
absl::StatusOr<std::vector<Token>> Tokenize(absl::string_view source, const std::string& name);

}  // namespace trireme::jinja

#endif  // TRIREME_DATA_JINJA_SYNTAX_LEXER_H_
