// Protobuf's parser stops at its first type error and reports places one token late. So the text is also cut into
// tokens here: they correct the place, say in which message it lies, and let the faulty statement be blanked out so
// that the parser can go on behind it.
#include "configs/text_parser.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_split.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <map>
#include <utility>

#include "configs/suggest.h"

namespace trireme {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::io::Tokenizer;

constexpr int kMaxRepairs = 64;
constexpr int kMaxProblems = 40;
constexpr int kMaxDepth = 32;

struct Complaint {
  int line;
  int column;
  std::string message;
  bool is_error;
};

class Complaints : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int line, int column, const std::string& message) override {
    list.push_back({line, column, message, true});
  }
  void AddWarning(int line, int column, const std::string& message) override {
    list.push_back({line, column, message, false});
  }
  std::vector<Complaint> list;
};

struct Token {
  std::string text;
  Tokenizer::TokenType type;
  int line, column;   // as protobuf counts: from 0, tabs reach to multiples of 8
  size_t begin, end;  // bytes
  std::string path;   // of the message it stands in, relative to the text
};

// The tokens of a text. Stops at the first character that cannot be one.
class Tokens {
 public:
  explicit Tokens(const std::string& text) : text_(text) {
    google::protobuf::io::ArrayInputStream stream(text.data(), static_cast<int>(text.size()));
    Complaints ignored;
    Tokenizer tokenizer(&stream, &ignored);
    tokenizer.set_allow_f_after_float(true);
    tokenizer.set_comment_style(Tokenizer::SH_COMMENT_STYLE);
    tokenizer.set_require_space_after_number(false);
    tokenizer.set_allow_multiline_strings(true);
    while (tokenizer.Next()) {
      const Tokenizer::Token& token = tokenizer.current();
      const size_t begin = Offset(token.line, token.column);
      list_.push_back({token.text, token.type, token.line, token.column, begin, begin + token.text.size(), ""});
    }
    FillPaths();
  }

  int size() const { return static_cast<int>(list_.size()); }
  const Token& operator[](int index) const { return list_[index]; }
  bool Is(int index, const char* text) const { return index >= 0 && index < size() && list_[index].text == text; }
  bool IsName(int index) const {
    return index >= 0 && index < size() && list_[index].type == Tokenizer::TYPE_IDENTIFIER;
  }
  bool IsOpen(int index) const { return Is(index, "{") || Is(index, "<") || Is(index, "["); }
  bool IsClose(int index) const { return Is(index, "}") || Is(index, ">") || Is(index, "]"); }

  // The last token that starts at or before a place; -1 if none does.
  int At(int line, int column) const {
    const auto after = std::upper_bound(list_.begin(), list_.end(), std::pair(line, column),
                                        [](const std::pair<int, int>& place, const Token& token) {
                                          return place < std::pair(token.line, token.column);
                                        });
    return static_cast<int>(after - list_.begin()) - 1;
  }

  // The last token at or before `index` with this text, bare or quoted; `index` itself if there is none.
  int Back(int index, const std::string& text) const {
    for (int i = index; i >= 0; --i) {
      if (list_[i].text == text) return i;
      if (list_[i].type == Tokenizer::TYPE_STRING && list_[i].text.size() == text.size() + 2 &&
          absl::StrContains(list_[i].text, text))
        return i;
    }
    return index;
  }

  // The name whose value stands, or should stand, at `index`; -1 if that is no value.
  int NameOfValue(int index) const {
    int before = index - 1;
    if (Is(before, "-")) --before;
    if (Is(before, ":")) return IsName(before - 1) ? before - 1 : -1;
    return IsOpen(index) && IsName(before) ? before : -1;
  }

  // Bytes of the statement that starts with the name at `index`.
  std::pair<size_t, size_t> Statement(int index) const {
    int last = index;
    if (Is(last + 1, ":")) ++last;
    if (IsOpen(last + 1)) {
      int depth = 0;
      do {
        ++last;
        depth += IsOpen(last) - IsClose(last);
      } while (depth > 0 && last + 1 < size());
    } else if (last > index && last + 1 < size() && !IsClose(last + 1) && !Is(last + 2, ":")) {
      ++last;
      if (Is(last, "-") && last + 1 < size()) ++last;
      while (list_[last].type == Tokenizer::TYPE_STRING && last + 1 < size() &&
             list_[last + 1].type == Tokenizer::TYPE_STRING)
        ++last;
    }
    return {list_[index].begin, list_[last].end};
  }

