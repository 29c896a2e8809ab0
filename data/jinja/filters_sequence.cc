// Jinja's filters on sequences; long because there are twenty of them, sharing how they read attributes and compare.
#include <absl/strings/numbers.h>
#include <absl/strings/str_split.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "data/jinja/evaluator.h"
#include "data/jinja/syntax/python_text.h"

namespace trireme::jinja {
namespace {

Result IteratorOf(Evaluator* evaluator, std::vector<Value> items) {
  ASSIGN_OR_RETURN(const Value list, evaluator->NewList(std::move(items)));
  ASSIGN_OR_RETURN(auto iterator, evaluator->Iterate(list));
  return evaluator->NewIterator(std::move(iterator));
}

Result First(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  RETURN_IF_ERROR(Bind(evaluator, "first", arguments, {}, 0).status());
  ASSIGN_OR_RETURN(const auto iterator, evaluator->Iterate(input));
  Value value;
  ASSIGN_OR_RETURN(const bool more, iterator->Next(evaluator, &value));
  return more ? value : Value::Undefined("No first item, sequence was empty.");
}

Result Last(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  RETURN_IF_ERROR(Bind(evaluator, "last", arguments, {}, 0).status());
  if (input.is(Kind::kIterator)) return evaluator->Raise("'generator' object is not reversible");
  if (input.is(Kind::kUndefined)) return evaluator->Raise("'Undefined' object is not reversible");
  ASSIGN_OR_RETURN(const std::vector<Value> items, evaluator->ToVector(input));
  return items.empty() ? Value::Undefined("No last item, sequence was empty.") : items.back();
}

Result LengthFilter(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  RETURN_IF_ERROR(Bind(evaluator, "length", arguments, {}, 0).status());
  ASSIGN_OR_RETURN(const int64_t length, Length(evaluator, input));
  return Value::Int(length);
}

Result List(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  RETURN_IF_ERROR(Bind(evaluator, "list", arguments, {}, 0).status());
  ASSIGN_OR_RETURN(std::vector<Value> items, evaluator->ToVector(input));
  return evaluator->NewList(std::move(items));
}

Result Reverse(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  RETURN_IF_ERROR(Bind(evaluator, "reverse", arguments, {}, 0).status());
  if (input.is_string()) return Slice(evaluator, input, Value::None(), Value::None(), Value::Int(-1));
  ASSIGN_OR_RETURN(std::vector<Value> items, evaluator->ToVector(input));
  std::reverse(items.begin(), items.end());
  const bool was_iterator = input.is(Kind::kIterator) || input.is(Kind::kUndefined);
  if (was_iterator) return evaluator->NewList(std::move(items));  // Jinja falls back to a list
  return IteratorOf(evaluator, std::move(items));
}

// jinja2.filters.make_attrgetter. Without an attribute, the item itself.
class Getter {
 public:
  static absl::StatusOr<Getter> Make(Evaluator* evaluator, const Value& attribute, Value otherwise = Value()) {
    Getter getter;
    getter.otherwise_ = std::move(otherwise);
    if (attribute.is(Kind::kMissing) || attribute.is(Kind::kNone)) return getter;
    if (attribute.is_integer()) {
      getter.parts_.push_back(attribute);
      return getter;
    }
    if (!attribute.is_string()) return evaluator->Refuse("an attribute that is a ", TypeName(attribute));
    for (const absl::string_view part : absl::StrSplit(attribute.text(), '.')) {
      int64_t index;
      const bool digits = !part.empty() && part.find_first_not_of("0123456789") == absl::string_view::npos;
      getter.parts_.push_back(digits && absl::SimpleAtoi(part, &index) ? Value::Int(index)
                                                                       : Value::String(std::string(part)));
    }
    return getter;
  }

  Result operator()(Evaluator* evaluator, Value item) const {
    for (const Value& part : parts_) {
      ASSIGN_OR_RETURN(item, GetItem(evaluator, item, part));
      if (!otherwise_.is(Kind::kMissing) && !otherwise_.is(Kind::kNone) && item.is(Kind::kUndefined)) item = otherwise_;
    }
    return item;
  }

