// The grammar of expressions, a function per level of precedence; long because the grammar is.
#include <absl/strings/numbers.h>

#include <algorithm>
#include <charconv>

#include "data/jinja/syntax/token_stream.h"

namespace trireme::jinja {
namespace {

using Result = absl::StatusOr<ExpressionPtr>;

ExpressionPtr Make(ExpressionKind kind, int line) {
  auto expression = std::make_unique<Expression>();
  expression->kind = kind;
  expression->line = line;
  return expression;
}

template <typename... Parts>
ExpressionPtr Make(ExpressionKind kind, int line, std::string name, Parts... parts) {
  ExpressionPtr expression = Make(kind, line);
  expression->name = std::move(name);
  (expression->parts.push_back(std::move(parts)), ...);
  return expression;
}

class ExpressionParser {
 public:
  explicit ExpressionParser(TokenStream* stream) : stream_(*stream) {}

  Result Conditional() {
    const TokenStream::Level level(&stream_);
    RETURN_IF_ERROR(level.Check());
    int line = stream_.line();
    ASSIGN_OR_RETURN(ExpressionPtr value, Or());
    while (stream_.SkipName("if")) {
      ASSIGN_OR_RETURN(ExpressionPtr condition, Or());
      ExpressionPtr otherwise;
      if (stream_.SkipName("else")) {
        ASSIGN_OR_RETURN(otherwise, Conditional());
      }
      RETURN_IF_ERROR(Grow());
      value =
          Make(ExpressionKind::kConditional, line, "", std::move(condition), std::move(value), std::move(otherwise));
      line = stream_.line();
    }
    return value;
  }

  Result Or() {
    return LeftToRight({"or"}, ExpressionKind::kOr, [this] { return And(); });
  }

  Result Tuple(bool conditional, absl::string_view end_name, bool parentheses) {
    const int line = stream_.line();
    ASSIGN_OR_RETURN(ExpressionPtr value, Items(end_name, [&] { return conditional ? Conditional() : Or(); }));
    if (value != nullptr) return value;
    return parentheses ? Make(ExpressionKind::kTuple, line) : Result(stream_.Unexpected("an expression"));
  }

  Result Target(bool with_namespace, absl::string_view end_name) {
    ASSIGN_OR_RETURN(ExpressionPtr target, Items(end_name, [&] { return TargetItem(with_namespace); }));
    return target != nullptr ? std::move(target) : Result(stream_.Unexpected("something to assign to"));
  }

  Result Filters(ExpressionPtr value, bool inline_start) {
    while (inline_start || stream_.IsOperator("|")) {
      if (!inline_start) stream_.Take();
      inline_start = false;
      const int line = stream_.line();
      ASSIGN_OR_RETURN(std::string name, DottedName());
      RETURN_IF_ERROR(Grow());
      value = Make(ExpressionKind::kFilter, line, name, std::move(value));
      if (stream_.IsOperator("(")) RETURN_IF_ERROR(ParseArguments(&value->arguments));
    }
    return value;
  }

 private:
  // `item`s with commas between them: null for none, one without a comma is itself, anything else a tuple.
  template <typename Item>
  Result Items(absl::string_view end_name, const Item& item) {
    std::vector<ExpressionPtr> items;
    bool is_tuple = false;
    const int line = stream_.line();
    while (true) {
      if (!items.empty()) RETURN_IF_ERROR(stream_.ExpectOperator(","));
      if (AtTupleEnd(end_name)) break;
      ASSIGN_OR_RETURN(ExpressionPtr next, item());
      items.push_back(std::move(next));
      if (!stream_.IsOperator(",")) break;
      is_tuple = true;
    }
    if (items.empty()) return ExpressionPtr();
    if (!is_tuple) return std::move(items[0]);
    ExpressionPtr tuple = Make(ExpressionKind::kTuple, line);
    tuple->parts = std::move(items);
    return tuple;
  }

