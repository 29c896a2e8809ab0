// tests/parallel/multi_rank.h
// What tests see that run as one process of an MPI job. Every rank runs the same tests in the same order; a test that
// talks to other ranks uses EXPECT, not ASSERT, so that no rank leaves the others waiting.
#ifndef TRIREME_TESTS_PARALLEL_MULTI_RANK_H_
#define TRIREME_TESTS_PARALLEL_MULTI_RANK_H_

#include "launch/base/process.h"

namespace trireme {

const Process& TestProcess();

}  // namespace trireme

// Ends the test, printed as skipped, unless the job has one of these numbers of ranks. The same on all ranks.
#define REQUIRE_RANKS(condition, why)                                                         \
  do {                                                                                        \
    if (!(condition)) GTEST_SKIP() << "with " << TestProcess().size() << " ranks: " << (why); \
  } while (false)

#endif  // TRIREME_TESTS_PARALLEL_MULTI_RANK_H_
