#include "parallel/pipeline/balance.h"
#include "parallel/pipeline/lower.h"
#include <algorithm>
namespace trireme {
absl::StatusOr<Schedule> MakeSchedule(const std::string& name, int p, int v, int m) {
  Schedule s; s.name = name; s.num_microbatches = m;
  for (int i = 0; i < p; ++i) s.rank_of_stage.push_back(i);
  s.ranks.resize(p);
  for (int r = 0; r < p; ++r) {
    auto& a = s.ranks[r];
    if (name == "GPipe") {
      for (int i = 0; i < m; ++i) a.push_back({ActionKind::kForward, r, i});
      for (int i = 0; i < m; ++i) a.push_back({ActionKind::kBackward, r, i});
    } else if (name == "1F1B" || name == "ZB-H1") {
      int warm = std::min(m, p - r - 1), f = 0, b = 0;
      for (; f < warm; ++f) a.push_back({ActionKind::kForward, r, f});
      while (b < m) {
        if (f < m) a.push_back({ActionKind::kForward, r, f++});
        if (name == "1F1B") a.push_back({ActionKind::kBackward, r, b++});
        else { a.push_back({ActionKind::kInputGradient, r, b}); a.push_back({ActionKind::kWeightGradient, r, b++}); }
      }
    } else return Error(ExitCode::kConfig, "unknown schedule ", name);
  }
  return s;
}
Schedule Lower(const Schedule& s, const LowerOptions&) { return s; }
std::vector<Message> LinkOrder(const Schedule& s, int from, int to) {
  std::vector<Message> out;
  for (const Action& a : s.ranks[from]) {
    if (a.kind == ActionKind::kForward && a.stage + 1 < s.num_stages() && s.rank_of_stage[a.stage + 1] == to) out.push_back({false, a.stage + 1, a.microbatch});
    if ((a.kind == ActionKind::kBackward || a.kind == ActionKind::kInputGradient) && a.stage > 0 && s.rank_of_stage[a.stage - 1] == to) out.push_back({true, a.stage - 1, a.microbatch});
  }
  return out;
}
absl::StatusOr<std::vector<int>> BalanceStages(const std::vector<double>& c, int n) {
  int units = c.size(); std::vector<int> r(n, units / n);
  for (int i = 0; i < units % n; ++i) ++r[i];
  return r;
}
}
