// trainer/utilization.h
// The share of a device's peak that a step reaches, against a peak that may have been measured on a busy machine.
#ifndef TRIREME_TRAINER_UTILIZATION_H_
#define TRIREME_TRAINER_UTILIZATION_H_

#include <functional>
#include <optional>

namespace trireme {

// Counts against the largest peak ever seen. A rate above it shows that the peak is too low: it is measured again, a
// few times in all, and there is no utilization rather than one of more than 1.
class Utilization {
 public:
  // peak: of all ranks together, in operations per second; 0: unknown, and so is every utilization. own_peak: this
  // rank's part of it. measure: gives own_peak anew; empty: it is a published figure.
  Utilization(double peak, double own_peak, std::function<double()> measure);

  // From 0 to 1, of a rate in operations per second.
  std::optional<double> Of(double rate);

 private:
  double peak_, own_peak_;
  std::function<double()> measure_;
  int measurements_left_ = 5;
};

}  // namespace trireme

#endif  // TRIREME_TRAINER_UTILIZATION_H_