 private:
  std::vector<Value> parts_;
  Value otherwise_;
};

// What sorting and comparing look at.
Result Compared(Evaluator* evaluator, Value value, bool case_sensitive) {
  if (case_sensitive || !value.is_string()) return value;
  RETURN_IF_ERROR(CheckCase(evaluator, "comparing without regard to case", value.text()));
  return evaluator->NewString(AsciiLower(value.text()));
}

// A stable order of `keys`: their indices. Python's `reverse` keeps equal ones in order as well.
absl::StatusOr<std::vector<size_t>> SortedOrder(Evaluator* evaluator, const std::vector<Value>& keys, bool reverse) {
  RETURN_IF_ERROR(evaluator->Charge(static_cast<int64_t>(keys.size()) * 16));
  for (const Value& key : keys) {
    if (key.is(Kind::kFloat) && std::isnan(key.number())) return evaluator->Refuse("sorting NaN");
  }
  std::vector<size_t> order(keys.size()), merged(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) order[i] = i;
  for (size_t width = 1; width < keys.size(); width *= 2) {
    for (size_t begin = 0; begin < keys.size(); begin += 2 * width) {
      const size_t middle = std::min(begin + width, keys.size()), end = std::min(begin + 2 * width, keys.size());
      size_t left = begin, right = middle, out = begin;
      while (left < middle && right < end) {
        const Value &a = keys[order[left]], &b = keys[order[right]];
        ASSIGN_OR_RETURN(const bool right_first,
                         reverse ? Compare(evaluator, "<", a, b) : Compare(evaluator, "<", b, a));
        merged[out++] = right_first ? order[right++] : order[left++];
      }
      while (left < middle) merged[out++] = order[left++];
      while (right < end) merged[out++] = order[right++];
    }
    order.swap(merged);
  }
  return order;
}

Result Sort(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const std::vector<Value> values,
                   Bind(evaluator, "sort", arguments, {"reverse", "case_sensitive", "attribute"}, 0));
  std::vector<Getter> getters;
  if (values[2].is_string()) {
    for (const absl::string_view attribute : absl::StrSplit(values[2].text(), ',')) {
      ASSIGN_OR_RETURN(Getter getter, Getter::Make(evaluator, Value::String(std::string(attribute))));
      getters.push_back(std::move(getter));
    }
  } else {
    ASSIGN_OR_RETURN(Getter getter, Getter::Make(evaluator, values[2]));
    getters.push_back(std::move(getter));
  }
  ASSIGN_OR_RETURN(const std::vector<Value> items, evaluator->ToVector(input));
  std::vector<Value> keys;
  for (const Value& item : items) {
    std::vector<Value> parts;  // Jinja compares lists of attributes
    for (const Getter& getter : getters) {
      ASSIGN_OR_RETURN(Value part, getter(evaluator, item));
      ASSIGN_OR_RETURN(part, Compared(evaluator, std::move(part), IsTrue(values[1])));
      if (part.is(Kind::kFloat) && std::isnan(part.number())) return evaluator->Refuse("sorting NaN");
      parts.push_back(std::move(part));
    }
    ASSIGN_OR_RETURN(Value key, evaluator->NewList(std::move(parts)));
    keys.push_back(std::move(key));
  }
  ASSIGN_OR_RETURN(const std::vector<size_t> order, SortedOrder(evaluator, keys, IsTrue(values[0])));
  std::vector<Value> sorted;
  for (const size_t i : order) sorted.push_back(items[i]);
  return evaluator->NewList(std::move(sorted));
}

Result DictSort(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const std::vector<Value> values,
                   Bind(evaluator, "dictsort", arguments, {"case_sensitive", "by", "reverse"}, 0));
  const std::string by = values[1].is(Kind::kMissing) ? "key" : values[1].is_string() ? values[1].text() : "";
  if (by != "key" && by != "value") return evaluator->Raise("You can only sort by either \"key\" or \"value\"");
  if (input.is(Kind::kUndefined)) return evaluator->RaiseUndefined(input);
  if (!input.is(Kind::kDict)) return evaluator->Raise("'", TypeName(input), "' object has no attribute 'items'");
  const auto& entries = input.dict().entries;
  std::vector<Value> keys;
  for (const auto& [key, value] : entries) {
    ASSIGN_OR_RETURN(Value compared, Compared(evaluator, by == "key" ? key : value, IsTrue(values[0])));
    keys.push_back(std::move(compared));
  }
  ASSIGN_OR_RETURN(const std::vector<size_t> order, SortedOrder(evaluator, keys, IsTrue(values[2])));
  std::vector<Value> sorted;
  for (const size_t i : order) {
    ASSIGN_OR_RETURN(Value pair, evaluator->NewList({entries[i].first, entries[i].second}, Kind::kTuple));
    sorted.push_back(std::move(pair));
  }
  return evaluator->NewList(std::move(sorted));
}

