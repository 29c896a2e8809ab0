// Attributes, items, slices and lengths.
#include <algorithm>

#include "data/jinja/evaluator.h"
#include "data/jinja/syntax/python_text.h"
#include "data/unicode/unicode.h"

namespace trireme::jinja {
namespace {

// Names a type as jinja2.utils.object_type_repr does.
std::string ObjectType(const Value& value) {
  switch (value.kind()) {
    case Kind::kNone:
      return "None";
    case Kind::kNamespace:
      return "jinja2.utils.Namespace object";
    case Kind::kLoop:
      return "jinja2.runtime.LoopContext object";
    default:
      return absl::StrCat(TypeName(value), " object");
  }
}

Value NoAttribute(const Value& object, const std::string& name) {
  return Value::Undefined(absl::StrCat("'", ObjectType(object), "' has no attribute '", name, "'"));
}

// The attribute `name` that Python finds on the object itself; kMissing: none.
Result OwnAttribute(Evaluator* evaluator, const Value& object, const std::string& name) {
  if (name.rfind("__", 0) == 0) {
    const bool is_item = object.is(Kind::kDict) && object.dict().Find(name) != nullptr;
    if (!is_item) return evaluator->Refuse("the attribute ", name);
    return Value();
  }
  if (object.is(Kind::kNamespace)) {
    const Value* value = object.As<NamespaceObject>()->Find(name);
    return value == nullptr ? Value() : *value;
  }
  if (object.is(Kind::kLoop)) {
    ASSIGN_OR_RETURN(Value value, object.As<LoopObject>()->Attribute(evaluator, name));
    if (!value.is(Kind::kMissing)) return value;
  }
  switch (FindMethod(object, name)) {
    case Method::kNone:
      return Value();
    case Method::kUnsupported:
      return evaluator->Refuse("the attribute ", name, " of ", TypeName(object));
    case Method::kForbidden:
      return Value::Undefined(
          absl::StrCat("access to attribute '", name, "' of '", TypeName(object), "' object is unsafe."));
    case Method::kSupported:
      break;
  }
  auto function = std::make_shared<FunctionObject>();
  function->type = FunctionObject::Type::kMethod;
  function->name = name;
  function->self = object;
  function->depth = object.depth() + 1;
  return Value(Kind::kFunction, std::move(function));
}

absl::StatusOr<std::optional<int64_t>> Bound(Evaluator* evaluator, const Value& value) {
  if (value.is(Kind::kNone)) return std::nullopt;
  if (value.is_integer()) return value.integer();
  if (value.is(Kind::kUndefined)) return evaluator->RaiseUndefined(value);
  return evaluator->Raise("slice indices must be integers or None or have an __index__ method");
}

}  // namespace

Result GetAttribute(Evaluator* evaluator, const Value& object, const std::string& name) {
  if (object.is(Kind::kUndefined)) return evaluator->RaiseUndefined(object);
  ASSIGN_OR_RETURN(Value value, OwnAttribute(evaluator, object, name));
  if (!value.is(Kind::kMissing)) return value;
  if (object.is(Kind::kDict)) {
    if (const Value* item = object.dict().Find(name)) return *item;
  }
  return NoAttribute(object, name);
}

Result GetItem(Evaluator* evaluator, const Value& object, const Value& key) {
  if (object.is(Kind::kUndefined)) return evaluator->RaiseUndefined(object);
  if (object.is(Kind::kDict)) {
    if (const Value* item = object.dict().Find(key)) return *item;
  }
  if (key.is_integer() && (object.is_sequence() || object.is_string() || object.is(Kind::kRange))) {
    ASSIGN_OR_RETURN(const int64_t length, Length(evaluator, object));
    const int64_t index = key.integer() < 0 ? key.integer() + length : key.integer();
    if (index >= 0 && index < length) {
      if (object.is_sequence()) return object.items()[index];
      if (object.is(Kind::kRange))
        return Value::Int(object.As<RangeObject>()->start + index * object.As<RangeObject>()->step);
      const std::string& text = object.text();
      const size_t begin = ByteOffset(text, index);
      const char* end;
      DecodeUtf8(text.data() + begin, &end);
      return evaluator->NewString(std::string(text.data() + begin, end), object.markup());
    }
  }
  if (key.is_string()) {
    ASSIGN_OR_RETURN(Value value, OwnAttribute(evaluator, object, key.text()));
    if (!value.is(Kind::kMissing)) return value;
    return NoAttribute(object, key.text());
  }
  // Only printed if the template goes wrong.
  const std::string shown = key.is_integer() ? absl::StrCat(key.integer()) : TypeName(key);
  return Value::Undefined(absl::StrCat(ObjectType(object), " has no element ", shown));
}

Result Slice(Evaluator* evaluator, const Value& object, const Value& start, const Value& stop, const Value& step) {
  if (object.is(Kind::kUndefined)) return evaluator->RaiseUndefined(object);
  if (object.is(Kind::kRange)) return evaluator->Refuse("a slice of range()");
  if (!object.is_sequence() && !object.is_string())
    return evaluator->Raise("'", TypeName(object), "' object is not subscriptable by a slice");
  ASSIGN_OR_RETURN(const std::optional<int64_t> first, Bound(evaluator, start));
  ASSIGN_OR_RETURN(const std::optional<int64_t> last, Bound(evaluator, stop));
  ASSIGN_OR_RETURN(const std::optional<int64_t> given_step, Bound(evaluator, step));
  const int64_t by = std::max(given_step.value_or(1), -INT64_MAX);
  if (by == 0) return evaluator->Raise("slice step cannot be zero");
  ASSIGN_OR_RETURN(const int64_t length, Length(evaluator, object));
  // This is what PySlice_AdjustIndices does.
  const int64_t low = by < 0 ? -1 : 0, high = by < 0 ? length - 1 : length;
  const auto adjust = [&](std::optional<int64_t> bound, int64_t otherwise) {
    if (!bound.has_value()) return otherwise;
    int64_t index = *bound;
    if (index < 0) index = index < -length ? low : std::max(index + length, low);
    return std::min(index, high);
  };
  const int64_t begin = adjust(first, by < 0 ? high : low), end = adjust(last, by < 0 ? low : high);
  int64_t count = 0;
  if (by > 0 && begin < end) count = (end - begin - 1) / by + 1;
  if (by < 0 && end < begin) count = (begin - end - 1) / -by + 1;
  if (object.is_string()) {
    const std::string& text = object.text();
    if (count == 0) return evaluator->NewString("", object.markup());
    if (by == 1) {
      const size_t from = ByteOffset(text, begin);
      const size_t size = ByteOffset(absl::string_view(text).substr(from), count);
      return evaluator->NewString(text.substr(from, size), object.markup());
    }
    RETURN_IF_ERROR(evaluator->Charge(static_cast<int64_t>(text.size()) * 16));
    ASSIGN_OR_RETURN(const std::vector<Value> characters, evaluator->ToVector(object));
    std::string out;
    for (int64_t i = 0; i < count; ++i) out += characters[begin + i * by].text();
    return evaluator->NewString(std::move(out), object.markup());
  }
  RETURN_IF_ERROR(evaluator->Charge(count * static_cast<int64_t>(sizeof(Value))));
  std::vector<Value> items;
  items.reserve(count);
  for (int64_t i = 0; i < count; ++i) items.push_back(object.items()[begin + i * by]);
  return evaluator->NewList(std::move(items), object.kind());
}

bool HasLength(const Value& value) {
  return value.is(Kind::kUndefined) || value.is_string() || value.is_sequence() || value.is(Kind::kDict) ||
         value.is(Kind::kView) || value.is(Kind::kRange) || value.is(Kind::kLoop);
}

absl::StatusOr<int64_t> Length(Evaluator* evaluator, const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return 0;
    case Kind::kString:
      return static_cast<int64_t>(CodePoints(value.text()));
    case Kind::kList:
    case Kind::kTuple:
      return static_cast<int64_t>(value.items().size());
    case Kind::kDict:
      return static_cast<int64_t>(value.dict().entries.size());
    case Kind::kView:
      return static_cast<int64_t>(value.As<ViewObject>()->dict.dict().entries.size());
    case Kind::kRange:
      return value.As<RangeObject>()->length;
    case Kind::kLoop:
      return value.As<LoopObject>()->Length(evaluator);
    default:
      return evaluator->Raise("object of type '", TypeName(value), "' has no len()");
  }
}

}  // namespace trireme::jinja
