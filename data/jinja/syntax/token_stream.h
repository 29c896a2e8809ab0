// data/jinja/syntax/token_stream.h
// The tokens before a parser, and how deep it may go.
#ifndef TRIREME_DATA_JINJA_SYNTAX_TOKEN_STREAM_H_
#define TRIREME_DATA_JINJA_SYNTAX_TOKEN_STREAM_H_

#include <string>
#include <utility>
#include <vector>

#include "data/jinja/syntax/ast.h"
#include "data/jinja/syntax/lexer.h"

namespace trireme::jinja {

class TokenStream {
 public:
  TokenStream(std::vector<Token> tokens, std::string name, int max_depth)
      : tokens_(std::move(tokens)), name_(std::move(name)), depth_left_(max_depth) {}

  const Token& current() const { return tokens_[at_]; }
  const Token& next() const { return tokens_[at_ + 1 < tokens_.size() ? at_ + 1 : at_]; }
  int line() const { return current().line; }
  Token Take() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }

  bool Is(TokenKind kind) const { return current().kind == kind; }
  bool IsOperator(absl::string_view text) const { return Is(TokenKind::kOperator) && current().text == text; }
  bool IsName(absl::string_view text) const { return Is(TokenKind::kName) && current().text == text; }
  bool SkipOperator(absl::string_view text) { return IsOperator(text) && (Take(), true); }
  bool SkipName(absl::string_view text) { return IsName(text) && (Take(), true); }
  absl::Status ExpectOperator(absl::string_view text) {
    return SkipOperator(text) ? absl::OkStatus() : Unexpected(absl::StrCat("'", text, "'"));
  }
  absl::Status ExpectName(absl::string_view text) {
    return SkipName(text) ? absl::OkStatus() : Unexpected(absl::StrCat("'", text, "'"));
  }
  absl::Status Expect(TokenKind kind, absl::string_view what) {
    return Is(kind) ? (Take(), absl::OkStatus()) : Unexpected(what);
  }
  absl::StatusOr<std::string> ExpectAnyName() {
    if (!Is(TokenKind::kName)) return Unexpected("a name");
    return Take().text;
  }

  template <typename... Args>
  absl::Status Fail(int line, const Args&... args) const {
    return Error(ExitCode::kData, name_, ":", line, ": ", args...);
  }
  absl::Status Unexpected(absl::string_view expected) const;

  // Counts how deep expressions and statements are nested.
  class Level {
   public:
    explicit Level(TokenStream* stream) : stream_(stream) { --stream_->depth_left_; }
    ~Level() { ++stream_->depth_left_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;
    absl::Status Check() const {
      return stream_->depth_left_ >= 0 ? absl::OkStatus() : stream_->Fail(stream_->line(), "nested too deep");
    }

   private:
    TokenStream* stream_;
  };

 private:
  std::vector<Token> tokens_;
  std::string name_;
  size_t at_ = 0;
  int depth_left_;
};

// parser_expressions.cc. `conditional`: whether "a if b else c" may stand here without parentheses.
absl::StatusOr<ExpressionPtr> ParseExpression(TokenStream* stream, bool conditional = true);
// One expression, or several joined by commas; `end_name`: a name that may follow a last comma.
absl::StatusOr<ExpressionPtr> ParseTuple(TokenStream* stream, bool conditional = true, absl::string_view end_name = "");
// What a statement assigns to.
absl::StatusOr<ExpressionPtr> ParseTarget(TokenStream* stream, bool with_namespace, absl::string_view end_name = "");
// Filters after `input`, at least one if `inline_start`, which stands without its "|".
absl::StatusOr<ExpressionPtr> ParseFilters(TokenStream* stream, ExpressionPtr input, bool inline_start);

}  // namespace trireme::jinja

#endif  // TRIREME_DATA_JINJA_SYNTAX_TOKEN_STREAM_H_
