// Methods of dicts, lists and loops; those of str are in string_methods.cc.
#include <algorithm>

#include "data/jinja/evaluator.h"

namespace trireme::jinja {
namespace {

using Names = std::initializer_list<absl::string_view>;

bool IsOneOf(absl::string_view name, const Names& names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

Result DictMethod(Evaluator* evaluator, const Value& self, const std::string& name, const CallArguments& arguments) {
  if (name == "get") {
    if (!arguments.named.empty()) return evaluator->Raise("dict.get() takes no keyword arguments");
    ASSIGN_OR_RETURN(const std::vector<Value> values, Bind(evaluator, "get", arguments, {"key", "default"}, 1));
    const Value& key = values[0];
    if (key.is(Kind::kList) || key.is(Kind::kDict)) return evaluator->Raise("unhashable type: '", TypeName(key), "'");
    const Value* found = self.dict().Find(key);
    if (found != nullptr) return *found;
    return values[1].is(Kind::kMissing) ? Value::None() : values[1];
  }
  RETURN_IF_ERROR(Bind(evaluator, name, arguments, {}, 0).status());
  if (name == "copy") return self;  // nothing can change either
  auto view = std::make_shared<ViewObject>();
  view->dict = self;
  view->of = name == "items" ? ViewOf::kItems : name == "keys" ? ViewOf::kKeys : ViewOf::kValues;
  view->depth = self.depth() + 1;
  return Value(Kind::kView, std::move(view));
}

Result SequenceMethod(Evaluator* evaluator, const Value& self, const std::string& name,
                      const CallArguments& arguments) {
  if (name == "copy") {
    RETURN_IF_ERROR(Bind(evaluator, name, arguments, {}, 0).status());
    return self;
  }
  if (!arguments.named.empty() || arguments.positional.size() != 1)
    return evaluator->Refuse(name, "() with other than one argument");
  const auto& items = self.items();
  const auto same = [&](const Value& item) {
    return Same(item, arguments.positional[0]) || Equal(item, arguments.positional[0]);
  };
  if (name == "count") return Value::Int(std::count_if(items.begin(), items.end(), same));
  const auto found = std::find_if(items.begin(), items.end(), same);
  if (found == items.end()) return evaluator->Raise("the value is not in the ", TypeName(self));
  return Value::Int(found - items.begin());
}

Result LoopMethod(Evaluator* evaluator, LoopObject* loop, const std::string& name, const CallArguments& arguments) {
  if (!arguments.named.empty()) return evaluator->Raise("loop.", name, "() takes no keyword arguments");
  if (name == "cycle") {
    if (arguments.positional.empty()) return evaluator->Raise("no items for cycling given");
    return arguments.positional[loop->index0 % arguments.positional.size()];
  }
  ASSIGN_OR_RETURN(Value now, evaluator->NewList(arguments.positional, Kind::kTuple));
  if (!loop->last_changed.is(Kind::kMissing) && Equal(loop->last_changed, now)) return Value::Bool(false);
  loop->last_changed = std::move(now);
  return Value::Bool(true);
}

}  // namespace

absl::StatusOr<std::vector<Value>> Bind(Evaluator* evaluator, absl::string_view what, const CallArguments& arguments,
                                        std::initializer_list<absl::string_view> names, size_t required) {
  if (arguments.positional.size() > names.size()) {
    return evaluator->Raise(what, " takes at most ", names.size(), " arguments (", arguments.positional.size(),
                            " given)");
  }
  std::vector<Value> values = arguments.positional;
  values.resize(names.size());
  for (const auto& [name, value] : arguments.named) {
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) return evaluator->Raise(what, " got an unexpected keyword argument '", name, "'");
    Value& slot = values[found - names.begin()];
    if (!slot.is(Kind::kMissing)) return evaluator->Raise(what, " got multiple values for argument '", name, "'");
    slot = value;
  }
  for (size_t i = 0; i < required; ++i) {
    if (values[i].is(Kind::kMissing))
      return evaluator->Raise(what, " is missing the argument '", *(names.begin() + i), "'");
  }
  return values;
}

Method FindMethod(const Value& object, const std::string& name) {
  const auto choose = [&](const Names& supported, const Names& forbidden, const Names& unsupported) {
    if (IsOneOf(name, supported)) return Method::kSupported;
    if (IsOneOf(name, forbidden)) return Method::kForbidden;
    return IsOneOf(name, unsupported) ? Method::kUnsupported : Method::kNone;
  };
  switch (object.kind()) {
    case Kind::kString: {
      const Method method = FindStringMethod(name);
      return method == Method::kSupported && object.markup() ? Method::kUnsupported : method;
    }
    case Kind::kDict:
      return choose({"copy", "get", "items", "keys", "values"}, {"clear", "pop", "popitem", "setdefault", "update"},
                    {"fromkeys"});
    case Kind::kList:
      return choose({"copy", "count", "index"},
                    {"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"}, {});
    case Kind::kTuple:
      return choose({"count", "index"}, {}, {});
    case Kind::kLoop:
      return choose({"cycle", "changed"}, {}, {});
    case Kind::kView:
      return choose({}, {}, {"isdisjoint", "mapping"});
    case Kind::kRange:
      return choose({}, {}, {"start", "stop", "step", "count", "index"});
    case Kind::kIterator:
      return choose({}, {},
                    {"close", "send", "throw", "gi_code", "gi_frame", "gi_running", "gi_suspended", "gi_yieldfrom"});
    case Kind::kFunction:
      return choose({}, {},
                    {"name", "arguments", "caller", "catch_kwargs", "catch_varargs", "explicit_caller", "fromkeys"});
    case Kind::kBool:
    case Kind::kInt:
      return choose({}, {},
                    {"as_integer_ratio", "bit_count", "bit_length", "conjugate", "denominator", "from_bytes", "imag",
                     "numerator", "real", "to_bytes"});
    case Kind::kFloat:
      return choose({}, {}, {"as_integer_ratio", "conjugate", "fromhex", "hex", "imag", "is_integer", "real"});
    default:
      return Method::kNone;
  }
}

Result CallMethod(Evaluator* evaluator, const Value& self, const std::string& name, const CallArguments& arguments) {
  switch (self.kind()) {
    case Kind::kString:
      return CallStringMethod(evaluator, self, name, arguments);
    case Kind::kDict:
      return DictMethod(evaluator, self, name, arguments);
    case Kind::kList:
    case Kind::kTuple:
      return SequenceMethod(evaluator, self, name, arguments);
    case Kind::kLoop:
      return LoopMethod(evaluator, self.As<LoopObject>(), name, arguments);
    default:
      return evaluator->Refuse("calling ", name, " of a ", TypeName(self));
  }
}

}  // namespace trireme::jinja
