#include "parallel/pipeline/csv.h"
#include "parallel/pipeline/validate.h"
#include "tests/fuzz/fuzz_target.h"

namespace trireme {

bool FuzzOne(const std::string& input) {
  const auto schedule = ParseCsv(input);
  if (!schedule.ok()) return false;
  const auto again = ParseCsv(PrintCsv(*schedule));
  TRIREME_CHECK(again.ok() && again->ranks == schedule->ranks, "printed and read again, the schedule differs");
  if (Validate(*schedule).ok()) (void)MaxInFlight(*schedule);
  return true;
}

std::vector<std::string> FuzzSeeds() {
  return {"0F0,0F1,,0B0,0B1\n,1F0,1B0,1F1,1B1\n", "0F0,0I0,0W0\n1F0,1B0\n",
          "0UNSHARD,0F0,0SEND_F0,(0F1;0B0)OVERLAP_F_B,0B1,0REDUCE_GRAD,0RESHARD\n1RECV_F0,1F0,1B0,1F1,1B1"};
}

}  // namespace trireme
