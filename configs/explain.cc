// ExplainField of config_loader.h.
#include <absl/strings/ascii.h>
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>
#include <absl/strings/str_split.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>

#include "configs/config_loader.h"
#include "configs/embedded_schema.h"
#include "configs/suggest.h"

namespace trireme {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::OneofDescriptor;
using google::protobuf::SourceLocation;

constexpr size_t kWidth = 100;

// The schema with comments, which the generated code lacks.
const Descriptor* CommentedRoot() {
  static const google::protobuf::DescriptorPool* const pool = [] {
    google::protobuf::FileDescriptorSet files;
    TRIREME_CHECK(files.ParseFromArray(kEmbeddedSchema, static_cast<int>(kEmbeddedSchemaSize)));
    auto* built = new google::protobuf::DescriptorPool;
    for (const auto& file : files.file()) TRIREME_CHECK(built->BuildFile(file) != nullptr, file.name());
    return built;
  }();
  return pool->FindMessageTypeByName(RunConfig::descriptor()->full_name());
}

// The words of a comment, without the notes on field numbers.
template <typename Described>
std::vector<std::string> CommentWords(const Described& described) {
  SourceLocation location;
  if (!described.GetSourceLocation(&location)) return {};
  std::vector<std::string> words =
      absl::StrSplit(absl::StrCat(location.leading_comments, " ", location.trailing_comments), absl::ByAnyChar(" \n\t"),
                     absl::SkipEmpty());
  for (size_t i = 0; i + 2 < words.size(); ++i) {
    if (words[i] == "Next" && words[i + 1] == "id:") {
      words.erase(words.begin() + i, words.begin() + i + 3);
      break;
    }
  }
  return words;
}

void AppendWrapped(const std::vector<std::string>& words, const std::string& indent, std::string* text) {
  std::string line;
  for (const std::string& word : words) {
    if (!line.empty() && indent.size() + line.size() + 1 + word.size() > kWidth) {
      absl::StrAppend(text, indent, line, "\n");
      line.clear();
    }
    absl::StrAppend(&line, line.empty() ? "" : " ", word);
  }
  if (!line.empty()) absl::StrAppend(text, indent, line, "\n");
}

std::string DefaultOf(const FieldDescriptor& field) {
  if (field.is_repeated()) return "repeated";
  if (!field.has_default_value()) return "no default";
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      return absl::StrCat("default \"", field.default_value_string(), "\"");
    case FieldDescriptor::CPPTYPE_BOOL:
      return absl::StrCat("default ", field.default_value_bool() ? "true" : "false");
    case FieldDescriptor::CPPTYPE_ENUM:
      return absl::StrCat("default ", field.default_value_enum()->name());
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return absl::StrCat("default ", field.default_value_double());
    case FieldDescriptor::CPPTYPE_FLOAT:
      return absl::StrCat("default ", field.default_value_float());
    case FieldDescriptor::CPPTYPE_INT32:
      return absl::StrCat("default ", field.default_value_int32());
    case FieldDescriptor::CPPTYPE_INT64:
      return absl::StrCat("default ", field.default_value_int64());
    case FieldDescriptor::CPPTYPE_UINT32:
      return absl::StrCat("default ", field.default_value_uint32());
    case FieldDescriptor::CPPTYPE_UINT64:
      return absl::StrCat("default ", field.default_value_uint64());
    case FieldDescriptor::CPPTYPE_MESSAGE:
      break;
  }
  return "no default";
}

std::string TypeOf(const FieldDescriptor& field) {
  if (field.message_type() != nullptr)
    return absl::StrCat(field.message_type()->name(), field.is_repeated() ? ", repeated" : "");
  return absl::StrCat(field.enum_type() != nullptr ? field.enum_type()->name() : field.type_name(), ", ",
                      DefaultOf(field));
}

void AppendMembers(const Descriptor& message, const std::string& indent, std::string* text);

// "name: type, default" and beneath it the comment, the values of an enum and the members of a message.
void AppendField(const FieldDescriptor& field, const std::string& name, const std::string& indent, std::string* text) {
  absl::StrAppend(text, indent, name, ": ", TypeOf(field), "\n");
  const std::string inner = indent + "    ";
  AppendWrapped(CommentWords(field), inner, text);
  if (const EnumDescriptor* type = field.enum_type(); type != nullptr) {
    for (int i = 0; i < type->value_count(); ++i) {
      std::vector<std::string> words = CommentWords(*type->value(i));
      words.insert(words.begin(), absl::StrCat(type->value(i)->name(), words.empty() ? "" : ":"));
      AppendWrapped(words, inner + "  ", text);
    }
  }
  if (field.message_type() == nullptr) return;
  AppendWrapped(CommentWords(*field.message_type()), inner, text);
  AppendMembers(*field.message_type(), inner, text);
}

void AppendOneof(const OneofDescriptor& oneof, const std::string& name, const std::string& indent, std::string* text) {
  absl::StrAppend(text, indent, name, ": at most one of\n");
  AppendWrapped(CommentWords(oneof), indent + "    ", text);
  for (int i = 0; i < oneof.field_count(); ++i)
    AppendField(*oneof.field(i), oneof.field(i)->name(), indent + "  ", text);
}

void AppendMembers(const Descriptor& message, const std::string& indent, std::string* text) {
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    if (const OneofDescriptor* oneof = field.real_containing_oneof(); oneof == nullptr) {
      AppendField(field, field.name(), indent, text);
    } else if (oneof->field(0) == &field) {
      AppendOneof(*oneof, absl::StrCat("(", oneof->name(), ")"), indent, text);
    }
  }
}

}  // namespace

absl::StatusOr<std::string> ExplainField(const std::string& path) {
  const Descriptor* message = CommentedRoot();
  std::string text, done;
  const std::vector<std::string> names = absl::StrSplit(path, '.', absl::SkipEmpty());
  if (names.empty()) {
    AppendWrapped(CommentWords(*message), "", &text);
    AppendMembers(*message, "", &text);
    return text;
  }
  for (size_t i = 0; i < names.size(); ++i) {
    const bool last = i + 1 == names.size();
    const OneofDescriptor* oneof = message->FindOneofByName(names[i]);
    if (last && oneof != nullptr) {
      AppendOneof(*oneof, path, "", &text);
      return text;
    }
    const FieldDescriptor* field = message->FindFieldByName(names[i]);
    if (field == nullptr) return Error(ExitCode::kConfig, "config: ", UnknownField(*message, done, names[i]));
    absl::StrAppend(&done, done.empty() ? "" : ".", names[i]);
    if (last) {
      AppendField(*field, done, "", &text);
      return text;
    }
    message = field->message_type();
    if (message == nullptr)
      return Error(ExitCode::kConfig, "config: ", done, " is a ", field->type_name(), " and has no member \"",
                   names[i + 1], "\"");
  }
  return text;
}

}  // namespace trireme
