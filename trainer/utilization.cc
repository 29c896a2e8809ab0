#include "trainer/utilization.h"

#include <utility>

namespace trireme {

Utilization::Utilization(double peak, double own_peak, std::function<double()> measure)
    : peak_(peak), own_peak_(own_peak), measure_(std::move(measure)) {}

std::optional<double> Utilization::Of(double rate) {
  if (peak_ <= 0) return std::nullopt;
  if (rate > peak_ && measure_ && own_peak_ > 0 && measurements_left_ > 0) {
    --measurements_left_;
    const double again = measure_();
    // The other ranks' machines were as busy as this one.
    if (again > own_peak_) {
      peak_ *= again / own_peak_;
      own_peak_ = again;
    }
  }
  if (rate > peak_) return std::nullopt;
  return rate / peak_;
}

}  // namespace trireme
