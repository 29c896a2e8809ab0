// DiffConfigs of config_loader.h.
#include <absl/strings/ascii.h>
#include <absl/strings/str_cat.h>
#include <google/protobuf/text_format.h>

#include <algorithm>

#include "configs/config_loader.h"

namespace trireme {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::OneofDescriptor;
using google::protobuf::Reflection;

constexpr char kUnset[] = "(unset)";

std::string Braced(const Message& message) {
  const std::string text(absl::StripAsciiWhitespace(message.ShortDebugString()));
  return text.empty() ? "{}" : absl::StrCat("{ ", text, " }");
}

// The value of a singular field, its default when it is not set.
std::string Value(const Message& message, const FieldDescriptor& field) {
  if (field.message_type() != nullptr) return Braced(message.GetReflection()->GetMessage(message, &field));
  if (!message.GetReflection()->HasField(message, &field) && !field.has_default_value()) return kUnset;
  std::string text;
  google::protobuf::TextFormat::PrintFieldValueToString(message, &field, -1, &text);
  return text;
}

std::string Element(const Message& message, const FieldDescriptor& field, int index) {
  if (index >= message.GetReflection()->FieldSize(message, &field)) return "(absent)";
  if (field.message_type() != nullptr)
    return Braced(message.GetReflection()->GetRepeatedMessage(message, &field, index));
  std::string text;
  google::protobuf::TextFormat::PrintFieldValueToString(message, &field, index, &text);
  return text;
}

// The chosen member of a oneof with its value: "sgd { momentum: 0.9 }".
std::string Choice(const Message& message, const FieldDescriptor* member) {
  if (member == nullptr) return kUnset;
  return absl::StrCat(member->name(), member->message_type() != nullptr ? " " : ": ", Value(message, *member));
}

class Diff {
 public:
  void Compare(const Message& before, const Message& after, const std::string& prefix) {
    const google::protobuf::Descriptor& descriptor = *before.GetDescriptor();
    for (int i = 0; i < descriptor.field_count(); ++i) {
      const FieldDescriptor& field = *descriptor.field(i);
      const std::string path = absl::StrCat(prefix, field.name());
      const OneofDescriptor* oneof = field.real_containing_oneof();
      if (oneof != nullptr) {
        const FieldDescriptor* chosen_before = before.GetReflection()->GetOneofFieldDescriptor(before, oneof);
        const FieldDescriptor* chosen_after = after.GetReflection()->GetOneofFieldDescriptor(after, oneof);
        if (chosen_before != chosen_after) {
          if (&field == oneof->field(0))
            Add(absl::StrCat(prefix, oneof->name()), Choice(before, chosen_before), Choice(after, chosen_after));
          continue;
        }
        if (chosen_before != &field) continue;
      }
      if (field.is_repeated()) {
        CompareElements(before, after, field, path);
      } else if (field.message_type() != nullptr) {
        Compare(before.GetReflection()->GetMessage(before, &field), after.GetReflection()->GetMessage(after, &field),
                path + ".");
      } else {
        Add(path, Value(before, field), Value(after, field));
      }
    }
  }

  std::vector<std::string> lines;

 private:
  void Add(const std::string& path, const std::string& before, const std::string& after) {
    if (before != after) lines.push_back(absl::StrCat(path, ": ", before, " -> ", after));
  }

  void CompareElements(const Message& before, const Message& after, const FieldDescriptor& field,
                       const std::string& path) {
    const int size_before = before.GetReflection()->FieldSize(before, &field);
    const int size_after = after.GetReflection()->FieldSize(after, &field);
    for (int i = 0; i < std::max(size_before, size_after); ++i) {
      const std::string element = absl::StrCat(path, "[", i, "]");
      if (field.message_type() != nullptr && i < std::min(size_before, size_after)) {
        Compare(before.GetReflection()->GetRepeatedMessage(before, &field, i),
                after.GetReflection()->GetRepeatedMessage(after, &field, i), element + ".");
      } else {
        Add(element, Element(before, field, i), Element(after, field, i));
      }
    }
  }
};

}  // namespace

std::vector<std::string> DiffConfigs(const RunConfig& before, const RunConfig& after) {
  Diff diff;
  diff.Compare(before, after, "");
  return diff.lines;
}

}  // namespace trireme
