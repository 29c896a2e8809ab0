// tests/parallel/covering_set.h
// Combinations of options such that every pair of settings of any two options stands in some of them.
#ifndef TRIREME_TESTS_PARALLEL_COVERING_SET_H_
#define TRIREME_TESTS_PARALLEL_COVERING_SET_H_

#include <array>
#include <set>
#include <vector>

namespace trireme {

// choices[i]: number of settings of option i. Returns rows of settings, taken greedily by how many pairs they add.
inline std::vector<std::vector<int>> CoveringSet(const std::vector<int>& choices) {
  std::vector<std::vector<int>> all = {{}};
  for (const int count : choices) {
    std::vector<std::vector<int>> longer;
    for (const std::vector<int>& row : all) {
      for (int c = 0; c < count; ++c) {
        longer.push_back(row);
        longer.back().push_back(c);
      }
    }
    all = std::move(longer);
  }
  using Pair = std::array<int, 4>;
  const auto pairs = [](const std::vector<int>& row) {
    std::vector<Pair> found;
    for (int a = 0; a < static_cast<int>(row.size()); ++a) {
      for (int b = a + 1; b < static_cast<int>(row.size()); ++b) found.push_back({a, row[a], b, row[b]});
    }
    return found;
  };
  std::set<Pair> open;
  for (const std::vector<int>& row : all) {
    for (const Pair& pair : pairs(row)) open.insert(pair);
  }
  std::vector<std::vector<int>> rows;
  while (!open.empty()) {
    const std::vector<int>* best = nullptr;
    size_t best_gain = 0;
    for (const std::vector<int>& row : all) {
      size_t gain = 0;
      for (const Pair& pair : pairs(row)) gain += open.count(pair);
      if (gain > best_gain) best = &row, best_gain = gain;
    }
    for (const Pair& pair : pairs(*best)) open.erase(pair);
    rows.push_back(*best);
  }
  return rows;
}

}  // namespace trireme

#endif  // TRIREME_TESTS_PARALLEL_COVERING_SET_H_
