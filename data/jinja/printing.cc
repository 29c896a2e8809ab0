// Values as text: str(), repr() and JSON.
#include <algorithm>
#include <cmath>

#include "data/jinja/evaluator.h"
#include "data/jinja/syntax/python_text.h"

namespace trireme::jinja {
namespace {

// Text that grows as far as the evaluation may make it.
class TextWriter {
 public:
  explicit TextWriter(Evaluator* evaluator) : evaluator_(evaluator) {}

  std::string text;

 protected:
  absl::Status Add(absl::string_view more) {
    RETURN_IF_ERROR(evaluator_->Charge(static_cast<int64_t>(more.size())));
    text.append(more.data(), more.size());
    return absl::OkStatus();
  }

  Evaluator* evaluator_;
};

class Representer : public TextWriter {
 public:
  using TextWriter::TextWriter;

  absl::Status Append(const Value& value) {
    switch (value.kind()) {
      case Kind::kMissing:
      case Kind::kUndefined:
        return Add("Undefined");
      case Kind::kNone:
        return Add("None");
      case Kind::kBool:
        return Add(value.integer() != 0 ? "True" : "False");
      case Kind::kInt:
        return Add(absl::StrCat(value.integer()));
      case Kind::kFloat:
        return Add(ReprFloat(value.number()));
      case Kind::kString: {
        const std::string text = ReprText(value.text());
        return Add(value.markup() ? absl::StrCat("Markup(", text, ")") : text);
      }
      case Kind::kList:
        return AppendItems(value.items(), "[", "]");
      case Kind::kTuple:
        return AppendItems(value.items(), "(", value.items().size() == 1 ? ",)" : ")");
      case Kind::kDict: {
        RETURN_IF_ERROR(Add("{"));
        absl::string_view separator;
        for (const auto& [key, item] : value.dict().entries) {
          RETURN_IF_ERROR(Add(separator));
          RETURN_IF_ERROR(Append(key));
          RETURN_IF_ERROR(Add(": "));
          RETURN_IF_ERROR(Append(item));
          separator = ", ";
        }
        return Add("}");
      }
      case Kind::kView: {
        ASSIGN_OR_RETURN(std::vector<Value> items, evaluator_->ToVector(value));
        return AppendItems(items, absl::StrCat(TypeName(value), "(["), "])");
      }
      case Kind::kRange:
      case Kind::kIterator:
      case Kind::kNamespace:
      case Kind::kLoop:
      case Kind::kFunction:
        return evaluator_->Refuse("printing a ", TypeName(value));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status AppendItems(const std::vector<Value>& items, absl::string_view open, absl::string_view close) {
    RETURN_IF_ERROR(Add(open));
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) RETURN_IF_ERROR(Add(", "));
      RETURN_IF_ERROR(Append(items[i]));
    }
    return Add(close);
  }
};

// json.dumps.
class JsonWriter : public TextWriter {
 public:
  using TextWriter::TextWriter;

  absl::Status Append(const Value& value, int level) {
    switch (value.kind()) {
      case Kind::kNone:
        return Add("null");
      case Kind::kBool:
        return Add(value.integer() != 0 ? "true" : "false");
      case Kind::kInt:
        return Add(absl::StrCat(value.integer()));
      case Kind::kFloat: {
        const double number = value.number();
        if (std::isnan(number)) return Add("NaN");
        if (std::isinf(number)) return Add(number < 0 ? "-Infinity" : "Infinity");
        return Add(ReprFloat(number));
      }
      case Kind::kString:
        return Add(JsonText(value.text(), ensure_ascii));
      case Kind::kList:
      case Kind::kTuple: {
        if (value.items().empty()) return Add("[]");
        RETURN_IF_ERROR(Add("["));
        for (size_t i = 0; i < value.items().size(); ++i) {
          RETURN_IF_ERROR(Separate(i == 0, level + 1));
          RETURN_IF_ERROR(Append(value.items()[i], level + 1));
        }
        RETURN_IF_ERROR(NewLine(level));
        return Add("]");
      }
      case Kind::kDict:
        return AppendDict(value.dict(), level);
      default:
        return evaluator_->Raise("Object of type ", TypeName(value), " is not JSON serializable");
    }
  }