// Raises, as Jinja's generator does, when the first item is asked for.
class ItemsFilter : public IteratorObject {
 public:
  explicit ItemsFilter(Value input) : input_(std::move(input)) { depth = input_.depth() + 1; }

  absl::StatusOr<bool> Next(Evaluator* evaluator, Value* value) override {
    if (input_.is(Kind::kUndefined)) return false;
    if (source_ == nullptr) {
      if (!input_.is(Kind::kDict)) return evaluator->Raise("Can only get item pairs from a mapping.");
      ASSIGN_OR_RETURN(const Value view, CallMethod(evaluator, input_, "items", {}));
      ASSIGN_OR_RETURN(source_, evaluator->Iterate(view));
    }
    return source_->Next(evaluator, value);
  }

 private:
  Value input_;
  std::shared_ptr<IteratorObject> source_;
};

Result Items(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  RETURN_IF_ERROR(Bind(evaluator, "items", arguments, {}, 0).status());
  return evaluator->NewIterator(std::make_shared<ItemsFilter>(input));
}

Result Join(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const std::vector<Value> values, Bind(evaluator, "join", arguments, {"d", "attribute"}, 0));
  ASSIGN_OR_RETURN(const Getter getter, Getter::Make(evaluator, values[1]));
  std::string separator;
  if (!values[0].is(Kind::kMissing)) {
    ASSIGN_OR_RETURN(separator, ToText(evaluator, values[0]));
  }
  ASSIGN_OR_RETURN(const auto iterator, evaluator->Iterate(input));
  std::string text;
  for (bool first = true;; first = false) {
    Value item;
    ASSIGN_OR_RETURN(const bool more, iterator->Next(evaluator, &item));
    if (!more) return evaluator->NewString(std::move(text));
    ASSIGN_OR_RETURN(item, getter(evaluator, std::move(item)));
    ASSIGN_OR_RETURN(const std::string next, ToText(evaluator, item));
    RETURN_IF_ERROR(evaluator->Charge(static_cast<int64_t>(separator.size() + next.size())));
    if (!first) text += separator;
    text += next;
  }
}

Result Sum(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const std::vector<Value> values, Bind(evaluator, "sum", arguments, {"attribute", "start"}, 0));
  ASSIGN_OR_RETURN(const Getter getter, Getter::Make(evaluator, values[0]));
  Value sum = values[1].is(Kind::kMissing) ? Value::Int(0) : values[1];
  if (sum.is_string()) return evaluator->Raise("sum() can't sum strings [use ''.join(seq) instead]");
  ASSIGN_OR_RETURN(const std::vector<Value> items, evaluator->ToVector(input));
  for (const Value& item : items) {
    ASSIGN_OR_RETURN(const Value part, getter(evaluator, item));
    if (part.is(Kind::kFloat)) return evaluator->Refuse("the filter sum of floats");
    ASSIGN_OR_RETURN(sum, Binary(evaluator, "+", sum, part));
  }
  return sum;
}

Result Extreme(Evaluator* evaluator, const Value& input, const CallArguments& arguments, const char* op) {
  ASSIGN_OR_RETURN(const std::vector<Value> values,
                   Bind(evaluator, "min/max", arguments, {"case_sensitive", "attribute"}, 0));
  ASSIGN_OR_RETURN(const Getter getter, Getter::Make(evaluator, values[1]));
  ASSIGN_OR_RETURN(const std::vector<Value> items, evaluator->ToVector(input));
  if (items.empty()) return Value::Undefined("No aggregated item, sequence was empty.");
  Value best, best_key;
  for (const Value& item : items) {
    ASSIGN_OR_RETURN(Value key, getter(evaluator, item));
    ASSIGN_OR_RETURN(key, Compared(evaluator, std::move(key), IsTrue(values[0])));
    if (!best.is(Kind::kMissing)) {
      ASSIGN_OR_RETURN(const bool better, Compare(evaluator, op, key, best_key));
      if (!better) continue;
    }
    best = item;
    best_key = std::move(key);
  }
  return best;
}

Result Min(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  return Extreme(evaluator, input, arguments, "<");
}
Result Max(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  return Extreme(evaluator, input, arguments, ">");
}

