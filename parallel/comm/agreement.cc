#include "parallel/comm/agreement.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <absl/strings/cord.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

#include "launch/base/log.h"

namespace trireme {
namespace {

constexpr char kAgreedPayload[] = "trireme.agreed";

}  // namespace

std::vector<std::string> GatherBytes(ProcessGroup& world, const std::string& bytes) {
  at::Tensor size = at::empty({1}, at::TensorOptions().dtype(at::kLong));
  size.mutable_data_ptr<int64_t>()[0] = static_cast<int64_t>(bytes.size());
  at::Tensor sizes = at::empty({world.size()}, size.options());
  world.AllGather(sizes, size).Wait();
  const int64_t* each = sizes.const_data_ptr<int64_t>();
  const int64_t largest = std::max<int64_t>(1, *std::max_element(each, each + world.size()));
  at::Tensor mine = at::zeros({largest}, at::TensorOptions().dtype(at::kByte));
  std::memcpy(mine.data_ptr(), bytes.data(), bytes.size());
  at::Tensor all = at::empty({world.size() * largest}, mine.options());
  world.AllGather(all, mine).Wait();
  std::vector<std::string> result;
  for (int rank = 0; rank < world.size(); ++rank) {
    result.emplace_back(reinterpret_cast<const char*>(all.const_data_ptr<uint8_t>()) + rank * largest, each[rank]);
  }
  return result;
}

std::string BroadcastBytes(ProcessGroup& world, const std::string& bytes) {
  at::Tensor size = at::empty({1}, at::TensorOptions().dtype(at::kLong));
  size.mutable_data_ptr<int64_t>()[0] = static_cast<int64_t>(bytes.size());
  world.Broadcast(size, 0).Wait();
  at::Tensor data =
      at::zeros({std::max<int64_t>(1, size.const_data_ptr<int64_t>()[0])}, at::TensorOptions().dtype(at::kByte));
  if (world.rank() == 0) std::memcpy(data.data_ptr(), bytes.data(), bytes.size());
  world.Broadcast(data, 0).Wait();
  return std::string(reinterpret_cast<const char*>(data.const_data_ptr<uint8_t>()), size.const_data_ptr<int64_t>()[0]);
}

absl::Status Agree(ProcessGroup& world, const absl::Status& local) {
  at::Tensor code = at::empty({1}, at::TensorOptions().dtype(at::kLong));
  code.mutable_data_ptr<int64_t>()[0] = local.ok() ? 0 : static_cast<int64_t>(ExitCodeOf(local));
  at::Tensor codes = at::empty({world.size()}, code.options());
  world.AllGather(codes, code).Wait();
  const int64_t* each = codes.const_data_ptr<int64_t>();
  const int64_t* failed = std::find_if(each, each + world.size(), [](int64_t c) { return c != 0; });
  if (failed == each + world.size()) return absl::OkStatus();
  const int rank = static_cast<int>(failed - each);
  const std::string message = GatherBytes(world, std::string(local.message()))[rank];
  return MarkAgreed(
      MakeError(static_cast<ExitCode>(*failed), rank == 0 ? message : absl::StrCat("rank ", rank, ": ", message)));
}

absl::Status MarkAgreed(const absl::Status& status) {
  absl::Status marked = status;
  if (!marked.ok()) marked.SetPayload(kAgreedPayload, absl::Cord());
  return marked;
}

bool IsAgreed(const absl::Status& status) { return status.GetPayload(kAgreedPayload).has_value(); }

std::string RankNames(const std::vector<int>& ranks) {
  constexpr int kMostRuns = 16;  // of ranks that follow each other
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  int runs = 0;
  for (size_t begin = 0; begin < ranks.size();) {
    if (runs++ == kMostRuns) return absl::StrCat(text, " and ", ranks.size() - begin, " more");
    size_t end = begin + 1;
    while (end < ranks.size() && ranks[end] == ranks[end - 1] + 1) ++end;
    absl::StrAppend(&text, begin == 0 ? "" : ", ", ranks[begin]);
    if (end - begin > 1) absl::StrAppend(&text, end - begin == 2 ? ", " : "-", ranks[end - 1]);
    begin = end;
  }
  return text;
}

void WarnTogether(ProcessGroup& world, const std::string& warning) {
  const std::vector<std::string> warnings = GatherBytes(world, warning);
  if (world.rank() != 0) return;
  std::map<std::string, std::vector<int>> ranks_of;
  for (int rank = 0; rank < world.size(); ++rank) {
    if (!warnings[rank].empty()) ranks_of[warnings[rank]].push_back(rank);
  }
  for (const auto& [text, ranks] : ranks_of)
    Warning(static_cast<int>(ranks.size()) < world.size() ? absl::StrCat(RankNames(ranks), ": ") : "", text);
}

absl::Status TellTogether(ProcessGroup& world, const absl::Status& status) {
  if (world.rank() == 0) WriteLog(Severity::kError, std::string(status.message()));
  world.Barrier();
  return MarkTold(status);
}

}  // namespace trireme