  Result TargetItem(bool with_namespace) {
    const TokenStream::Level level(&stream_);
    RETURN_IF_ERROR(level.Check());
    const int line = stream_.line();
    if (stream_.SkipOperator("(")) {
      ASSIGN_OR_RETURN(ExpressionPtr inner, Target(false, ""));
      RETURN_IF_ERROR(stream_.ExpectOperator(")"));
      return inner;
    }
    ASSIGN_OR_RETURN(std::string name, stream_.ExpectAnyName());
    static constexpr absl::string_view kNot[] = {"true", "false", "none", "True", "False", "None"};
    if (std::find(std::begin(kNot), std::end(kNot), name) != std::end(kNot))
      return stream_.Fail(line, "can't assign to '", name, "'");
    ExpressionPtr item = Make(ExpressionKind::kName, line, name);
    if (!with_namespace || !stream_.SkipOperator(".")) return item;
    ASSIGN_OR_RETURN(std::string attribute, stream_.ExpectAnyName());
    return Make(ExpressionKind::kAttribute, line, attribute, std::move(item));
  }

  bool AtTupleEnd(absl::string_view end_name) const {
    return stream_.Is(TokenKind::kVariableEnd) || stream_.Is(TokenKind::kBlockEnd) || stream_.IsOperator(")") ||
           (!end_name.empty() && stream_.IsName(end_name));
  }

  // Chains ("a|b|c", "a.b.c", "a + b + c") nest without recursion here, but are evaluated by recursion.
  absl::Status Grow() {
    return ++chained_ <= kMaxChain ? absl::OkStatus() : stream_.Fail(stream_.line(), "an expression is too long");
  }

  // `next (operator next)*`
  template <typename Next>
  Result LeftToRight(std::initializer_list<absl::string_view> operators, ExpressionKind kind, Next next) {
    int line = stream_.line();
    ASSIGN_OR_RETURN(ExpressionPtr left, next());
    while (true) {
      const TokenKind token = kind == ExpressionKind::kBinary ? TokenKind::kOperator : TokenKind::kName;
      const std::string name = stream_.current().text;
      if (!stream_.Is(token) || std::find(operators.begin(), operators.end(), name) == operators.end()) return left;
      stream_.Take();
      RETURN_IF_ERROR(Grow());
      ASSIGN_OR_RETURN(ExpressionPtr right, next());
      left = Make(kind, line, name, std::move(left), std::move(right));
      line = stream_.line();
    }
  }

  Result And() {
    return LeftToRight({"and"}, ExpressionKind::kAnd, [this] { return Not(); });
  }

  Result Not() {
    if (!stream_.IsName("not")) return Compare();
    const TokenStream::Level level(&stream_);
    RETURN_IF_ERROR(level.Check());
    const int line = stream_.Take().line;
    ASSIGN_OR_RETURN(ExpressionPtr value, Not());
    return Make(ExpressionKind::kNot, line, "", std::move(value));
  }

  Result Compare() {
    const int line = stream_.line();
    ASSIGN_OR_RETURN(ExpressionPtr first, Sum());
    ExpressionPtr compare;
    while (true) {
      static constexpr absl::string_view kOperators[] = {"==", "!=", "<", "<=", ">", ">="};
      std::string name = stream_.current().text;
      if (stream_.Is(TokenKind::kOperator) &&
          std::find(std::begin(kOperators), std::end(kOperators), name) != std::end(kOperators)) {
        stream_.Take();
      } else if (stream_.SkipName("in")) {
      } else if (stream_.IsName("not") && stream_.next().kind == TokenKind::kName && stream_.next().text == "in") {
        stream_.Take();
        stream_.Take();
        name = "not in";
      } else {
        break;
      }
      ASSIGN_OR_RETURN(ExpressionPtr right, Sum());
      if (compare == nullptr) compare = Make(ExpressionKind::kCompare, line, "", std::move(first));
      compare->names.push_back(name);
      compare->parts.push_back(std::move(right));
    }
    return compare == nullptr ? std::move(first) : std::move(compare);
  }

  Result Sum() {
    return LeftToRight({"+", "-"}, ExpressionKind::kBinary, [this] { return Concat(); });
  }

  Result Concat() {
    const int line = stream_.line();
    ASSIGN_OR_RETURN(ExpressionPtr first, Product());
    if (!stream_.IsOperator("~")) return first;
    ExpressionPtr concat = Make(ExpressionKind::kConcat, line, "", std::move(first));
    while (stream_.SkipOperator("~")) {
      ASSIGN_OR_RETURN(ExpressionPtr next, Product());
      concat->parts.push_back(std::move(next));
    }
    return concat;
  }

