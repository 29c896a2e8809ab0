#include "data/jinja/syntax/value.h"

#include <algorithm>
#include <cmath>

namespace trireme::jinja {
namespace {

constexpr size_t kIndexedFrom = 16;  // entries; below, a scan is faster

Value Sequence(Kind kind, std::vector<Value> items) {
  auto object = std::make_shared<ListObject>();
  for (const Value& item : items) object->depth = std::max(object->depth, item.depth());
  ++object->depth;
  object->items = std::move(items);
  return Value(kind, std::move(object));
}

bool EqualNumbers(const Value& a, const Value& b) {
  if (a.is_integer() && b.is_integer()) return a.integer() == b.integer();
  if (a.is(Kind::kFloat) && b.is(Kind::kFloat)) return a.number() == b.number();
  // An integer and a float are equal only if the float holds just that integer.
  const double number = a.is(Kind::kFloat) ? a.number() : b.number();
  const int64_t integer = a.is(Kind::kFloat) ? b.integer() : a.integer();
  return number >= -0x1p63 && number < 0x1p63 && std::floor(number) == number &&
         static_cast<int64_t>(number) == integer;
}

}  // namespace

Value Value::Undefined(std::string message) {
  Value value = String(std::move(message));
  value.kind_ = Kind::kUndefined;
  return value;
}

Value Value::Bool(bool value) {
  Value result(Kind::kBool);
  result.integer_ = value;
  return result;
}

Value Value::Int(int64_t value) {
  Value result(Kind::kInt);
  result.integer_ = value;
  return result;
}

Value Value::Float(double value) {
  Value result(Kind::kFloat);
  result.float_ = value;
  return result;
}

Value Value::String(std::string text, bool markup) {
  auto object = std::make_shared<StringObject>();
  object->text = std::move(text);
  object->markup = markup;
  return Value(Kind::kString, std::move(object));
}

Value Value::List(std::vector<Value> items) { return Sequence(Kind::kList, std::move(items)); }
Value Value::Tuple(std::vector<Value> items) { return Sequence(Kind::kTuple, std::move(items)); }
Value Value::Dict(std::shared_ptr<DictObject> dict) { return Value(Kind::kDict, std::move(dict)); }

bool Value::is_iterable() const {
  switch (kind_) {
    case Kind::kNone:
    case Kind::kBool:
    case Kind::kInt:
    case Kind::kFloat:
    case Kind::kNamespace:
    case Kind::kFunction:
      return false;
    default:
      return true;
  }
}

bool Value::markup() const { return kind_ == Kind::kString && As<StringObject>()->markup; }
const std::string& Value::text() const { return As<StringObject>()->text; }
const std::vector<Value>& Value::items() const { return As<ListObject>()->items; }
const DictObject& Value::dict() const { return *As<DictObject>(); }

const Value* DictObject::Find(absl::string_view key) const {
  if (!index_.empty()) {
    const auto found = index_.find(std::string(key));
    return found == index_.end() ? nullptr : &entries[found->second].second;
  }
  for (const auto& [name, value] : entries) {
    if (name.is_string() && name.text() == key) return &value;
  }
  return nullptr;
}

const Value* DictObject::Find(const Value& key) const {
  if (key.is_string()) return Find(absl::string_view(key.text()));
  for (const auto& [name, value] : entries) {
    if (!name.is_string() && Equal(name, key)) return &value;
  }
  return nullptr;
}

void DictObject::Set(Value key, Value value) {
  depth = std::max(depth, value.depth() + 1);
  if (const Value* present = Find(key)) {
    *const_cast<Value*>(present) = std::move(value);
    return;
  }
  const size_t at = entries.size();
  entries.emplace_back(std::move(key), std::move(value));
  if (entries.size() < kIndexedFrom) return;
  for (size_t i = index_.empty() ? 0 : at; i <= at; ++i) {
    if (entries[i].first.is_string()) index_[entries[i].first.text()] = i;
  }
}

Value ViewObject::At(size_t index) const {
  const auto& [key, value] = dict.dict().entries[index];
  if (of == ViewOf::kKeys) return key;
  if (of == ViewOf::kValues) return value;
  return Value::Tuple({key, value});
}

const char* TypeName(const Value& value) {
  switch (value.kind()) {
    case Kind::kMissing:
    case Kind::kUndefined:
      return "Undefined";
    case Kind::kNone:
      return "NoneType";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kString:
      return value.markup() ? "Markup" : "str";
    case Kind::kList:
      return "list";
    case Kind::kTuple:
      return "tuple";
    case Kind::kDict:
      return "dict";
    case Kind::kView: {
      const ViewOf of = value.As<ViewObject>()->of;
      return of == ViewOf::kItems ? "dict_items" : of == ViewOf::kKeys ? "dict_keys" : "dict_values";
    }
    case Kind::kRange:
      return "range";
    case Kind::kIterator:
      return "generator";
    case Kind::kNamespace:
      return "Namespace";
    case Kind::kLoop:
      return "LoopContext";
    case Kind::kFunction:
      return "function";
  }
  return "object";
}

bool IsTrue(const Value& value) {
  switch (value.kind()) {
    case Kind::kMissing:
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
    case Kind::kInt:
      return value.integer() != 0;
    case Kind::kFloat:
      return value.number() != 0;
    case Kind::kString:
      return !value.text().empty();
    case Kind::kList:
    case Kind::kTuple:
      return !value.items().empty();
    case Kind::kDict:
      return !value.dict().entries.empty();
    case Kind::kView:
      return !value.As<ViewObject>()->dict.dict().entries.empty();
    case Kind::kRange:
      return value.As<RangeObject>()->length != 0;
    case Kind::kIterator:
    case Kind::kNamespace:
    case Kind::kLoop:  // exists in an iteration only, so it has a length
    case Kind::kFunction:
      return true;
  }
  return false;
}

bool Equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) return EqualNumbers(a, b);
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::kMissing:
    case Kind::kUndefined:
    case Kind::kNone:
      return true;
    case Kind::kString:
      return a.text() == b.text();
    case Kind::kList:
    case Kind::kTuple:
      return a.object() == b.object() ||
             std::equal(a.items().begin(), a.items().end(), b.items().begin(), b.items().end(),
                        [](const Value& x, const Value& y) { return Same(x, y) || Equal(x, y); });
    case Kind::kDict: {
      if (a.object() == b.object()) return true;
      if (a.dict().entries.size() != b.dict().entries.size()) return false;
      for (const auto& [key, value] : a.dict().entries) {
        const Value* other = b.dict().Find(key);
        if (other == nullptr || !(Same(value, *other) || Equal(value, *other))) return false;
      }
      return true;
    }
    case Kind::kRange: {
      const auto &x = *a.As<RangeObject>(), &y = *b.As<RangeObject>();
      return x.length == y.length && (x.length == 0 || (x.start == y.start && (x.length == 1 || x.step == y.step)));
    }
    default:
      return a.object() == b.object();
  }
}

bool Same(const Value& a, const Value& b) {
  if (a.kind() != b.kind()) return false;
  if (a.object() != nullptr) return a.object() == b.object();
  return a.is(Kind::kFloat) ? a.number() == b.number() : a.integer() == b.integer();
}

}  // namespace trireme::jinja
