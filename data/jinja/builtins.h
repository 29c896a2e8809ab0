// data/jinja/builtins.h
// Operations of Python and Jinja on values. All may fail: what raises in Python is an error here.
#ifndef TRIREME_DATA_JINJA_BUILTINS_H_
#define TRIREME_DATA_JINJA_BUILTINS_H_

#include <absl/strings/string_view.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "data/jinja/syntax/value.h"
#include "launch/base/status.h"

namespace trireme::jinja {

class Evaluator;

using Result = absl::StatusOr<Value>;

struct CallArguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

// The arguments in the order of `names`, kMissing where none is given; the first `required` must be.
absl::StatusOr<std::vector<Value>> Bind(Evaluator* evaluator, absl::string_view what, const CallArguments& arguments,
                                        std::initializer_list<absl::string_view> names, size_t required);

// operators.cc
Result Binary(Evaluator* evaluator, const std::string& op, const Value& left, const Value& right);
Result Negate(Evaluator* evaluator, const Value& value, bool negative);  // or unary plus
absl::StatusOr<bool> Compare(Evaluator* evaluator, const std::string& op, const Value& left, const Value& right);
absl::StatusOr<bool> Contains(Evaluator* evaluator, const Value& container, const Value& item);

// access.cc
Result GetAttribute(Evaluator* evaluator, const Value& object, const std::string& name);  // object.name
Result GetItem(Evaluator* evaluator, const Value& object, const Value& key);              // object[key]
Result Slice(Evaluator* evaluator, const Value& object, const Value& start, const Value& stop, const Value& step);
absl::StatusOr<int64_t> Length(Evaluator* evaluator, const Value& value);
bool HasLength(const Value& value);

// printing.cc
absl::StatusOr<std::string> ToText(Evaluator* evaluator, const Value& value);             // str()
absl::StatusOr<std::string> ToRepr(Evaluator* evaluator, const Value& value);             // repr()
Result ToJson(Evaluator* evaluator, const Value& value, const CallArguments& arguments);  // the filter tojson

// formatting.cc
Result FormatPercent(Evaluator* evaluator, const std::string& format, const Value& values);  // format % values
Result FormatBraces(Evaluator* evaluator, const std::string& format, const CallArguments& arguments);  // str.format

// methods.cc
enum class Method { kNone, kSupported, kUnsupported, kForbidden };  // kForbidden: changes what it is called on
Method FindMethod(const Value& object, const std::string& name);
Result CallMethod(Evaluator* evaluator, const Value& self, const std::string& name, const CallArguments& arguments);
Result CallStringMethod(Evaluator* evaluator, const Value& self, const std::string& name,
                        const CallArguments& arguments);
Method FindStringMethod(const std::string& name);
Result ReplaceText(Evaluator* evaluator, const std::string& text, const std::string& from, const std::string& to,
                   int64_t count);  // str.replace

// filters.cc, filters_sequence.cc, tests.cc. Unknown names are errors when used.
bool IsJinjaFilter(const std::string& name);
bool IsJinjaTest(const std::string& name);
Result ApplyFilter(Evaluator* evaluator, const std::string& name, const Value& input, const CallArguments& arguments);
absl::StatusOr<bool> ApplyTest(Evaluator* evaluator, const std::string& name, const Value& input,
                               const CallArguments& arguments);
using FilterFunction = Result (*)(Evaluator*, const Value&, const CallArguments&);
FilterFunction FindSequenceFilter(const std::string& name);  // or null

// globals.cc. kMissing: no such name.
Value Global(const std::string& name);
Result CallGlobal(Evaluator* evaluator, const std::string& name, const CallArguments& arguments);

// Refuses letters beyond ASCII that have a case, for `operation`, which would need Unicode's mappings.
absl::Status CheckCase(Evaluator* evaluator, absl::string_view operation, absl::string_view text);

}  // namespace trireme::jinja

#endif  // TRIREME_DATA_JINJA_BUILTINS_H_