Result Unique(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const std::vector<Value> values,
                   Bind(evaluator, "unique", arguments, {"case_sensitive", "attribute"}, 0));
  ASSIGN_OR_RETURN(const Getter getter, Getter::Make(evaluator, values[1]));
  ASSIGN_OR_RETURN(const std::vector<Value> items, evaluator->ToVector(input));
  std::vector<Value> kept, keys;
  for (const Value& item : items) {
    ASSIGN_OR_RETURN(Value key, getter(evaluator, item));
    ASSIGN_OR_RETURN(key, Compared(evaluator, std::move(key), IsTrue(values[0])));
    if (key.is(Kind::kList) || key.is(Kind::kDict)) return evaluator->Raise("unhashable type: '", TypeName(key), "'");
    RETURN_IF_ERROR(evaluator->Charge(static_cast<int64_t>(keys.size())));
    if (std::any_of(keys.begin(), keys.end(), [&](const Value& other) { return Equal(other, key); })) continue;
    keys.push_back(std::move(key));
    kept.push_back(item);
  }
  return IteratorOf(evaluator, std::move(kept));
}

absl::StatusOr<int64_t> Count(Evaluator* evaluator, const Value& value) {
  if (!value.is_integer())
    return evaluator->Raise("'", TypeName(value), "' object cannot be interpreted as an integer");
  if (value.integer() <= 0) return evaluator->Refuse("a count that is not positive");
  return value.integer();
}

Result Batch(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const std::vector<Value> values, Bind(evaluator, "batch", arguments, {"linecount", "fill_with"}, 1));
  ASSIGN_OR_RETURN(const int64_t size, Count(evaluator, values[0]));
  ASSIGN_OR_RETURN(const std::vector<Value> items, evaluator->ToVector(input));
  std::vector<Value> batches;
  for (size_t at = 0; at < items.size(); at += size) {
    std::vector<Value> batch(items.begin() + at, items.begin() + std::min<size_t>(items.size(), at + size));
    if (!values[1].is(Kind::kMissing) && !values[1].is(Kind::kNone)) {
      RETURN_IF_ERROR(evaluator->Charge(size < INT32_MAX ? size * static_cast<int64_t>(sizeof(Value)) : INT64_MAX));
      batch.resize(size, values[1]);
    }
    ASSIGN_OR_RETURN(Value list, evaluator->NewList(std::move(batch)));
    batches.push_back(std::move(list));
  }
  return IteratorOf(evaluator, std::move(batches));
}

// map, select, reject, selectattr and rejectattr: nothing is done before an item is asked for.
class LazyFilter : public IteratorObject {
 public:
  LazyFilter(Value input, CallArguments arguments) : input_(std::move(input)), arguments_(std::move(arguments)) {
    depth = input_.depth();
    for (const Value& value : arguments_.positional) depth = std::max(depth, value.depth());
    for (const auto& named : arguments_.named) depth = std::max(depth, named.second.depth());
    ++depth;
  }

  absl::StatusOr<bool> Next(Evaluator* evaluator, Value* value) override {
    if (source_ == nullptr) {
      if (!IsTrue(input_)) return false;
      RETURN_IF_ERROR(Prepare(evaluator));
      ASSIGN_OR_RETURN(source_, evaluator->Iterate(input_));
    }
    while (true) {
      Value item;
      ASSIGN_OR_RETURN(const bool more, source_->Next(evaluator, &item));
      if (!more) return false;
      RETURN_IF_ERROR(evaluator->Charge(16));
      ASSIGN_OR_RETURN(const bool given, Give(evaluator, std::move(item), value));
      if (given) return true;
    }
  }

 protected:
  virtual absl::Status Prepare(Evaluator* evaluator) = 0;
  virtual absl::StatusOr<bool> Give(Evaluator* evaluator, Value item, Value* value) = 0;

  Value input_;
  CallArguments arguments_;

 private:
  std::shared_ptr<IteratorObject> source_;
};

class MapFilter : public LazyFilter {
 public:
  using LazyFilter::LazyFilter;

 private:
  absl::Status Prepare(Evaluator* evaluator) override {
    auto& named = arguments_.named;
    const auto is_attribute = [](const auto& argument) { return argument.first == "attribute"; };
    by_attribute_ = arguments_.positional.empty() && std::any_of(named.begin(), named.end(), is_attribute);
    if (by_attribute_) {
      ASSIGN_OR_RETURN(const std::vector<Value> values,
                       Bind(evaluator, "map", arguments_, {"attribute", "default"}, 0));
      ASSIGN_OR_RETURN(getter_, Getter::Make(evaluator, values[0], values[1]));
      return absl::OkStatus();
    }
    if (arguments_.positional.empty()) return evaluator->Raise("map requires a filter argument");
    if (!arguments_.positional[0].is_string())
      return evaluator->Refuse("map by a ", TypeName(arguments_.positional[0]));
    name_ = arguments_.positional[0].text();
    arguments_.positional.erase(arguments_.positional.begin());
    if (!IsJinjaFilter(name_)) return evaluator->Raise("No filter named '", name_, "'.");
    return absl::OkStatus();
  }
  absl::StatusOr<bool> Give(Evaluator* evaluator, Value item, Value* value) override {
    if (by_attribute_) {
      ASSIGN_OR_RETURN(*value, getter_(evaluator, std::move(item)));
    } else {
      ASSIGN_OR_RETURN(*value, ApplyFilter(evaluator, name_, item, arguments_));
    }
    return true;
  }