  Result Product() {
    return LeftToRight({"*", "/", "//", "%"}, ExpressionKind::kBinary, [this] { return Power(); });
  }
  Result Power() {
    return LeftToRight({"**"}, ExpressionKind::kBinary, [this] { return Unary(true); });
  }

  Result Unary(bool with_filter) {
    const TokenStream::Level level(&stream_);
    RETURN_IF_ERROR(level.Check());
    ExpressionPtr value;
    if (stream_.IsOperator("-") || stream_.IsOperator("+")) {
      const Token sign = stream_.Take();
      ASSIGN_OR_RETURN(ExpressionPtr operand, Unary(false));
      value = Make(sign.text == "-" ? ExpressionKind::kNegative : ExpressionKind::kPositive, sign.line, "",
                   std::move(operand));
    } else {
      ASSIGN_OR_RETURN(value, Primary());
    }
    ASSIGN_OR_RETURN(value, Postfix(std::move(value)));
    if (!with_filter) return value;
    while (true) {
      if (stream_.IsOperator("|")) {
        ASSIGN_OR_RETURN(value, Filters(std::move(value), false));
      } else if (stream_.IsName("is")) {
        ASSIGN_OR_RETURN(value, Test(std::move(value)));
      } else if (stream_.IsOperator("(")) {
        ASSIGN_OR_RETURN(value, Call(std::move(value)));
      } else {
        return value;
      }
    }
  }

  Result Constant(Value value, int line) {
    ExpressionPtr constant = Make(ExpressionKind::kConstant, line);
    constant->constant = std::move(value);
    return constant;
  }

  Result Integer(const Token& token) {
    const bool prefixed = token.text.size() > 2 && token.text[0] == '0' && token.text[1] > '9';
    const char base = prefixed ? static_cast<char>(token.text[1] | 0x20) : 'd';
    int64_t value = 0;
    const char* begin = token.text.data() + (prefixed ? 2 : 0);
    const auto end = token.text.data() + token.text.size();
    const auto result = std::from_chars(begin, end, value, base == 'x' ? 16 : base == 'o' ? 8 : base == 'b' ? 2 : 10);
    if (result.ec != std::errc() || result.ptr != end)
      return stream_.Fail(token.line, "the integer ", token.text, " beyond 64 bits is not supported");
    return Constant(Value::Int(value), token.line);
  }

  Result Primary() {
    const Token token = stream_.current();
    switch (token.kind) {
      case TokenKind::kName:
        stream_.Take();
        if (token.text == "true" || token.text == "True") return Constant(Value::Bool(true), token.line);
        if (token.text == "false" || token.text == "False") return Constant(Value::Bool(false), token.line);
        if (token.text == "none" || token.text == "None") return Constant(Value::None(), token.line);
        return Make(ExpressionKind::kName, token.line, token.text);
      case TokenKind::kString: {
        std::string text;
        while (stream_.Is(TokenKind::kString)) text += stream_.Take().text;
        return Constant(Value::String(std::move(text)), token.line);
      }
      case TokenKind::kInteger:
        stream_.Take();
        return Integer(token);
      case TokenKind::kFloat: {
        stream_.Take();
        double value = 0;
        if (!absl::SimpleAtod(token.text, &value)) return stream_.Fail(token.line, "bad number ", token.text);
        return Constant(Value::Float(value), token.line);
      }
      default:
        break;
    }
    if (stream_.SkipOperator("(")) {
      ASSIGN_OR_RETURN(ExpressionPtr value, Tuple(true, "", true));
      RETURN_IF_ERROR(stream_.ExpectOperator(")"));
      return value;
    }
    if (stream_.SkipOperator("[")) return List(token.line);
    if (stream_.SkipOperator("{")) return Dict(token.line);
    return stream_.Unexpected("an expression");
  }

  Result List(int line) {
    ExpressionPtr list = Make(ExpressionKind::kList, line);
    while (!stream_.IsOperator("]")) {
      if (!list->parts.empty()) RETURN_IF_ERROR(stream_.ExpectOperator(","));
      if (stream_.IsOperator("]")) break;
      ASSIGN_OR_RETURN(ExpressionPtr item, Conditional());
      list->parts.push_back(std::move(item));
    }
    stream_.Take();
    return list;
  }

