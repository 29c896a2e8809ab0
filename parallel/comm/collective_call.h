// parallel/comm/collective_call.h
// One rank's call of a collective, in a form that ranks can send each other and compare.
#ifndef TRIREME_PARALLEL_COMM_COLLECTIVE_CALL_H_
#define TRIREME_PARALLEL_COMM_COLLECTIVE_CALL_H_

#include <absl/strings/str_cat.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <type_traits>

namespace trireme {

// Everything in which the calls of one collective must agree. Travels as bytes, between machines of one kind. A large
// all_reduce over MPI is two calls: the second comes when the first is waited for.
struct CollectiveCall {
  enum Operation : int32_t { kAllGather, kReduceScatter, kAllReduce, kAllReduceEnd, kBroadcast, kAllToAll, kBarrier };
  Operation operation = kBarrier;
  at::ScalarType dtype = at::kByte;  // of the input
  int32_t variant = 0;               // a broadcast's root, an all_reduce's ReduceOp; for its second half which it ends
  int64_t bytes = 0;                 // of the larger tensor, as in OperationRecord
  int64_t step = 0;                  // OperationLog::step()

  bool operator==(const CollectiveCall&) const = default;

  const char* name() const {
    static constexpr const char* kNames[] = {"all_gather", "reduce_scatter", "all_reduce", "all_reduce's second half",
                                             "broadcast",  "all_to_all",     "barrier"};
    return kNames[operation];
  }

  // "all_reduce(max) of 64 B float in step 3"
  std::string ToString() const {
    std::string text = name();
    if (operation == kBroadcast) absl::StrAppend(&text, "(root ", variant, ")");
    if (operation == kAllReduce) absl::StrAppend(&text, variant == 0 ? "(sum)" : "(max)");
    if (operation == kAllReduceEnd) absl::StrAppend(&text, " (of #", variant, ")");
    if (operation != kBarrier) absl::StrAppend(&text, " of ", bytes, " B ", c10::toString(dtype));
    return absl::StrCat(text, " in step ", step);
  }
};
static_assert(std::is_trivially_copyable_v<CollectiveCall>);

}  // namespace trireme

#endif  // TRIREME_PARALLEL_COMM_COLLECTIVE_CALL_H_
