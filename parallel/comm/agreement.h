// parallel/comm/agreement.h
// When one rank fails, all ranks must know, and one of them says why.
#ifndef TRIREME_PARALLEL_COMM_AGREEMENT_H_
#define TRIREME_PARALLEL_COMM_AGREEMENT_H_

#include <string>
#include <vector>

#include "launch/base/status.h"
#include "parallel/comm/process_group.h"

namespace trireme {

// Collective. OK when all ranks are OK; otherwise the error of the lowest failing rank, on every rank, marked as
// agreed.
absl::Status Agree(ProcessGroup& world, const absl::Status& local);

// Marks an error that every rank computed alike, without communication.
absl::Status MarkAgreed(const absl::Status& status);
bool IsAgreed(const absl::Status& status);

// Collective. Every rank's bytes, in rank order.
std::vector<std::string> GatherBytes(ProcessGroup& world, const std::string& bytes);

// Collective. Rank 0's bytes on every rank.
std::string BroadcastBytes(ProcessGroup& world, const std::string& bytes);

// "rank 3", "ranks 0, 2-7"; of ranks that are scattered widely the first and how many more. Ascending.
std::string RankNames(const std::vector<int>& ranks);

// Collective. Rank 0 prints each different warning of the ranks once, with the ranks that have it unless all do; "":
// this rank has none. What all ranks see alike needs no talk: of Warning() rank 0's is printed.
void WarnTogether(ProcessGroup& world, const std::string& warning);

// Collective. Rank 0 prints an agreed error; it comes back marked as told (launch/base/status.h) once it is out, so
// that any rank may then end the process.
absl::Status TellTogether(ProcessGroup& world, const absl::Status& status);

}  // namespace trireme

#endif  // TRIREME_PARALLEL_COMM_AGREEMENT_H_
