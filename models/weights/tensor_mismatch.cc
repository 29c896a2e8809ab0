#include "models/weights/tensor_mismatch.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

#include <algorithm>

namespace trireme {
namespace {

constexpr size_t kListed = 12;

std::string List(const std::vector<std::string>& names) {
  const size_t shown = std::min(names.size(), kListed);
  return absl::StrCat(absl::StrJoin(names.begin(), names.begin() + shown, ", "),
                      names.size() > shown ? absl::StrCat(" and ", names.size() - shown, " more") : "");
}

}  // namespace

std::string ShapeText(const std::vector<int64_t>& shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

void TensorMismatch::CheckShape(const std::string& name, const std::vector<int64_t>& shape,
                                const std::vector<int64_t>& needed) {
  if (shape != needed) wrong.push_back(absl::StrCat(name, " ", ShapeText(shape), " instead of ", ShapeText(needed)));
}

std::string TensorMismatch::ToString() const {
  std::string text;
  const auto say = [&](const char* what, const std::vector<std::string>& names) {
    if (!names.empty()) absl::StrAppend(&text, "\n  ", names.size(), " ", what, ": ", List(names));
  };
  say("missing", missing);
  say("unexpected", unexpected);
  say("of another shape", wrong);
  return text;
}

}  // namespace trireme