  bool by_attribute_ = false;
  Getter getter_;
  std::string name_;
};

class SelectFilter : public LazyFilter {
 public:
  SelectFilter(Value input, CallArguments arguments, bool by_attribute, bool keeps)
      : LazyFilter(std::move(input), std::move(arguments)), by_attribute_(by_attribute), keeps_(keeps) {}

 private:
  absl::Status Prepare(Evaluator* evaluator) override {
    auto& positional = arguments_.positional;
    if (by_attribute_) {
      if (positional.empty()) return evaluator->Raise("Missing parameter for attribute name");
      ASSIGN_OR_RETURN(getter_, Getter::Make(evaluator, positional[0]));
      positional.erase(positional.begin());
    }
    if (positional.empty()) return absl::OkStatus();
    if (!positional[0].is_string()) return evaluator->Refuse("select by a ", TypeName(positional[0]));
    test_ = positional[0].text();
    positional.erase(positional.begin());
    if (!IsJinjaTest(test_)) return evaluator->Raise("No test named '", test_, "'.");
    return absl::OkStatus();
  }
  absl::StatusOr<bool> Give(Evaluator* evaluator, Value item, Value* value) override {
    ASSIGN_OR_RETURN(const Value tested, getter_(evaluator, item));
    bool passes = IsTrue(tested);
    if (!test_.empty()) {
      ASSIGN_OR_RETURN(passes, ApplyTest(evaluator, test_, tested, arguments_));
    }
    *value = std::move(item);
    return passes == keeps_;
  }

  const bool by_attribute_, keeps_;
  Getter getter_;
  std::string test_;
};

Result Map(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  return evaluator->NewIterator(std::make_shared<MapFilter>(input, arguments));
}
template <bool by_attribute, bool keeps>
Result Select(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  return evaluator->NewIterator(std::make_shared<SelectFilter>(input, arguments, by_attribute, keeps));
}

Result SliceFilter(Evaluator* evaluator, const Value& input, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const std::vector<Value> values, Bind(evaluator, "slice", arguments, {"slices", "fill_with"}, 1));
  ASSIGN_OR_RETURN(const int64_t slices, Count(evaluator, values[0]));
  ASSIGN_OR_RETURN(const std::vector<Value> items, evaluator->ToVector(input));
  RETURN_IF_ERROR(evaluator->Charge(slices < INT32_MAX ? slices * 64 : INT64_MAX));
  const int64_t each = static_cast<int64_t>(items.size()) / slices, extra = static_cast<int64_t>(items.size()) % slices;
  std::vector<Value> lists;
  for (int64_t i = 0, at = 0; i < slices; ++i) {
    const int64_t size = each + (i < extra ? 1 : 0);
    std::vector<Value> slice(items.begin() + at, items.begin() + at + size);
    if (!values[1].is(Kind::kMissing) && !values[1].is(Kind::kNone) && i >= extra) slice.push_back(values[1]);
    at += size;
    ASSIGN_OR_RETURN(Value list, evaluator->NewList(std::move(slice)));
    lists.push_back(std::move(list));
  }
  return IteratorOf(evaluator, std::move(lists));
}

}  // namespace

FilterFunction FindSequenceFilter(const std::string& name) {
  static const auto* const filters = new std::map<absl::string_view, FilterFunction>{
      {"batch", Batch},
      {"count", LengthFilter},
      {"dictsort", DictSort},
      {"first", First},
      {"items", Items},
      {"join", Join},
      {"last", Last},
      {"length", LengthFilter},
      {"list", List},
      {"map", Map},
      {"max", Max},
      {"min", Min},
      {"reject", Select<false, false>},
      {"rejectattr", Select<true, false>},
      {"reverse", Reverse},
      {"select", Select<false, true>},
      {"selectattr", Select<true, true>},
      {"slice", SliceFilter},
      {"sort", Sort},
      {"sum", Sum},
      {"unique", Unique},
  };
  const auto found = filters->find(name);
  return found == filters->end() ? nullptr : found->second;
}

}  // namespace trireme::jinja
