#include "configs/suggest.h"

#include <absl/strings/ascii.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

#include <algorithm>

#include "configs/run_config.pb.h"

namespace trireme {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;

// "lr" of "learning_rate".
std::string Initials(const std::string& name) {
  std::string initials;
  for (size_t i = 0; i < name.size(); ++i) {
    if (name[i] != '_' && (i == 0 || name[i - 1] == '_')) initials += name[i];
  }
  return initials;
}

// The nearest of `known` if it is near enough to be meant, else empty.
std::string Nearest(const std::string& name, const std::vector<std::string>& known) {
  const std::string wanted = absl::AsciiStrToLower(name);
  std::string best;
  int best_distance = std::max<int>(1, wanted.size() / 3) + 1;
  for (const std::string& candidate : known) {
    const std::string lower = absl::AsciiStrToLower(candidate);
    // "lr" or "layers" rather shortens a long name than misspells a short one.
    const bool shortened =
        wanted.size() >= 4 ? lower.find(wanted) != std::string::npos : wanted.size() >= 2 && Initials(lower) == wanted;
    const int distance = shortened ? 1 : EditDistance(wanted, lower);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

void FindPaths(const Descriptor& message, const std::string& prefix, const std::string& name,
               std::vector<std::string>* paths) {
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    const std::string path = absl::StrCat(prefix, field.name());
    if (field.name() == name) paths->push_back(path);
    if (field.message_type() != nullptr) FindPaths(*field.message_type(), path + ".", name, paths);
  }
}

}  // namespace

int EditDistance(const std::string& a, const std::string& b) {
  std::vector<int> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) last[j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], before[j - 2] + 1);
    }
    before.swap(last);
    last.swap(row);
  }
  return last[b.size()];
}

std::string Suggestion(const std::string& name, const std::vector<std::string>& known) {
  const std::string nearest = name.size() > 200 ? "" : Nearest(name, known);
  if (!nearest.empty()) return absl::StrCat("; did you mean \"", nearest, "\"?");
  return absl::StrCat("; known are ", absl::StrJoin(known, ", "));
}

std::vector<std::string> FieldNames(const Descriptor& message) {
  std::vector<std::string> names;
  for (int i = 0; i < message.field_count(); ++i) names.push_back(message.field(i)->name());
  return names;
}

std::vector<std::string> ValueNames(const EnumDescriptor& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.value_count(); ++i) names.push_back(type.value(i)->name());
  return names;
}

std::string UnknownField(const Descriptor& message, const std::string& path, const std::string& name) {
  std::string text = absl::StrCat("unknown field \"", name, "\"", path.empty() ? "" : " in ", path);
  const std::vector<std::string> names = FieldNames(message);
  if (names.empty()) return absl::StrCat(text, ", which has no fields");
  std::vector<std::string> elsewhere;
  if (Nearest(name, names).empty()) FindPaths(*RunConfig::descriptor(), "", name, &elsewhere);
  if (!elsewhere.empty()) return absl::StrCat(text, "; did you mean ", absl::StrJoin(elsewhere, " or "), "?");
  return absl::StrCat(text, Suggestion(name, names));
}

}  // namespace trireme
