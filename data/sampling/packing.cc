#include "data/sampling/packing.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "launch/base/status.h"

namespace trireme {

std::vector<std::vector<int32_t>> PackBestFit(const std::vector<int32_t>& lengths, int32_t capacity) {
  std::vector<int32_t> order(lengths.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&lengths](int32_t a, int32_t b) { return lengths[a] > lengths[b]; });
  std::vector<std::vector<int32_t>> sequences;
  std::set<std::pair<int32_t, int32_t>> open;  // (room left, sequence), of those with room
  for (const int32_t sample : order) {
    const int32_t length = lengths[sample];
    TRIREME_CHECK(length >= 0 && length <= capacity, "a sample of ", length, " tokens for sequences of ", capacity);
    std::pair<int32_t, int32_t> place = {capacity, static_cast<int32_t>(sequences.size())};
    if (const auto fullest = open.lower_bound({length, 0}); fullest != open.end()) {
      place = *fullest;
      open.erase(fullest);
    } else {
      sequences.emplace_back();
    }
    sequences[place.second].push_back(sample);
    if (place.first > length) open.insert({place.first - length, place.second});
  }
  return sequences;
}

}  // namespace trireme
