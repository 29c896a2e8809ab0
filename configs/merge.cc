#include "configs/merge.h"

#include <absl/strings/ascii.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>

#include <memory>

#include "configs/suggest.h"
#include "configs/text_parser.h"

namespace trireme {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// How errors name an override: in one line, cut when long.
std::string LabelOf(const std::string& text) {
  constexpr size_t kLongest = 100;
  std::string label = text.size() > kLongest ? text.substr(0, kLongest) + "..." : text;
  for (char& c : label) {
    if (absl::ascii_iscntrl(c)) c = ' ';
  }
  return absl::StrCat("--set '", label, "'");
}

// One override PATH=VALUE or PATH+=VALUE, and where it stands.
class Assignment {
 public:
  Assignment(const std::string& text, std::vector<std::string>* problems) : text_(text), problems_(problems) {
    equals_ = text.find('=');
    append_ = equals_ > 0 && text[equals_ - 1] == '+';
    path_end_ = append_ ? equals_ - 1 : equals_;
  }

  void Apply(Message* config) {
    Message* message = config;
    size_t begin = 0;
    while (begin < path_end_ && absl::ascii_isspace(text_[begin])) ++begin;
    while (path_end_ > begin && absl::ascii_isspace(text_[path_end_ - 1])) --path_end_;
    std::string path;
    while (true) {
      const size_t end = std::min(text_.find('.', begin), path_end_);
      const size_t bracket = std::min(text_.find('[', begin), end);
      const std::string name = text_.substr(begin, bracket - begin);
      const FieldDescriptor* field = message->GetDescriptor()->FindFieldByName(name);
      if (field == nullptr) return Complain(begin, Unknown(*message, path, name));
      const std::string field_path = path.empty() ? name : absl::StrCat(path, ".", name);
      const bool last = end == path_end_;
      if (last && bracket == end) return Set(*field, path, field_path, message);
      if (field->message_type() == nullptr) {
        return Complain(bracket, absl::StrCat(field_path, " is a ", field->type_name(), " and has no ",
                                              last ? "elements" : "members"));
      }
      message = Enter(*field, field_path, bracket, end, message);
      if (message == nullptr) return;
      path = absl::StrCat(field_path, text_.substr(bracket, end - bracket));
      if (last)
        return Complain(bracket,
                        absl::StrCat("name a member of ", path, ", or use ", field_path, "= or ", field_path, "+="));
      begin = end + 1;
    }
  }

 private:
  void Complain(size_t offset, const std::string& what) {
    size_t line = 1, line_start = 0;
    for (size_t i = 0; i < offset; ++i) {
      if (text_[i] == '\n') ++line, line_start = i + 1;
    }
    problems_->push_back(absl::StrCat(LabelOf(text_), ":", line, ":", offset - line_start + 1, ": ", what));
  }

  static std::string Unknown(const Message& message, const std::string& path, const std::string& name) {
    const google::protobuf::OneofDescriptor* oneof = message.GetDescriptor()->FindOneofByName(name);
    if (oneof == nullptr) return UnknownField(*message.GetDescriptor(), path, name);
    std::string members;
    for (int i = 0; i < oneof->field_count(); ++i)
      absl::StrAppend(&members, i > 0 ? ", " : "", oneof->field(i)->name());
    return absl::StrCat("\"", name, "\" stands for one of ", members, "; name that one");
  }

  // The message that the path part [begin of brackets, end) leads into; null after a complaint.
  Message* Enter(const FieldDescriptor& field, const std::string& path, size_t bracket, size_t end, Message* message) {
    const Reflection* reflection = message->GetReflection();
    if (!field.is_repeated()) {
      if (bracket == end) return reflection->MutableMessage(message, &field);
      Complain(bracket, absl::StrCat(path, " is not repeated and takes no index"));
      return nullptr;
    }
    const int size = reflection->FieldSize(*message, &field);
    int index = -1;
    if (end - bracket < 3 || text_[end - 1] != ']' ||
        !absl::SimpleAtoi(text_.substr(bracket + 1, end - bracket - 2), &index) || index < 0) {
      Complain(bracket, absl::StrCat(path, " is repeated; name an element as ", path, "[0], or use ", path, "= or ",
                                     path, "+="));
      return nullptr;
    }
    if (index >= size) {
      Complain(bracket, absl::StrCat(path, " has ", size, " elements, so there is no [", index, "]"));
      return nullptr;
    }
    return reflection->MutableRepeatedMessage(message, &field, index);
  }

