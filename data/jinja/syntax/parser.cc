#include "data/jinja/syntax/parser.h"

#include <algorithm>

#include "data/jinja/syntax/token_stream.h"

namespace trireme::jinja {
namespace {

class StatementParser {
 public:
  explicit StatementParser(TokenStream stream) : stream_(std::move(stream)) {}

  // Statements up to a tag that is one of `ends`, whose name is the current token then; or to the template's end if
  // there are none.
  absl::StatusOr<Body> Statements(std::initializer_list<absl::string_view> ends) {
    const TokenStream::Level level(&stream_);
    RETURN_IF_ERROR(level.Check());
    Body body;
    while (true) {
      const int line = stream_.line();
      if (stream_.Is(TokenKind::kEnd)) {
        if (ends.size() == 0) return body;
        return stream_.Fail(line, "Unexpected end of template: ", *ends.begin(), " is missing");
      }
      if (stream_.Is(TokenKind::kData)) {
        Add(StatementKind::kText, line, &body)->text = stream_.Take().text;
        continue;
      }
      const bool is_output = stream_.Is(TokenKind::kVariableBegin);
      stream_.Take();
      if (is_output) {
        ASSIGN_OR_RETURN(ExpressionPtr value, ParseTuple(&stream_));
        Add(StatementKind::kOutput, line, &body)->expressions.push_back(std::move(value));
        RETURN_IF_ERROR(stream_.Expect(TokenKind::kVariableEnd, "'}}'"));
        continue;
      }
      if (stream_.Is(TokenKind::kName) && std::find(ends.begin(), ends.end(), stream_.current().text) != ends.end())
        return body;
      RETURN_IF_ERROR(ParseStatement(&body));
      RETURN_IF_ERROR(stream_.Expect(TokenKind::kBlockEnd, "'%}'"));
    }
  }

  bool has_generation() const { return has_generation_; }

 private:
  static Statement* Add(StatementKind kind, int line, Body* body) {
    body->push_back(std::make_unique<Statement>());
    body->back()->kind = kind;
    body->back()->line = line;
    return body->back().get();
  }

  // The rest of a tag, and statements up to one of `ends`.
  absl::StatusOr<Body> Block(std::initializer_list<absl::string_view> ends) {
    stream_.SkipOperator(":");
    RETURN_IF_ERROR(stream_.Expect(TokenKind::kBlockEnd, "'%}'"));
    return Statements(ends);
  }
  absl::StatusOr<Body> WholeBlock(absl::string_view end) {
    ASSIGN_OR_RETURN(Body body, Block({end}));
    stream_.Take();
    return body;
  }

  absl::Status ParseStatement(Body* body) {
    if (!stream_.Is(TokenKind::kName)) return stream_.Unexpected("a tag name");
    const Token tag = stream_.Take();
    const auto add = [&](StatementKind kind) { return Add(kind, tag.line, body); };
    if (tag.text == "if") return If(add(StatementKind::kIf));
    if (tag.text == "for") return For(add(StatementKind::kFor));
    if (tag.text == "set") return Set(add(StatementKind::kSet));
    if (tag.text == "macro") return Macro(add(StatementKind::kMacro));
    if (tag.text == "call") return Call(add(StatementKind::kCall));
    if (tag.text == "filter") return Filter(add(StatementKind::kFilter));
    if (tag.text == "with") return With(add(StatementKind::kWith));
    if (tag.text == "print") return Print(add(StatementKind::kOutput));
    if (tag.text == "break") return add(StatementKind::kBreak), absl::OkStatus();
    if (tag.text == "continue") return add(StatementKind::kContinue), absl::OkStatus();
    if (tag.text == "generation") {
      has_generation_ = true;
      ASSIGN_OR_RETURN(add(StatementKind::kGeneration)->body, WholeBlock("endgeneration"));
      return absl::OkStatus();
    }
    static constexpr absl::string_view kKnown[] = {"block", "extends", "include", "import", "from", "autoescape"};
    if (std::find(std::begin(kKnown), std::end(kKnown), tag.text) != std::end(kKnown))
      return stream_.Fail(tag.line, "the statement {% ", tag.text, " %} is not supported");
    return stream_.Fail(tag.line, "Encountered unknown tag '", tag.text, "'");
  }

  absl::Status If(Statement* statement) {
    while (true) {
      Branch branch;
      ASSIGN_OR_RETURN(branch.condition, ParseTuple(&stream_, /*conditional=*/false));
      ASSIGN_OR_RETURN(branch.body, Block({"elif", "else", "endif"}));
      statement->branches.push_back(std::move(branch));
      const std::string end = stream_.Take().text;
      if (end == "elif") continue;
      if (end == "else") {
        ASSIGN_OR_RETURN(statement->else_body, WholeBlock("endif"));
      }
      return absl::OkStatus();
    }
  }