  // Where in the text a place lies. Fast for places in rising order.
  size_t Offset(int line, int column) {
    if (std::pair(line, column) < std::pair(cursor_.line, cursor_.column)) cursor_ = {};
    while (cursor_.offset < text_.size() && std::pair(cursor_.line, cursor_.column) < std::pair(line, column)) {
      const char c = text_[cursor_.offset];
      if (c == '\n' && cursor_.line == line) break;
      ++cursor_.offset;
      if (c == '\n') {
        cursor_ = {cursor_.line + 1, 0, cursor_.offset};
      } else {
        cursor_.column = c == '\t' ? cursor_.column / 8 * 8 + 8 : cursor_.column + 1;
      }
    }
    return cursor_.offset;
  }

 private:
  void FillPaths() {
    std::vector<std::string> paths = {""};
    std::vector<std::string> names;  // of the open braces
    std::string name;                // the field that the next brace opens
    for (int i = 0; i < size(); ++i) {
      list_[i].path = paths.back();
      if (IsName(i) && (Is(i + 1, ":") || IsOpen(i + 1))) name = list_[i].text;
      if (Is(i, "{") || Is(i, "<")) {
        const bool too_deep =
            paths.size() > kMaxDepth;  // The parser gives up there; the paths would grow without bound.
        paths.push_back(too_deep ? "" : paths.back().empty() ? name : absl::StrCat(paths.back(), ".", name));
        names.push_back(name);
      } else if ((Is(i, "}") || Is(i, ">")) && !names.empty()) {
        name = names.back();
        names.pop_back();
        paths.pop_back();
      }
    }
  }

  const std::string& text_;
  std::vector<Token> list_;
  struct Cursor {
    int line = 0, column = 0;
    size_t offset = 0;
  } cursor_;
};

// The strings in double quotes in one of protobuf's messages.
std::vector<std::string> Quoted(const std::string& message) {
  std::vector<std::string> parts = absl::StrSplit(message, '"');
  std::vector<std::string> quoted;
  for (size_t i = 1; i + 1 < parts.size(); i += 2) quoted.push_back(parts[i]);
  return quoted;
}

const Descriptor* MessageAt(const Descriptor* message, const std::string& path) {
  for (absl::string_view name : absl::StrSplit(path, '.', absl::SkipEmpty())) {
    const FieldDescriptor* field = message == nullptr ? nullptr : message->FindFieldByName(std::string(name));
    message = field == nullptr ? nullptr : field->message_type();
  }
  return message;
}

std::string Join(const std::string& path, const std::string& name) {
  return path.empty() ? name : absl::StrCat(path, ".", name);
}

std::string TypeName(const FieldDescriptor& field) {
  if (field.message_type() != nullptr) return field.message_type()->name();
  if (field.enum_type() != nullptr) return field.enum_type()->name();
  return field.type_name();
}

// A complaint in our words, and what to leave out so that parsing gets past it.
struct Finding {
  int line = 0;
  size_t offset = 0;  // bytes
  std::string what;
  int statement = -1;  // token index of the name it starts with; -1: unknown
};