  void Set(const FieldDescriptor& field, const std::string& parent_path, const std::string& path, Message* message) {
    if (append_ && !field.is_repeated())
      return Complain(path_end_, absl::StrCat(path, " is not repeated; use = instead of +="));
    const Reflection* reflection = message->GetReflection();
    size_t value_begin = equals_ + 1;
    while (value_begin < text_.size() && absl::ascii_isspace(text_[value_begin])) ++value_begin;
    const std::string value(absl::StripTrailingAsciiWhitespace(text_.substr(value_begin)));
    std::unique_ptr<Message> parsed(message->New());
    const bool quoted = !value.empty() && (value[0] == '"' || value[0] == '\'' || value[0] == '[');
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_STRING && !quoted) {
      if (field.is_repeated()) {
        parsed->GetReflection()->AddString(parsed.get(), &field, value);
      } else {
        parsed->GetReflection()->SetString(parsed.get(), &field, value);
      }
    } else {
      const std::string prefix = absl::StrCat(field.name(), ": ");
      if (field.message_type() != nullptr &&
          (value.empty() || (value[0] != '{' && value[0] != '<' && value[0] != '['))) {
        return Complain(value_begin,
                        absl::StrCat(path, " has members; give { MEMBER: VALUE }, or set ", path, ".MEMBER"));
      }
      const size_t known_problems = problems_->size();
      ParseConfigText({LabelOf(text_), prefix + value, parent_path,
                       static_cast<int>(value_begin) - static_cast<int>(prefix.size())},
                      parsed.get(), problems_);
      if (problems_->size() > known_problems) return;
      std::vector<const FieldDescriptor*> set;
      parsed->GetReflection()->ListFields(*parsed, &set);
      for (const FieldDescriptor* other : set) {
        if (other != &field)
          return Complain(value_begin, absl::StrCat("one value for ", path, " was expected, not also ", other->name()));
      }
    }
    if (!append_) reflection->ClearField(message, &field);
    message->MergeFrom(*parsed);
  }

  const std::string& text_;
  std::vector<std::string>* problems_;
  size_t equals_, path_end_;
  bool append_;
};

}  // namespace

void MergeOver(const Message& from, Message* to) {
  const Reflection* reflection = to->GetReflection();
  std::vector<const FieldDescriptor*> fields;
  from.GetReflection()->ListFields(from, &fields);
  Message* const source = from.New();
  source->CopyFrom(from);
  const std::unique_ptr<Message> owner(source);
  for (const FieldDescriptor* field : fields) {
    if (!field->is_repeated() && field->message_type() != nullptr) {
      MergeOver(from.GetReflection()->GetMessage(from, field), reflection->MutableMessage(to, field));
      source->GetReflection()->ClearField(source, field);
    } else {
      reflection->ClearField(to, field);
    }
  }
  to->MergeFrom(*source);
}

void ApplyOverride(const std::string& text, Message* config, std::vector<std::string>* problems) {
  const size_t equals = text.find('=');
  const size_t syntax = text.find_first_of("{}:<>\"'#");
  if (equals != std::string::npos && equals < syntax) {
    Assignment(text, problems).Apply(config);
    return;
  }
  const std::string label = LabelOf(text);
  if (syntax == std::string::npos) {
    problems->push_back(
        absl::StrCat(label, ":1:1: neither PATH=VALUE, PATH+=VALUE nor a fragment as 'parallel { tensor: 2 }'"));
    return;
  }
  const std::unique_ptr<Message> fragment(config->New());
  ParseConfigText({label, text, "", 0}, fragment.get(), problems);
  MergeOver(*fragment, config);
}

}  // namespace trireme
