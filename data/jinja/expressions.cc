// Expressions of a template.
#include "data/jinja/evaluator.h"

namespace trireme::jinja {

namespace {}  // namespace

absl::StatusOr<std::vector<Value>> Evaluator::EvaluateAll(const std::vector<ExpressionPtr>& expressions) {
  std::vector<Value> values;
  values.reserve(expressions.size());
  for (const ExpressionPtr& expression : expressions) {
    ASSIGN_OR_RETURN(Value value, Evaluate(*expression));
    values.push_back(std::move(value));
  }
  return values;
}

absl::StatusOr<CallArguments> Evaluator::EvaluateArguments(const Arguments& arguments) {
  CallArguments values;
  ASSIGN_OR_RETURN(values.positional, EvaluateAll(arguments.positional));
  for (const auto& [name, expression] : arguments.named) {
    ASSIGN_OR_RETURN(Value value, Evaluate(*expression));
    values.named.emplace_back(name, std::move(value));
  }
  if (arguments.star != nullptr) {
    ASSIGN_OR_RETURN(const Value star, Evaluate(*arguments.star));
    ASSIGN_OR_RETURN(std::vector<Value> more, ToVector(star));
    for (Value& value : more) values.positional.push_back(std::move(value));
  }
  if (arguments.star_star != nullptr) {
    ASSIGN_OR_RETURN(const Value more, Evaluate(*arguments.star_star));
    if (!more.is(Kind::kDict)) return Raise("argument after ** must be a mapping, not ", TypeName(more));
    for (const auto& [name, value] : more.dict().entries) {
      if (!name.is_string()) return Raise("keywords must be strings");
      for (const auto& named : values.named) {
        if (named.first == name.text()) return Raise("got multiple values for keyword argument '", name.text(), "'");
      }
      RETURN_IF_ERROR(Step());
      values.named.emplace_back(name.text(), value);
    }
  }
  return values;
}

Result Evaluator::Evaluate(const Expression& expression) {
  RETURN_IF_ERROR(Step());
  const Level level(this);
  RETURN_IF_ERROR(level.Check());
  line_ = expression.line;
  const auto part = [&](size_t i) { return Evaluate(*expression.parts[i]); };
  switch (expression.kind) {
    case ExpressionKind::kConstant:
      return expression.constant;
    case ExpressionKind::kName: {
      const Value& value = Slot(expression.variable);
      if (value.is(Kind::kMissing)) return Value::Undefined(absl::StrCat("'", expression.name, "' is undefined"));
      return value;
    }
    case ExpressionKind::kAttribute: {
      ASSIGN_OR_RETURN(const Value object, part(0));
      line_ = expression.line;
      return GetAttribute(this, object, expression.name);
    }
    case ExpressionKind::kItem:
      return EvaluateItem(expression);
    case ExpressionKind::kSlice:
      return Refuse("a slice here");
    case ExpressionKind::kList:
    case ExpressionKind::kTuple: {
      ASSIGN_OR_RETURN(std::vector<Value> items, EvaluateAll(expression.parts));
      return NewList(std::move(items), expression.kind == ExpressionKind::kList ? Kind::kList : Kind::kTuple);
    }
    case ExpressionKind::kDict:
      return EvaluateDict(expression);
    case ExpressionKind::kCall:
      return EvaluateCall(expression, nullptr);
    case ExpressionKind::kFilter:
      return EvaluateFilter(expression, nullptr);
    case ExpressionKind::kTest: {
      ASSIGN_OR_RETURN(const Value value, part(0));
      ASSIGN_OR_RETURN(const CallArguments arguments, EvaluateArguments(expression.arguments));
      line_ = expression.line;
      ASSIGN_OR_RETURN(const bool passes, ApplyTest(this, expression.name, value, arguments));
      return Value::Bool(passes);
    }
    case ExpressionKind::kNot: {
      ASSIGN_OR_RETURN(const Value value, part(0));
      return Value::Bool(!IsTrue(value));
    }
    case ExpressionKind::kNegative:
    case ExpressionKind::kPositive: {
      ASSIGN_OR_RETURN(const Value value, part(0));
      line_ = expression.line;
      return Negate(this, value, expression.kind == ExpressionKind::kNegative);
    }
    case ExpressionKind::kBinary: {
      ASSIGN_OR_RETURN(const Value left, part(0));
      ASSIGN_OR_RETURN(const Value right, part(1));
      line_ = expression.line;
      return Binary(this, expression.name, left, right);
    }
    case ExpressionKind::kConcat: {
      ASSIGN_OR_RETURN(const std::vector<Value> values, EvaluateAll(expression.parts));
      line_ = expression.line;
      std::string text;
      for (const Value& value : values) {
        ASSIGN_OR_RETURN(const std::string more, ToText(this, value));
        RETURN_IF_ERROR(Charge(static_cast<int64_t>(more.size())));
        text += more;
      }
      return NewString(std::move(text));
    }
    case ExpressionKind::kCompare:
      return EvaluateCompare(expression);
    case ExpressionKind::kAnd:
    case ExpressionKind::kOr: {
      ASSIGN_OR_RETURN(Value left, part(0));
      if (IsTrue(left) == (expression.kind == ExpressionKind::kOr)) return left;
      return part(1);
    }
    case ExpressionKind::kConditional: {
      ASSIGN_OR_RETURN(const Value condition, part(0));
      if (IsTrue(condition)) return part(1);
      if (expression.parts[2] != nullptr) return part(2);
      return Value::Undefined(absl::StrCat("the inline if-expression on line ", expression.line,
                                           " evaluated to false and no else section was defined."));
    }
  }
  return Refuse("this expression");
}

Result Evaluator::EvaluateCall(const Expression& expression, const Value* caller) {
  ASSIGN_OR_RETURN(const Value callee, Evaluate(*expression.parts[0]));
  ASSIGN_OR_RETURN(CallArguments arguments, EvaluateArguments(expression.arguments));
  if (caller != nullptr) {
    for (const auto& named : arguments.named) {
      if (named.first == "caller") return Raise("got multiple values for keyword argument 'caller'");
    }
    arguments.named.emplace_back("caller", *caller);
  }
  line_ = expression.line;
  return Call(callee, std::move(arguments));
}

Result Evaluator::EvaluateFilter(const Expression& expression, const std::string* block) {
  Value input;
  if (expression.parts[0] == nullptr) {
    ASSIGN_OR_RETURN(input, NewString(*block));
  } else if (block != nullptr && expression.parts[0]->kind == ExpressionKind::kFilter) {
    ASSIGN_OR_RETURN(input, EvaluateFilter(*expression.parts[0], block));
  } else {
    ASSIGN_OR_RETURN(input, Evaluate(*expression.parts[0]));
  }
  ASSIGN_OR_RETURN(const CallArguments arguments, EvaluateArguments(expression.arguments));
  line_ = expression.line;
  return ApplyFilter(this, expression.name, input, arguments);
}

Result Evaluator::EvaluateCompare(const Expression& expression) {
  ASSIGN_OR_RETURN(Value left, Evaluate(*expression.parts[0]));
  for (size_t i = 0; i < expression.names.size(); ++i) {
    ASSIGN_OR_RETURN(Value right, Evaluate(*expression.parts[i + 1]));
    line_ = expression.line;
    const std::string& op = expression.names[i];
    bool holds;
    if (op == "in" || op == "not in") {
      ASSIGN_OR_RETURN(holds, Contains(this, right, left));
      if (op == "not in") holds = !holds;
    } else {
      ASSIGN_OR_RETURN(holds, Compare(this, op, left, right));
    }
    if (!holds) return Value::Bool(false);
    left = std::move(right);
  }
  return Value::Bool(true);
}

Result Evaluator::EvaluateItem(const Expression& expression) {
  ASSIGN_OR_RETURN(const Value object, Evaluate(*expression.parts[0]));
  const Expression& key = *expression.parts[1];
  if (key.kind != ExpressionKind::kSlice) {
    ASSIGN_OR_RETURN(const Value value, Evaluate(key));
    line_ = expression.line;
    return GetItem(this, object, value);
  }
  Value bounds[3] = {Value::None(), Value::None(), Value::None()};
  for (int i = 0; i < 3; ++i) {
    if (key.parts[i] == nullptr) continue;
    ASSIGN_OR_RETURN(bounds[i], Evaluate(*key.parts[i]));
  }
  line_ = expression.line;
  return Slice(this, object, bounds[0], bounds[1], bounds[2]);
}

Result Evaluator::EvaluateDict(const Expression& expression) {
  auto dict = std::make_shared<DictObject>();
  for (size_t i = 0; i < expression.parts.size(); i += 2) {
    ASSIGN_OR_RETURN(const Value key, Evaluate(*expression.parts[i]));
    ASSIGN_OR_RETURN(Value value, Evaluate(*expression.parts[i + 1]));
    line_ = expression.line;
    if (!(key.is_string() && !key.markup()) && !key.is(Kind::kInt))
      return Refuse("a ", TypeName(key), " as a key of a dict");
    dict->Set(key, std::move(value));
  }
  return NewDict(std::move(dict));
}

}  // namespace trireme::jinja