Finding Explain(const Complaint& complaint, Tokens& tokens, const TextSource& source, const Descriptor* root) {
  Finding finding{complaint.line, 0, complaint.message, -1};
  int token = tokens.At(complaint.line, complaint.column);
  const bool at_token = token >= 0 && tokens[token].line == complaint.line && tokens[token].column == complaint.column;
  finding.offset = at_token ? tokens[token].begin : tokens.Offset(complaint.line, complaint.column);
  if (token < 0) return finding;
  const std::vector<std::string> quoted = Quoted(complaint.message);
  const auto starts = [&](const char* prefix) { return absl::StartsWith(complaint.message, prefix); };
  const auto message = [&] { return MessageAt(root, tokens[token].path); };
  const auto message_path = [&] {
    return tokens[token].path.empty() ? source.context : Join(source.context, tokens[token].path);
  };
  const auto move_to = [&](const std::string& text) {
    token = tokens.Back(token, text);
    finding.line = tokens[token].line;
    finding.offset = tokens[token].begin;
  };
  if (starts("Message type ") && quoted.size() == 2) {
    move_to(quoted[1]);
    if (message() != nullptr) finding.what = UnknownField(*message(), message_path(), quoted[1]);
  } else if (starts("Unknown enumeration value of ") && quoted.size() == 2) {
    move_to(quoted[0]);
    const FieldDescriptor* field = message() == nullptr ? nullptr : message()->FindFieldByName(quoted[1]);
    finding.what = absl::StrCat("\"", quoted[0], "\" is no value of ", Join(message_path(), quoted[1]));
    if (field != nullptr && field->enum_type() != nullptr)
      finding.what += Suggestion(quoted[0], ValueNames(*field->enum_type()));
    finding.statement = tokens.NameOfValue(token);
  } else if (starts("Invalid value for boolean field ") && quoted.size() == 2) {
    move_to(quoted[1]);
    finding.what = absl::StrCat(Join(message_path(), quoted[0]), " (bool): expected true or false, got ", quoted[1]);
    finding.statement = tokens.NameOfValue(token);
  } else if (starts("Non-repeated field ") && !quoted.empty()) {
    move_to(quoted[0]);
    finding.what = absl::StrCat(Join(message_path(), quoted[0]), " is given more than once; keep one");
    finding.statement = token;
  } else if (starts("Field ") && quoted.size() == 3) {
    move_to(quoted[0]);
    finding.what = absl::StrCat(Join(message_path(), quoted[0]), " and ", Join(message_path(), quoted[1]),
                                " exclude each other; keep one");
    finding.statement = token;
  } else if (const int name = tokens.Is(token, ":") ? token - 1 : tokens.NameOfValue(token); name >= 0) {
    token = name;
    const FieldDescriptor* field = message() == nullptr ? nullptr : message()->FindFieldByName(tokens[name].text);
    if (field != nullptr) {
      finding.what = absl::StrCat(Join(message_path(), field->name()), " (", TypeName(*field), "): ", complaint.message,
                                  absl::EndsWith(complaint.message, "got: ") ? "nothing" : "");
    }
    finding.statement = name;
  }
  return finding;
}

struct Located {
  int line;
  std::string what;
};

}  // namespace

void ParseConfigText(const TextSource& source, google::protobuf::Message* message, std::vector<std::string>* problems) {
  std::map<size_t, Located> found;  // by offset, so that they are listed in order and once
  std::string text = source.text;
  for (int repair = 0; repair < kMaxRepairs; ++repair) {
    Complaints complaints;
    google::protobuf::TextFormat::Parser parser;
    parser.RecordErrorsTo(&complaints);
    parser.AllowUnknownField(true);  // They become warnings, so that all are seen; Complaints makes them errors again.
    parser.SetRecursionLimit(kMaxDepth);
    if (parser.ParseFromString(text, message) && complaints.list.empty()) break;
    Tokens tokens(text);
    std::string repaired = text;
    bool stopped = false;
    for (const Complaint& complaint : complaints.list) {
      const Finding finding = Explain(complaint, tokens, source, message->GetDescriptor());
      found.try_emplace(finding.offset, Located{finding.line, finding.what});
      if (!complaint.is_error) continue;
      stopped = true;
      if (finding.statement < 0) continue;
      const auto [begin, end] = tokens.Statement(finding.statement);
      for (size_t i = begin; i < end; ++i) {
        if (repaired[i] != '\n') repaired[i] = ' ';
      }
    }
    if (!stopped || repaired == text) break;
    text = repaired;
  }
  int listed = 0;
  for (const auto& [offset, located] : found) {
    if (++listed > kMaxProblems) {
      problems->push_back(absl::StrCat(source.label, ": and ", found.size() - kMaxProblems, " more"));
      break;
    }
    const size_t newline = offset == 0 ? std::string::npos : source.text.rfind('\n', offset - 1);
    const int column = newline == std::string::npos ? static_cast<int>(offset) + source.first_column
                                                    : static_cast<int>(offset - newline) - 1;
    problems->push_back(absl::StrCat(source.label, ":", located.line + 1, ":", column + 1, ": ", located.what));
  }
}

}  // namespace trireme
