// launch/base/folder.h
// What lies in a folder, without exceptions.
#ifndef TRIREME_LAUNCH_BASE_FOLDER_H_
#define TRIREME_LAUNCH_BASE_FOLDER_H_

#include <string>
#include <vector>

#include "launch/base/status.h"

namespace trireme {

// The names of all that lies in `folder` itself, sorted; "." and ".." are left out. A folder that cannot be read to its
// end is an error (kStorage), one that is not there, too.
absl::StatusOr<std::vector<std::string>> ListFolder(const std::string& folder);

}  // namespace trireme

#endif  // TRIREME_LAUNCH_BASE_FOLDER_H_