  Result Dict(int line) {
    ExpressionPtr dict = Make(ExpressionKind::kDict, line);
    while (!stream_.IsOperator("}")) {
      if (!dict->parts.empty()) RETURN_IF_ERROR(stream_.ExpectOperator(","));
      if (stream_.IsOperator("}")) break;
      ASSIGN_OR_RETURN(ExpressionPtr key, Conditional());
      RETURN_IF_ERROR(stream_.ExpectOperator(":"));
      ASSIGN_OR_RETURN(ExpressionPtr value, Conditional());
      dict->parts.push_back(std::move(key));
      dict->parts.push_back(std::move(value));
    }
    stream_.Take();
    return dict;
  }

  Result Postfix(ExpressionPtr value) {
    while (true) {
      if (stream_.IsOperator(".") || stream_.IsOperator("[")) {
        ASSIGN_OR_RETURN(value, Subscript(std::move(value)));
      } else if (stream_.IsOperator("(")) {
        ASSIGN_OR_RETURN(value, Call(std::move(value)));
      } else {
        return value;
      }
    }
  }

  Result Subscript(ExpressionPtr value) {
    RETURN_IF_ERROR(Grow());
    const Token token = stream_.Take();
    if (token.text == ".") {
      const Token attribute = stream_.Take();
      if (attribute.kind == TokenKind::kName)
        return Make(ExpressionKind::kAttribute, token.line, attribute.text, std::move(value));
      if (attribute.kind != TokenKind::kInteger) return stream_.Fail(attribute.line, "expected name or number");
      ASSIGN_OR_RETURN(ExpressionPtr index, Integer(attribute));
      return Make(ExpressionKind::kItem, token.line, "", std::move(value), std::move(index));
    }
    std::vector<ExpressionPtr> arguments;
    while (!stream_.IsOperator("]")) {
      if (!arguments.empty()) RETURN_IF_ERROR(stream_.ExpectOperator(","));
      ASSIGN_OR_RETURN(ExpressionPtr argument, Subscribed());
      arguments.push_back(std::move(argument));
    }
    stream_.Take();
    if (arguments.size() != 1) return stream_.Fail(token.line, "a subscript of several parts is not supported");
    return Make(ExpressionKind::kItem, token.line, "", std::move(value), std::move(arguments[0]));
  }

  Result Subscribed() {
    const int line = stream_.line();
    ExpressionPtr parts[3];
    if (!stream_.IsOperator(":")) {
      ASSIGN_OR_RETURN(parts[0], Conditional());
      if (!stream_.IsOperator(":")) return std::move(parts[0]);
    }
    for (int i = 1; i < 3 && stream_.SkipOperator(":"); ++i) {
      if (stream_.IsOperator(":") || stream_.IsOperator("]") || stream_.IsOperator(",")) continue;
      ASSIGN_OR_RETURN(parts[i], Conditional());
    }
    return Make(ExpressionKind::kSlice, line, "", std::move(parts[0]), std::move(parts[1]), std::move(parts[2]));
  }

  Result Call(ExpressionPtr callee) {
    RETURN_IF_ERROR(Grow());
    ExpressionPtr call = Make(ExpressionKind::kCall, stream_.line(), "", std::move(callee));
    RETURN_IF_ERROR(ParseArguments(&call->arguments));
    return call;
  }

