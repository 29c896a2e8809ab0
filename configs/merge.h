// configs/merge.h
// Lays one config over another.
#ifndef TRIREME_CONFIGS_MERGE_H_
#define TRIREME_CONFIGS_MERGE_H_

#include <google/protobuf/message.h>

#include <string>
#include <vector>

namespace trireme {

// Every field that `from` sets replaces that of `to`; messages merge member by member; repeated fields and oneofs are
// replaced whole.
void MergeOver(const google::protobuf::Message& from, google::protobuf::Message* to);

// Applies one override (see config_loader.h for its forms) to `config`; mistakes are appended to `problems` as --set
// 'TEXT':LINE:COLUMN: what.
void ApplyOverride(const std::string& text, google::protobuf::Message* config, std::vector<std::string>* problems);

}  // namespace trireme

#endif  // TRIREME_CONFIGS_MERGE_H_
