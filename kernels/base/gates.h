// kernels/base/gates.h
// The gates of feed-forward layers as types, for the loops of the CPU and the kernels of the GPU alike. No standard
// library templates: this header is compiled for several instruction sets.
#ifndef TRIREME_KERNELS_BASE_GATES_H_
#define TRIREME_KERNELS_BASE_GATES_H_

#include <stdint.h>

#include "kernels/base/element_math.h"

namespace trireme {

// The gate's activation and its product with the other half.
struct Silu {
  template <typename C>
  TRIREME_HOST_DEVICE static C Forward(C gate, C up) {
    return SwiGlu<C>(gate, up);
  }
  template <typename C>
  TRIREME_HOST_DEVICE static void Backward(C gate, C up, C d_out, C* d_gate, C* d_up) {
    SwiGluBackward<C>(gate, up, d_out, d_gate, d_up);
  }
};
struct GeluTanh {
  template <typename C>
  TRIREME_HOST_DEVICE static C Forward(C gate, C up) {
    return GeGlu<C>(gate, up);
  }
  template <typename C>
  TRIREME_HOST_DEVICE static void Backward(C gate, C up, C d_out, C* d_gate, C* d_up) {
    GeGluBackward<C>(gate, up, d_out, d_gate, d_up);
  }
};

// What an expert's gate computes of a unit, and where the unit's gate and up stand in a row [2 width]: the gate of unit
// i at i * kStep, its up at Up(width) + i * kStep.
template <typename Gate, typename C>
struct GateFirst {  // all gates of a row, then all ups
  explicit GateFirst(const ClampedGate&) {}
  TRIREME_HOST_DEVICE static int64_t Up(int64_t width) { return width; }
  static constexpr int64_t kStep = 1;
  TRIREME_HOST_DEVICE C Forward(C gate, C up) const { return Gate::template Forward<C>(gate, up); }
  TRIREME_HOST_DEVICE void Backward(C gate, C up, C d, C* d_gate, C* d_up) const {
    Gate::template Backward<C>(gate, up, d, d_gate, d_up);
  }
};
template <typename C>
struct ClampedPairs {  // gate and up in turn
  C alpha, limit;
  explicit ClampedPairs(const ClampedGate& gate)
      : alpha(static_cast<C>(gate.alpha)), limit(static_cast<C>(gate.limit)) {}
  TRIREME_HOST_DEVICE static int64_t Up(int64_t) { return 1; }
  static constexpr int64_t kStep = 2;
  TRIREME_HOST_DEVICE C Forward(C gate, C up) const { return ClampedGlu<C>(alpha, limit, gate, up); }
  TRIREME_HOST_DEVICE void Backward(C gate, C up, C d, C* d_gate, C* d_up) const {
    ClampedGluBackward<C>(alpha, limit, gate, up, d, d_gate, d_up);
  }
};

}  // namespace trireme

#endif  // TRIREME_KERNELS_BASE_GATES_H_