  absl::Status ParseArguments(Arguments* arguments) {
    const int line = stream_.line();
    RETURN_IF_ERROR(stream_.ExpectOperator("("));
    const auto ensure = [&](bool fine) {
      return fine ? absl::OkStatus() : stream_.Fail(line, "invalid syntax for function call expression");
    };
    for (bool first = true; !stream_.IsOperator(")"); first = false) {
      if (!first) {
        RETURN_IF_ERROR(stream_.ExpectOperator(","));
        if (stream_.IsOperator(")")) break;
      }
      if (stream_.SkipOperator("*")) {
        RETURN_IF_ERROR(ensure(arguments->star == nullptr && arguments->star_star == nullptr));
        ASSIGN_OR_RETURN(arguments->star, Conditional());
      } else if (stream_.SkipOperator("**")) {
        RETURN_IF_ERROR(ensure(arguments->star_star == nullptr));
        ASSIGN_OR_RETURN(arguments->star_star, Conditional());
      } else if (stream_.Is(TokenKind::kName) && stream_.next().kind == TokenKind::kOperator &&
                 stream_.next().text == "=") {
        RETURN_IF_ERROR(ensure(arguments->star_star == nullptr));
        std::string name = stream_.Take().text;
        stream_.Take();
        for (const auto& [other, value] : arguments->named) {
          if (other == name) return stream_.Fail(line, "keyword argument repeated: ", name);
        }
        ASSIGN_OR_RETURN(ExpressionPtr value, Conditional());
        arguments->named.emplace_back(std::move(name), std::move(value));
      } else {
        RETURN_IF_ERROR(
            ensure(arguments->star == nullptr && arguments->star_star == nullptr && arguments->named.empty()));
        ASSIGN_OR_RETURN(ExpressionPtr value, Conditional());
        arguments->positional.push_back(std::move(value));
      }
    }
    stream_.Take();
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> DottedName() {
    ASSIGN_OR_RETURN(std::string name, stream_.ExpectAnyName());
    while (stream_.SkipOperator(".")) {
      ASSIGN_OR_RETURN(const std::string more, stream_.ExpectAnyName());
      name += "." + more;
    }
    return name;
  }

  Result Test(ExpressionPtr value) {
    RETURN_IF_ERROR(Grow());
    const int line = stream_.Take().line;
    const bool negated = stream_.SkipName("not");
    ASSIGN_OR_RETURN(std::string name, DottedName());
    ExpressionPtr test = Make(ExpressionKind::kTest, line, name, std::move(value));
    const TokenKind kind = stream_.current().kind;
    if (stream_.IsOperator("(")) {
      RETURN_IF_ERROR(ParseArguments(&test->arguments));
    } else if ((kind == TokenKind::kName || kind == TokenKind::kString || kind == TokenKind::kInteger ||
                kind == TokenKind::kFloat || stream_.IsOperator("[") || stream_.IsOperator("{")) &&
               !stream_.IsName("else") && !stream_.IsName("or") && !stream_.IsName("and")) {
      if (stream_.IsName("is")) return stream_.Fail(stream_.line(), "You cannot chain multiple tests with is");
      ASSIGN_OR_RETURN(ExpressionPtr argument, Primary());
      ASSIGN_OR_RETURN(argument, Postfix(std::move(argument)));
      test->arguments.positional.push_back(std::move(argument));
    }
    return negated ? Make(ExpressionKind::kNot, line, "", std::move(test)) : std::move(test);
  }

  static constexpr int kMaxChain = 400;  // links in one expression

  TokenStream& stream_;
  int chained_ = 0;
};

}  // namespace

absl::Status TokenStream::Unexpected(absl::string_view expected) const {
  const Token& token = current();
  std::string got;
  switch (token.kind) {
    case TokenKind::kEnd:
      got = "the end of the template";
      break;
    case TokenKind::kBlockEnd:
      got = "the end of the statement block";
      break;
    case TokenKind::kVariableEnd:
      got = "the end of the print statement";
      break;
    default:
      got = absl::StrCat("'", token.text, "'");
  }
  return Fail(token.line, "expected ", expected, ", got ", got);
}

absl::StatusOr<ExpressionPtr> ParseExpression(TokenStream* stream, bool conditional) {
  return conditional ? ExpressionParser(stream).Conditional() : ExpressionParser(stream).Or();
}

absl::StatusOr<ExpressionPtr> ParseTuple(TokenStream* stream, bool conditional, absl::string_view end_name) {
  return ExpressionParser(stream).Tuple(conditional, end_name, false);
}

absl::StatusOr<ExpressionPtr> ParseTarget(TokenStream* stream, bool with_namespace, absl::string_view end_name) {
  return ExpressionParser(stream).Target(with_namespace, end_name);
}

absl::StatusOr<ExpressionPtr> ParseFilters(TokenStream* stream, ExpressionPtr input, bool inline_start) {
  return ExpressionParser(stream).Filters(std::move(input), inline_start);
}

}  // namespace trireme::jinja
