// Python's operators.
#include <algorithm>
#include <cmath>

#include "data/jinja/evaluator.h"
#include "data/jinja/syntax/python_text.h"

namespace trireme::jinja {
namespace {

Result IntegerOverflow(Evaluator* evaluator) { return evaluator->Refuse("an integer beyond 64 bits"); }

absl::Status Unsupported(Evaluator* evaluator, const std::string& op, const Value& left, const Value& right) {
  if (left.is(Kind::kUndefined)) return evaluator->RaiseUndefined(left);
  if (right.is(Kind::kUndefined)) return evaluator->RaiseUndefined(right);
  return evaluator->Raise("unsupported operand type(s) for ", op, ": '", TypeName(left), "' and '", TypeName(right),
                          "'");
}

Result FloatArithmetic(Evaluator* evaluator, const std::string& op, double a, double b) {
  if (op == "+") return Value::Float(a + b);
  if (op == "-") return Value::Float(a - b);
  if (op == "*") return Value::Float(a * b);
  if (op == "**") return evaluator->Refuse("a power of floats");
  if (b == 0) return evaluator->Raise("float division by zero");
  if (op == "/") return Value::Float(a / b);
  // This is what CPython's float_divmod does.
  double remainder = std::fmod(a, b);
  double quotient = (a - remainder) / b;
  if (remainder != 0) {
    if ((b < 0) != (remainder < 0)) {
      remainder += b;
      quotient -= 1;
    }
  } else {
    remainder = std::copysign(0.0, b);
  }
  if (op == "%") return Value::Float(remainder);
  double floored = std::floor(quotient);
  if (quotient == 0) {
    floored = std::copysign(0.0, a / b);
  } else if (quotient - floored > 0.5) {
    floored += 1;
  }
  return Value::Float(floored);
}

Result IntegerArithmetic(Evaluator* evaluator, const std::string& op, int64_t a, int64_t b) {
  int64_t result = 0;
  if (op == "+") return __builtin_add_overflow(a, b, &result) ? IntegerOverflow(evaluator) : Value::Int(result);
  if (op == "-") return __builtin_sub_overflow(a, b, &result) ? IntegerOverflow(evaluator) : Value::Int(result);
  if (op == "*") return __builtin_mul_overflow(a, b, &result) ? IntegerOverflow(evaluator) : Value::Int(result);
  if (op == "**") {
    if (b < 0) return evaluator->Refuse("a negative power");
    result = 1;
    if (a == 0 || a == 1) return Value::Int(b == 0 ? 1 : a);
    if (a == -1) return Value::Int(b % 2 == 0 ? 1 : -1);
    for (int64_t i = 0; i < b; ++i) {
      if (__builtin_mul_overflow(result, a, &result)) return IntegerOverflow(evaluator);
    }
    return Value::Int(result);
  }
  if (b == 0) return evaluator->Raise(op == "/" ? "division by zero" : "integer division or modulo by zero");
  if (op == "/") {
    constexpr int64_t kExact = int64_t{1} << 53;
    if (a > kExact || a < -kExact || b > kExact || b < -kExact)
      return evaluator->Refuse("dividing integers beyond 2**53");
    return Value::Float(static_cast<double>(a) / static_cast<double>(b));
  }
  if (b == -1)
    return op == "%"                                        ? Value::Int(0)
           : __builtin_sub_overflow(int64_t{0}, a, &result) ? IntegerOverflow(evaluator)
                                                            : Value::Int(result);
  const bool rounds_down = a % b != 0 && (a % b < 0) != (b < 0);
  return op == "%" ? Value::Int(a % b + (rounds_down ? b : 0)) : Value::Int(a / b - (rounds_down ? 1 : 0));
}

Result Repeat(Evaluator* evaluator, const Value& value, int64_t count) {
  count = std::max<int64_t>(count, 0);
  const int64_t size = value.is_string() ? static_cast<int64_t>(value.text().size())
                                         : static_cast<int64_t>(value.items().size() * sizeof(Value));
  int64_t total;
  if (__builtin_mul_overflow(size, count, &total)) total = INT64_MAX;
  RETURN_IF_ERROR(evaluator->Charge(total));
  if (size == 0) count = 0;
  if (value.is_string()) {
    std::string text;
    text.reserve(total);
    for (int64_t i = 0; i < count; ++i) text += value.text();
    return evaluator->NewString(std::move(text), value.markup());
  }
  std::vector<Value> items;
  for (int64_t i = 0; i < count; ++i) items.insert(items.end(), value.items().begin(), value.items().end());
  return evaluator->NewList(std::move(items), value.kind());
}

Result Add(Evaluator* evaluator, const Value& left, const Value& right) {
  if (left.is_string() && right.is_string()) {
    const bool markup = left.markup() || right.markup();
    RETURN_IF_ERROR(evaluator->Charge(static_cast<int64_t>(left.text().size() + right.text().size())));
    const auto text = [markup](const Value& value) {
      return markup && !value.markup() ? EscapeHtml(value.text()) : value.text();
    };
    return evaluator->NewString(text(left) + text(right), markup);
  }
  std::vector<Value> items = left.items();
  RETURN_IF_ERROR(evaluator->Charge(static_cast<int64_t>((items.size() + right.items().size()) * sizeof(Value))));
  items.insert(items.end(), right.items().begin(), right.items().end());
  return evaluator->NewList(std::move(items), left.kind());
}

// -1, 0 or 1 as left is less, equal or greater.
absl::StatusOr<int> Order(Evaluator* evaluator, const std::string& op, const Value& left, const Value& right) {
  if (left.is_integer() && right.is_integer())
    return left.integer() < right.integer() ? -1 : left.integer() > right.integer() ? 1 : 0;
  if (left.is_string() && right.is_string()) {
    const int order = left.text().compare(right.text());  // bytes of UTF-8 are ordered as their code points are
    return order < 0 ? -1 : order > 0 ? 1 : 0;
  }
  if (left.is_sequence() && left.kind() == right.kind()) {
    for (size_t i = 0; i < left.items().size() && i < right.items().size(); ++i) {
      if (!Same(left.items()[i], right.items()[i]) && !Equal(left.items()[i], right.items()[i]))
        return Order(evaluator, op, left.items()[i], right.items()[i]);
    }
    return left.items().size() < right.items().size() ? -1 : left.items().size() > right.items().size() ? 1 : 0;
  }
  if (left.is_number() && right.is_number()) {
    constexpr int64_t kExact = int64_t{1} << 53;
    for (const Value* value : {&left, &right}) {
      if (value->is_integer() && (value->integer() > kExact || value->integer() < -kExact))
        return evaluator->Refuse("comparing an integer beyond 2**53 with a float");
    }
    const double a = left.number(), b = right.number();
    if (std::isnan(a) || std::isnan(b)) return 2;
    return a < b ? -1 : a > b ? 1 : 0;
  }
  if (left.is(Kind::kUndefined)) return evaluator->RaiseUndefined(left);
  if (right.is(Kind::kUndefined)) return evaluator->RaiseUndefined(right);
  return evaluator->Raise("'", op, "' not supported between instances of '", TypeName(left), "' and '", TypeName(right),
                          "'");
}

}  // namespace

Result Binary(Evaluator* evaluator, const std::string& op, const Value& left, const Value& right) {
  if (left.is_number() && right.is_number()) {
    if (left.is_integer() && right.is_integer())
      return IntegerArithmetic(evaluator, op, left.integer(), right.integer());
    return FloatArithmetic(evaluator, op, left.number(), right.number());
  }
  if (op == "+" && ((left.is_string() && right.is_string()) || (left.is_sequence() && left.kind() == right.kind())))
    return Add(evaluator, left, right);
  if (op == "*") {
    const auto repeats = [](const Value& value) { return value.is_string() || value.is_sequence(); };
    if (repeats(left) && right.is_integer()) return Repeat(evaluator, left, right.integer());
    if (repeats(right) && left.is_integer()) return Repeat(evaluator, right, left.integer());
  }
  if (op == "%" && left.is_string()) {
    if (left.markup()) return evaluator->Refuse("formatting a text marked safe");
    return FormatPercent(evaluator, left.text(), right);
  }
  if (op == "-" && left.is(Kind::kView) && right.is(Kind::kView)) return evaluator->Refuse("subtracting dict views");
  return Unsupported(evaluator, op, left, right);
}

Result Negate(Evaluator* evaluator, const Value& value, bool negative) {
  if (value.is(Kind::kFloat)) return Value::Float(negative ? -value.number() : value.number());
  if (value.is_integer()) {
    if (value.integer() == INT64_MIN && negative) return IntegerOverflow(evaluator);
    return Value::Int(negative ? -value.integer() : value.integer());
  }
  if (value.is(Kind::kUndefined)) return evaluator->RaiseUndefined(value);
  return evaluator->Raise("bad operand type for unary ", negative ? "-" : "+", ": '", TypeName(value), "'");
}

absl::StatusOr<bool> Compare(Evaluator* evaluator, const std::string& op, const Value& left, const Value& right) {
  if (left.is(Kind::kView) && right.is(Kind::kView)) return evaluator->Refuse("comparing dict views");
  if (op == "==") return Equal(left, right);
  if (op == "!=") return !Equal(left, right);
  ASSIGN_OR_RETURN(const int order, Order(evaluator, op, left, right));
  if (order == 2) return false;
  if (op == "<") return order < 0;
  if (op == "<=") return order <= 0;
  return op == ">" ? order > 0 : order >= 0;
}

absl::StatusOr<bool> Contains(Evaluator* evaluator, const Value& container, const Value& item) {
  switch (container.kind()) {
    case Kind::kString:
      if (!item.is_string())
        return evaluator->Raise("'in <string>' requires string as left operand, not ", TypeName(item));
      return container.text().find(item.text()) != std::string::npos;
    case Kind::kDict:
      if (item.is(Kind::kList) || item.is(Kind::kDict) || item.is(Kind::kNamespace))
        return evaluator->Raise("unhashable type: '", TypeName(item), "'");
      return container.dict().Find(item) != nullptr;
    default:
      if (!container.is_iterable())
        return evaluator->Raise("argument of type '", TypeName(container), "' is not iterable");
  }
  ASSIGN_OR_RETURN(const auto iterator, evaluator->Iterate(container));
  while (true) {
    Value value;
    ASSIGN_OR_RETURN(const bool more, iterator->Next(evaluator, &value));
    if (!more) return false;
    if (Same(value, item) || Equal(value, item)) return true;
  }
}

}  // namespace trireme::jinja
