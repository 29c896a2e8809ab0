// configs/suggest.h
// The nearest known name, for errors about unknown ones.
#ifndef TRIREME_CONFIGS_SUGGEST_H_
#define TRIREME_CONFIGS_SUGGEST_H_

#include <google/protobuf/descriptor.h>

#include <string>
#include <vector>

namespace trireme {

// Insertions, deletions, substitutions and swaps of neighbours that turn `a` into `b`.
int EditDistance(const std::string& a, const std::string& b);

// `; did you mean "tensor"?` when a known name is near (case aside), otherwise `; known are a, b, c`.
std::string Suggestion(const std::string& name, const std::vector<std::string>& known);

std::vector<std::string> FieldNames(const google::protobuf::Descriptor& message);
std::vector<std::string> ValueNames(const google::protobuf::EnumDescriptor& type);

// `unknown field "tensr" in parallel; did you mean "tensor"?`. `path` is the message's place in the config, empty for
// RunConfig itself. Names a field of the same name elsewhere in the config when nothing here is near.
std::string UnknownField(const google::protobuf::Descriptor& message, const std::string& path, const std::string& name);

}  // namespace trireme

#endif  // TRIREME_CONFIGS_SUGGEST_H_