  std::string item_separator = ", ", key_separator = ": ";
  std::optional<std::string> indent;
  bool ensure_ascii = false, sort_keys = false;

 private:
  absl::Status AppendDict(const DictObject& dict, int level) {
    if (dict.entries.empty()) return Add("{}");
    std::vector<const std::pair<Value, Value>*> entries;
    for (const auto& entry : dict.entries) entries.push_back(&entry);
    if (sort_keys) {
      for (const auto* entry : entries) {
        if (!entry->first.is_string()) return evaluator_->Refuse("tojson that sorts keys that are no texts");
      }
      std::sort(entries.begin(), entries.end(),
                [](const auto* a, const auto* b) { return a->first.text() < b->first.text(); });
    }
    RETURN_IF_ERROR(Add("{"));
    for (size_t i = 0; i < entries.size(); ++i) {
      RETURN_IF_ERROR(Separate(i == 0, level + 1));
      const Value& key = entries[i]->first;
      RETURN_IF_ERROR(Add(JsonText(key.is_string() ? key.text() : absl::StrCat(key.integer()), ensure_ascii)));
      RETURN_IF_ERROR(Add(key_separator));
      RETURN_IF_ERROR(Append(entries[i]->second, level + 1));
    }
    RETURN_IF_ERROR(NewLine(level));
    return Add("}");
  }
  absl::Status Separate(bool first, int level) {
    if (!first) RETURN_IF_ERROR(Add(item_separator));
    return NewLine(level);
  }
  absl::Status NewLine(int level) {
    if (!indent.has_value()) return absl::OkStatus();
    RETURN_IF_ERROR(Add("\n"));
    for (int i = 0; i < level; ++i) RETURN_IF_ERROR(Add(*indent));
    return absl::OkStatus();
  }
};

}  // namespace

absl::StatusOr<std::string> ToRepr(Evaluator* evaluator, const Value& value) {
  Representer representer(evaluator);
  RETURN_IF_ERROR(representer.Append(value));
  return std::move(representer.text);
}

absl::StatusOr<std::string> ToText(Evaluator* evaluator, const Value& value) {
  if (value.is_string()) {
    RETURN_IF_ERROR(evaluator->Charge(static_cast<int64_t>(value.text().size())));
    return value.text();
  }
  if (value.is(Kind::kUndefined)) return std::string();
  return ToRepr(evaluator, value);
}

Result ToJson(Evaluator* evaluator, const Value& value, const CallArguments& arguments) {
  ASSIGN_OR_RETURN(const std::vector<Value> options,
                   Bind(evaluator, "tojson", arguments, {"ensure_ascii", "indent", "separators", "sort_keys"}, 0));
  JsonWriter writer(evaluator);
  writer.ensure_ascii = IsTrue(options[0]);
  writer.sort_keys = IsTrue(options[3]);
  const Value& indent = options[1];
  if (indent.is_integer()) {
    if (indent.integer() > 1000) return evaluator->Refuse("tojson with an indent of ", indent.integer());
    writer.indent = std::string(std::max<int64_t>(indent.integer(), 0), ' ');
  } else if (indent.is_string()) {
    writer.indent = indent.text();
  } else if (!indent.is(Kind::kMissing) && !indent.is(Kind::kNone)) {
    return evaluator->Refuse("tojson with an indent that is a ", TypeName(indent));
  }
  if (writer.indent.has_value()) writer.item_separator = ",";
  const Value& separators = options[2];
  if (separators.is_sequence()) {
    const auto& items = separators.items();
    if (items.size() != 2 || !items[0].is_string() || !items[1].is_string())
      return evaluator->Raise("tojson: separators must be two strings");
    writer.item_separator = items[0].text();
    writer.key_separator = items[1].text();
  } else if (!separators.is(Kind::kMissing) && !separators.is(Kind::kNone)) {
    return evaluator->Refuse("tojson with separators that are a ", TypeName(separators));
  }
  RETURN_IF_ERROR(writer.Append(value, 0));
  return evaluator->NewString(std::move(writer.text));
}

}  // namespace trireme::jinja
