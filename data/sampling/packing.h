// data/sampling/packing.h
// How samples of unequal length fill sequences of one length.
#ifndef TRIREME_DATA_SAMPLING_PACKING_H_
#define TRIREME_DATA_SAMPLING_PACKING_H_

#include <cstdint>
#include <vector>

namespace trireme {

// Best-fit-decreasing: the longest first, each into the fullest sequence that still takes it. lengths are in
// [0, capacity]. Returns the indices in each sequence; every index stands in exactly one. A pure function; equal
// lengths keep their order. At most 11/9 of the best possible number of sequences, and a fraction of one more.
std::vector<std::vector<int32_t>> PackBestFit(const std::vector<int32_t>& lengths, int32_t capacity);

}  // namespace trireme

#endif  // TRIREME_DATA_SAMPLING_PACKING_H_
