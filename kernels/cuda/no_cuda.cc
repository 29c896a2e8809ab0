// The CUDA operations of a build without CUDA. No tensor can be on a GPU there, so nothing calls them.
#include "kernels/cuda/ops.h"
#include "launch/base/status.h"

namespace trireme::cuda {
namespace {

[[noreturn]] void Absent(const char* operation) {
  CheckFailed(__FILE__, __LINE__, operation, "this binary was built without CUDA; configure with -DTRIREME_CUDA=ON");
}

}  // namespace

RmsNormResult RmsNorm(const at::Tensor&, const at::Tensor&, const at::Tensor&, double, double) { Absent("RmsNorm"); }
at::Tensor RmsNormAgain(const at::Tensor&, const at::Tensor&, const at::Tensor&, double) { Absent("RmsNormAgain"); }
at::Tensor RmsNormBackward(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                           const at::Tensor&, at::Tensor*, double) {
  Absent("RmsNormBackward");
}
at::Tensor GatedForward(const at::Tensor&, Activation) { Absent("GatedForward"); }
at::Tensor GatedBackward(const at::Tensor&, const at::Tensor&, Activation, bool) { Absent("GatedBackward"); }
at::Tensor ExpertGateForward(const at::Tensor&, const at::Tensor&, const ExpertGate&) { Absent("ExpertGateForward"); }
ExpertGateGradients ExpertGateBackward(const at::Tensor&, const at::Tensor&, const at::Tensor&, const ExpertGate&) {
  Absent("ExpertGateBackward");
}
at::Tensor SumOfChoices(const at::Tensor&, const at::Tensor&, int64_t) { Absent("SumOfChoices"); }
at::Tensor Dropout(const at::Tensor&, const at::Tensor&, const DropoutOptions&) { Absent("Dropout"); }
void ApplyRope(at::Tensor&, int64_t, int64_t, const at::Tensor&, const RopeTable&, bool) { Absent("ApplyRope"); }
at::Tensor EmbeddingForward(const at::Tensor&, const at::Tensor&) { Absent("EmbeddingForward"); }
void AddEmbeddingGradient(const at::Tensor&, const at::Tensor&, at::Tensor&) { Absent("AddEmbeddingGradient"); }
LossHeadResult LossHead(const at::Tensor&, const at::Tensor&, const at::Tensor&, const LossHeadOptions&, at::Tensor*,
                        LossHeadAdapter*) {
  Absent("LossHead");
}
void DecideUpdate(const DecisionRule&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                  at::Tensor&) {
  Absent("DecideUpdate");
}
void AdamWUpdate(const AdamWRule&, const at::Tensor&, at::Tensor, const at::Tensor&, at::Tensor, at::Tensor,
                 at::Tensor) {
  Absent("AdamWUpdate");
}
void AdamWUpdateBf16(const AdamWRule&, const at::Tensor&, at::Tensor, const at::Tensor&, at::Tensor, at::Tensor,
                     RandomKey, const WholeIndex&) {
  Absent("AdamWUpdateBf16");
}
void SgdUpdate(const SgdRule&, const at::Tensor&, at::Tensor, const at::Tensor&, at::Tensor, at::Tensor) {
  Absent("SgdUpdate");
}
void LionUpdate(const LionRule&, const at::Tensor&, at::Tensor, const at::Tensor&, at::Tensor, at::Tensor) {
  Absent("LionUpdate");
}
void LionUpdateBf16(const LionRule&, const at::Tensor&, at::Tensor, const at::Tensor&, at::Tensor, RandomKey,
                    const WholeIndex&) {
  Absent("LionUpdateBf16");
}
void DirectionUpdate(const DirectionRule&, const at::Tensor&, at::Tensor, const at::Tensor&, at::Tensor) {
  Absent("DirectionUpdate");
}
void DirectionUpdateBf16(const DirectionRule&, const at::Tensor&, at::Tensor, const at::Tensor&, RandomKey,
                         const WholeIndex&) {
  Absent("DirectionUpdateBf16");
}
void MuonMomentum(const MuonMomentumRule&, const at::Tensor&, const at::Tensor&, at::Tensor, at::Tensor) {
  Absent("MuonMomentum");
}
void AdamW8Update(const AdamWRule&, const at::Tensor&, at::Tensor, const at::Tensor&, const EightBitMoments&,
                  const MomentTables&, at::Tensor, RandomKey, const WholeIndex&) {
  Absent("AdamW8Update");
}
void SquaredNorms(const std::vector<at::Tensor>&, at::Tensor, at::Tensor) { Absent("SquaredNorms"); }
void AddInto(at::Tensor&, const at::Tensor&) { Absent("AddInto"); }
void DequantizeNf4(const Nf4Blocks&, at::Tensor&) { Absent("DequantizeNf4"); }
void DequantizeMxfp4(const Mxfp4Blocks&, at::Tensor&) { Absent("DequantizeMxfp4"); }
void DequantizeInt8Rows(const Int8Rows&, at::Tensor&) { Absent("DequantizeInt8Rows"); }

}  // namespace trireme::cuda