  absl::Status For(Statement* statement) {
    ASSIGN_OR_RETURN(statement->target, ParseTarget(&stream_, /*with_namespace=*/false, "in"));
    RETURN_IF_ERROR(stream_.ExpectName("in"));
    ASSIGN_OR_RETURN(statement->value, ParseTuple(&stream_, /*conditional=*/false, "recursive"));
    if (stream_.SkipName("if")) {
      ASSIGN_OR_RETURN(statement->test, ParseExpression(&stream_));
    }
    if (stream_.IsName("recursive")) return stream_.Fail(stream_.line(), "a recursive {% for %} is not supported");
    ASSIGN_OR_RETURN(statement->body, Block({"endfor", "else"}));
    if (stream_.Take().text == "else") {
      ASSIGN_OR_RETURN(statement->else_body, WholeBlock("endfor"));
    }
    return absl::OkStatus();
  }

  absl::Status Set(Statement* statement) {
    ASSIGN_OR_RETURN(statement->target, ParseTarget(&stream_, /*with_namespace=*/true));
    if (stream_.SkipOperator("=")) {
      ASSIGN_OR_RETURN(statement->value, ParseTuple(&stream_));
      return absl::OkStatus();
    }
    statement->kind = StatementKind::kSetBlock;
    ASSIGN_OR_RETURN(statement->value, ParseFilters(&stream_, nullptr, /*inline_start=*/false));
    ASSIGN_OR_RETURN(statement->body, WholeBlock("endset"));
    return absl::OkStatus();
  }

  absl::Status Signature(Statement* statement) {
    RETURN_IF_ERROR(stream_.ExpectOperator("("));
    while (!stream_.IsOperator(")")) {
      if (!statement->targets.empty()) RETURN_IF_ERROR(stream_.ExpectOperator(","));
      auto parameter = std::make_unique<Expression>();
      parameter->kind = ExpressionKind::kName;
      parameter->line = stream_.line();
      ASSIGN_OR_RETURN(parameter->name, stream_.ExpectAnyName());
      for (const ExpressionPtr& other : statement->targets) {
        if (other->name == parameter->name)
          return stream_.Fail(parameter->line, "duplicate argument '", parameter->name, "'");
      }
      if (stream_.SkipOperator("=")) {
        ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression(&stream_));
        statement->defaults.push_back(std::move(value));
      } else if (!statement->defaults.empty()) {
        return stream_.Fail(parameter->line, "non-default argument follows default argument");
      }
      statement->targets.push_back(std::move(parameter));
    }
    stream_.Take();
    return absl::OkStatus();
  }

  absl::Status Macro(Statement* statement) {
    ASSIGN_OR_RETURN(statement->name, stream_.ExpectAnyName());
    RETURN_IF_ERROR(Signature(statement));
    ASSIGN_OR_RETURN(statement->body, WholeBlock("endmacro"));
    return absl::OkStatus();
  }

  absl::Status Call(Statement* statement) {
    if (stream_.IsOperator("(")) RETURN_IF_ERROR(Signature(statement));
    ASSIGN_OR_RETURN(statement->value, ParseExpression(&stream_));
    if (statement->value->kind != ExpressionKind::kCall) return stream_.Fail(statement->line, "expected call");
    ASSIGN_OR_RETURN(statement->body, WholeBlock("endcall"));
    return absl::OkStatus();
  }

  absl::Status Filter(Statement* statement) {
    ASSIGN_OR_RETURN(statement->value, ParseFilters(&stream_, nullptr, /*inline_start=*/true));
    ASSIGN_OR_RETURN(statement->body, WholeBlock("endfilter"));
    return absl::OkStatus();
  }

  absl::Status With(Statement* statement) {
    while (!stream_.Is(TokenKind::kBlockEnd)) {
      if (!statement->targets.empty()) RETURN_IF_ERROR(stream_.ExpectOperator(","));
      ASSIGN_OR_RETURN(ExpressionPtr target, ParseTarget(&stream_, /*with_namespace=*/false));
      RETURN_IF_ERROR(stream_.ExpectOperator("="));
      ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression(&stream_));
      statement->targets.push_back(std::move(target));
      statement->expressions.push_back(std::move(value));
    }
    ASSIGN_OR_RETURN(statement->body, WholeBlock("endwith"));
    return absl::OkStatus();
  }

  absl::Status Print(Statement* statement) {
    while (!stream_.Is(TokenKind::kBlockEnd)) {
      if (!statement->expressions.empty()) RETURN_IF_ERROR(stream_.ExpectOperator(","));
      ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression(&stream_));
      statement->expressions.push_back(std::move(value));
    }
    return absl::OkStatus();
  }

  TokenStream stream_;
  bool has_generation_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Program>> ParseTemplate(absl::string_view source, const std::string& name,
                                                       int max_depth) {
  ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source, name));
  StatementParser parser(TokenStream(std::move(tokens), name, max_depth));
  auto program = std::make_unique<Program>();
  program->name = name;
  ASSIGN_OR_RETURN(program->body, parser.Statements({}));
  program->has_generation = parser.has_generation();
  return program;
}

}  // namespace trireme::jinja
