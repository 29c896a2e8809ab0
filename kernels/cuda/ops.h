// kernels/cuda/ops.h
// The operations of kernels/base/ops.h and kernels/experts on CUDA tensors of float32 and bfloat16, on the current
// stream; the contracts are those there. ops.cc calls the launchers; no_cuda.cc stands in where the build has no CUDA.
#ifndef TRIREME_KERNELS_CUDA_OPS_H_
#define TRIREME_KERNELS_CUDA_OPS_H_

#include "kernels/base/dropout.h"
#include "kernels/base/nf4_math.h"
#include "kernels/base/ops.h"

namespace trireme::cuda {

RmsNormResult RmsNorm(const at::Tensor& x, const at::Tensor& delta, const at::Tensor& weight, double eps,
                      double offset);
at::Tensor RmsNormAgain(const at::Tensor& h, const at::Tensor& rstd, const at::Tensor& weight, double offset);
at::Tensor RmsNormBackward(const at::Tensor& h, const at::Tensor& rstd, const at::Tensor& weight, const at::Tensor& dy,
                           const at::Tensor& d_h, at::Tensor* d_weight, double offset);

at::Tensor GatedForward(const at::Tensor& gate_up, Activation activation);
at::Tensor GatedBackward(const at::Tensor& gate_up, const at::Tensor& d_out, Activation activation, bool in_place);

at::Tensor ExpertGateForward(const at::Tensor& gate_up, const at::Tensor& weights, const ExpertGate& gate);
ExpertGateGradients ExpertGateBackward(const at::Tensor& gate_up, const at::Tensor& weights, const at::Tensor& d_out,
                                       const ExpertGate& gate);
at::Tensor SumOfChoices(const at::Tensor& x, const at::Tensor& place, int64_t per_token);

at::Tensor Dropout(const at::Tensor& x, const at::Tensor& tokens, const DropoutOptions& options);

void ApplyRope(at::Tensor& packed, int64_t heads, int64_t head_dim, const at::Tensor& positions, const RopeTable& table,
               bool inverse);

at::Tensor EmbeddingForward(const at::Tensor& tokens, const at::Tensor& weight);
void AddEmbeddingGradient(const at::Tensor& tokens, const at::Tensor& dy, at::Tensor& accumulator);

// With bfloat16 weights the logits are float32 and their gradient is rounded to bfloat16 before its two products.
LossHeadResult LossHead(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets,
                        const LossHeadOptions& options, at::Tensor* d_weight, LossHeadAdapter* adapter);

void DecideUpdate(const DecisionRule& rule, const at::Tensor& parts, const at::Tensor& loss_ranks,
                  const at::Tensor& norm_ranks, const at::Tensor& previous, at::Tensor& decision);
void AdamWUpdate(const AdamWRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g, at::Tensor m,
                 at::Tensor v, at::Tensor copy);
void AdamWUpdateBf16(const AdamWRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g, at::Tensor m,
                     at::Tensor v, RandomKey key, const WholeIndex& index);
void SgdUpdate(const SgdRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g, at::Tensor velocity,
               at::Tensor copy);
void LionUpdate(const LionRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g, at::Tensor m,
                at::Tensor copy);
void LionUpdateBf16(const LionRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g, at::Tensor m,
                    RandomKey key, const WholeIndex& index);
void DirectionUpdate(const DirectionRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& direction,
                     at::Tensor copy);
void DirectionUpdateBf16(const DirectionRule& rule, const at::Tensor& decision, at::Tensor p,
                         const at::Tensor& direction, RandomKey key, const WholeIndex& index);
void MuonMomentum(const MuonMomentumRule& rule, const at::Tensor& decision, const at::Tensor& g, at::Tensor mean,
                  at::Tensor out);
void AdamW8Update(const AdamWRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g,
                  const EightBitMoments& moments, const MomentTables& tables, at::Tensor copy, RandomKey key,
                  const WholeIndex& index);

void SquaredNorms(const std::vector<at::Tensor>& tensors, at::Tensor squares, at::Tensor total);
void AddInto(at::Tensor& a, const at::Tensor& b);

void DequantizeNf4(const Nf4Blocks& blocks, at::Tensor& out);
void DequantizeMxfp4(const Mxfp4Blocks& blocks, at::Tensor& out);
void DequantizeInt8Rows(const Int8Rows& rows, at::Tensor& out);

}  // namespace trireme::cuda

#endif  // TRIREME_KERNELS_CUDA_OPS_H_
