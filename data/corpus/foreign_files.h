// data/corpus/foreign_files.h
// Megatron files that nobody described: which of a folder's belong to which split.
#ifndef TRIREME_DATA_CORPUS_FOREIGN_FILES_H_
#define TRIREME_DATA_CORPUS_FOREIGN_FILES_H_

#include <string>
#include <vector>

#include "launch/base/status.h"

namespace trireme {

struct ForeignFiles {
  std::string folder;                   // empty: the working directory
  std::vector<std::string> train;       // names without extension, in the order of names
  std::vector<std::string> validation;  // those whose name begins with "validation"
};

// All NAME.idx directly in `folder`; at least one.
absl::StatusOr<ForeignFiles> FindForeignFiles(const std::string& folder);

}  // namespace trireme

#endif  // TRIREME_DATA_CORPUS_FOREIGN_FILES_H_
