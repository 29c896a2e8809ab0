// Jinja's tests.
#include <algorithm>
#include <cmath>

#include "data/jinja/evaluator.h"

namespace trireme::jinja {
namespace {

constexpr absl::string_view kTests[] = {
    "odd",     "even",   "divisibleby", "defined",  "undefined", "filter", "test",    "none",
    "boolean", "false",  "true",        "integer",  "float",     "lower",  "upper",   "string",
    "mapping", "number", "sequence",    "iterable", "callable",  "sameas", "escaped", "in",
    "==",      "eq",     "equalto",     "!=",       "ne",        ">",      "gt",      "greaterthan",
    "ge",      ">=",     "<",           "lt",       "lessthan",  "<=",     "le"};

std::string Operator(const std::string& test) {
  if (test == "eq" || test == "equalto") return "==";
  if (test == "ne") return "!=";
  if (test == "gt" || test == "greaterthan") return ">";
  if (test == "ge") return ">=";
  if (test == "lt" || test == "lessthan") return "<";
  return test == "le" ? "<=" : test;
}

absl::StatusOr<bool> Divides(Evaluator* evaluator, const Value& value, int64_t divisor, int64_t rest) {
  ASSIGN_OR_RETURN(const Value found, Binary(evaluator, "%", value, Value::Int(divisor)));
  return Equal(found, Value::Int(rest));
}

// How many arguments a test takes.
size_t NumArguments(const std::string& name) {
  return name == "divisibleby" || name == "sameas" || name == "in" || Operator(name).find_first_of("=<>!") == 0 ? 1 : 0;
}

}  // namespace

bool IsJinjaTest(const std::string& name) {
  return std::find(std::begin(kTests), std::end(kTests), name) != std::end(kTests);
}

absl::StatusOr<bool> ApplyTest(Evaluator* evaluator, const std::string& name, const Value& input,
                               const CallArguments& arguments) {
  if (!IsJinjaTest(name)) return evaluator->Raise("No test named '", name, "' found.");
  if (!arguments.named.empty()) return evaluator->Refuse("the test ", name, " with keyword arguments");
  if (arguments.positional.size() != NumArguments(name))
    return evaluator->Raise("the test ", name, " takes ", NumArguments(name), " arguments (",
                            arguments.positional.size(), " given)");
  if (NumArguments(name) == 1) {
    const Value& other = arguments.positional[0];
    if (name == "in") return Contains(evaluator, other, input);
    if (name == "sameas") {
      const bool simple =
          input.is(Kind::kNone) || input.is(Kind::kBool) || other.is(Kind::kNone) || other.is(Kind::kBool);
      if (!simple) return evaluator->Refuse("the test sameas of other than true, false and none");
      return Same(input, other);
    }
    if (name == "divisibleby") {
      ASSIGN_OR_RETURN(const Value rest, Binary(evaluator, "%", input, other));
      return Equal(rest, Value::Int(0));
    }
    return Compare(evaluator, Operator(name), input, other);
  }
  if (name == "defined") return !input.is(Kind::kUndefined);
  if (name == "undefined") return input.is(Kind::kUndefined);
  if (name == "none") return input.is(Kind::kNone);
  if (name == "boolean") return input.is(Kind::kBool);
  if (name == "true" || name == "false") return input.is(Kind::kBool) && (input.integer() != 0) == (name == "true");
  if (name == "integer") return input.is(Kind::kInt);
  if (name == "float") return input.is(Kind::kFloat);
  if (name == "number") return input.is_number();
  if (name == "string") return input.is_string();
  if (name == "mapping") return input.is(Kind::kDict);
  if (name == "iterable") return input.is_iterable();
  if (name == "callable") return input.is(Kind::kFunction) || input.is(Kind::kLoop) || input.is(Kind::kUndefined);
  if (name == "escaped") return input.markup();
  if (name == "odd" || name == "even") return Divides(evaluator, input, 2, name == "odd" ? 1 : 0);
  if (name == "sequence") {
    // Something with a length and items, which Jinja's Undefined claims to be.
    return input.is(Kind::kUndefined) || input.is_string() || input.is_sequence() || input.is(Kind::kDict) ||
           input.is(Kind::kRange);
  }
  if (name == "lower" || name == "upper") {
    ASSIGN_OR_RETURN(std::string text, ToText(evaluator, input));
    ASSIGN_OR_RETURN(const Value result, CallStringMethod(evaluator, Value::String(std::move(text)), "is" + name, {}));
    return IsTrue(result);
  }
  // filter, test
  if (!input.is_string()) return evaluator->Refuse("the test ", name, " of a ", TypeName(input));
  return name == "filter" ? IsJinjaFilter(input.text()) : IsJinjaTest(input.text());
}

}  // namespace trireme::jinja
