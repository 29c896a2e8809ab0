// data/jinja/syntax/value.h
// What a template computes with: Python's values as far as templates meet them.
#ifndef TRIREME_DATA_JINJA_SYNTAX_VALUE_H_
#define TRIREME_DATA_JINJA_SYNTAX_VALUE_H_

#include <absl/strings/string_view.h>

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace trireme::jinja {

enum class Kind : uint8_t {
  kMissing,    // a variable without a value; never seen by an operation
  kUndefined,  // Jinja's Undefined
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,  // UTF-8; Markup is one with a mark
  kList,
  kTuple,
  kDict,   // keys are strings and integers
  kView,   // dict.items(), .keys(), .values()
  kRange,  // range(), of integers
  kIterator,
  kNamespace,
  kLoop,
  kFunction,
};

// Everything that has contents. Immutable, except iterators, namespaces and loops.
struct Object {
  virtual ~Object() = default;
  int depth = 0;  // of what it holds, so that nothing recurses without bound
};

struct StringObject;
struct ListObject;
struct DictObject;
struct ViewObject;
struct RangeObject;

// Cheap to copy. Namespaces, loops and macros' variables belong to the evaluation (a cycle among them is no leak), all
// else is shared.
class Value {
 public:
  Value() = default;
  static Value Undefined(std::string message);  // what an operation on it says
  static Value None() { return Value(Kind::kNone); }
  static Value Bool(bool value);
  static Value Int(int64_t value);
  static Value Float(double value);
  static Value String(std::string text, bool markup = false);
  static Value List(std::vector<Value> items);
  static Value Tuple(std::vector<Value> items);
  static Value Dict(std::shared_ptr<DictObject> dict);
  Value(Kind kind, std::shared_ptr<Object> object) : kind_(kind), object_(std::move(object)) {}

  Kind kind() const { return kind_; }
  bool is(Kind kind) const { return kind_ == kind; }
  bool is_string() const { return kind_ == Kind::kString; }
  bool is_sequence() const { return kind_ == Kind::kList || kind_ == Kind::kTuple; }
  bool is_integer() const { return kind_ == Kind::kInt || kind_ == Kind::kBool; }  // as in Python, True is 1
  bool is_number() const { return is_integer() || kind_ == Kind::kFloat; }
  bool is_iterable() const;
  bool markup() const;
  int depth() const { return object_ == nullptr ? 0 : object_->depth; }
  const Object* object() const { return object_.get(); }

  int64_t integer() const { return integer_; }
  double number() const { return kind_ == Kind::kFloat ? float_ : static_cast<double>(integer_); }
  const std::string& text() const;          // of a string; of kUndefined, its message
  const std::vector<Value>& items() const;  // of a list or tuple
  const DictObject& dict() const;
  template <typename T>
  T* As() const {
    return static_cast<T*>(object_.get());
  }
  template <typename T>
  std::shared_ptr<T> Share() const {
    return std::static_pointer_cast<T>(object_);
  }

 private:
  explicit Value(Kind kind) : kind_(kind) {}

  Kind kind_ = Kind::kMissing;
  union {
    int64_t integer_ = 0;
    double float_;
  };
  std::shared_ptr<Object> object_;
};

struct StringObject : Object {
  std::string text;
  bool markup = false;
};

struct ListObject : Object {
  std::vector<Value> items;
};

struct DictObject : Object {
  // The value of `key`, or null.
  const Value* Find(absl::string_view key) const;
  const Value* Find(const Value& key) const;
  void Set(Value key, Value value);  // keeps the place of a key that is there
  void Set(const std::string& key, Value value) { Set(Value::String(key), std::move(value)); }

  std::vector<std::pair<Value, Value>> entries;

 private:
  std::unordered_map<std::string, size_t> index_;  // the texts among the keys, of large ones
};

enum class ViewOf : uint8_t { kItems, kKeys, kValues };

struct ViewObject : Object {
  Value dict;
  ViewOf of;
  Value At(size_t index) const;
};

struct RangeObject : Object {
  int64_t start, step, length;
};

// The name that Python has for the type: "str", "NoneType", ...
const char* TypeName(const Value& value);

bool IsTrue(const Value& value);

// Python's ==. Never fails.
bool Equal(const Value& a, const Value& b);

// Python's `is`.
bool Same(const Value& a, const Value& b);

}  // namespace trireme::jinja

#endif  // TRIREME_DATA_JINJA_SYNTAX_VALUE_H_
