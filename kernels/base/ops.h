// kernels/base/ops.h
// Tensor math that knows no ranks and no autograd: each operation once, on the device its tensors are on. Contiguous
// tensors unless said otherwise. Dtypes: float32, bfloat16 (arithmetic in float32) and, on CPU, float64 (for finite
// differences). Reference implementations in plain libtorch stand in tests/kernels/reference.h; tests compare the two.
#ifndef TRIREME_KERNELS_BASE_OPS_H_
#define TRIREME_KERNELS_BASE_OPS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "kernels/base/element_math.h"
#include "kernels/base/moment_codes.h"
#include "kernels/base/philox.h"
#include "kernels/base/update_decision.h"
#include "kernels/base/update_elements.h"

namespace trireme {

// The dtype in which statistics of `dtype` are kept: float64 for float64, else float32.
at::ScalarType ArithmeticType(at::ScalarType dtype);

// ---- Matrix products (matmul.cc) ----
// x [T, K], w [N, K] -> x w^T [T, N]; residual [T, N], if defined, is added.
at::Tensor MatmulTransposed(const at::Tensor& x, const at::Tensor& w, const at::Tensor& residual = {});
at::Tensor Gram(const at::Tensor& x);  // x x^T [T, T]; on the CPU, float32
// dy [T, N], w [N, K] -> dy w [T, K].
at::Tensor Matmul(const at::Tensor& dy, const at::Tensor& w);
// y [T, N] += x w^T and dx [T, K] += dy w. All but w may be columns of wider matrices.
void AddMatmulTransposed(at::Tensor y, const at::Tensor& x, const at::Tensor& w);
void SetMatmulTransposed(at::Tensor y, const at::Tensor& x, const at::Tensor& w);  // CPU, arithmetic type
void AddMatmul(at::Tensor dx, const at::Tensor& dy, const at::Tensor& w);
// accumulator [N, K] (arithmetic type) += dy^T x, with dy [T, N], x [T, K] (both may be columns of wider matrices);
// overwrite: = dy^T x.
void AddOuterProduct(const at::Tensor& dy, const at::Tensor& x, at::Tensor& accumulator, bool overwrite = false);

// ---- RMSNorm (rms_norm.cc; arXiv 1910.07467) ----
struct RmsNormResult {
  at::Tensor h;     // [T, H]: x + delta, or x itself without delta
  at::Tensor y;     // [T, H]: h * rstd * (weight + offset)
  at::Tensor rstd;  // [T], arithmetic type
};
// delta may be undefined. Statistics in the arithmetic type; h is rounded to the dtype before them, y once.
// offset: 1 where norms learn the distance from one (Gemma), added in the arithmetic type.
RmsNormResult RmsNorm(const at::Tensor& x, const at::Tensor& delta, const at::Tensor& weight, double eps,
                      double offset = 0);
at::Tensor RmsNormAgain(const at::Tensor& h, const at::Tensor& rstd, const at::Tensor& weight,
                        double offset = 0);  // y, from what forward left
// Returns dx = d_h + the norm's own gradient (d_h may be undefined); adds into d_weight [H] (arithmetic type; may be
// undefined).
at::Tensor RmsNormBackward(const at::Tensor& h, const at::Tensor& rstd, const at::Tensor& weight, const at::Tensor& dy,
                           const at::Tensor& d_h, at::Tensor* d_weight, double offset = 0);

// What a feed-forward layer does between its products; GELU (arXiv 1606.08415) exactly or by the tanh formula.
enum class Activation { kSilu, kGeluTanh, kGelu, kRelu, kSquaredRelu };
// ---- Gated activation (gated.cc): gate_up [T, 2F], gate first -> activation(gate) * up [T, F] ----
// Of the activations kSilu (SwiGLU, arXiv 2002.05202) and kGeluTanh (GeGLU).
at::Tensor GatedForward(const at::Tensor& gate_up, Activation activation = Activation::kSilu);
// [T, 2F]; in_place: gate_up's memory may take it.
at::Tensor GatedBackward(const at::Tensor& gate_up, const at::Tensor& d_out, Activation activation = Activation::kSilu,
                         bool in_place = false);

// ---- What an expert does between its products (kernels/experts/gate.cc) ----
struct ExpertGate {
  Activation activation = Activation::kSilu;  // of the gate: those of GatedForward, gate_up gate first
  std::optional<ClampedGate> clamped;         // instead: the gate and up of a unit are neighbours
};

// gate_up [R, 2F], weights [R, 1] (arithmetic type) -> activation(gate) x up x the row's weight [R, F].
at::Tensor ExpertGateForward(const at::Tensor& gate_up, const at::Tensor& weights, const ExpertGate& gate);

struct ExpertGateGradients {
  at::Tensor gate_up;  // [R, 2F]
  at::Tensor weights;  // [R, 1], arithmetic type
  at::Tensor out;      // [R, F]: what ExpertGateForward returned
};
ExpertGateGradients ExpertGateBackward(const at::Tensor& gate_up, const at::Tensor& weights, const at::Tensor& d_out,
                                       const ExpertGate& gate);

// ---- Rotary embedding (rope.cc): in place on the first `heads` heads of packed rows ----
struct RopeTable {
  at::Tensor cosine, sine;   // [positions, pairs], arithmetic type: of position * inverse frequency
  bool interleaved = false;  // neighbours of a head are pairs, 2i and 2i + 1; else i and i + pairs
};
// packed [T, stride]: heads x head_dim first; positions [T] int64. The table's pairs turn, which are the first
// dimensions of each head; others stand still. inverse: rotates back (the gradient).
void ApplyRope(at::Tensor& packed, int64_t heads, int64_t head_dim, const at::Tensor& positions, const RopeTable& table,
               bool inverse);

// ---- Embedding (embedding.cc) ----
at::Tensor EmbeddingForward(const at::Tensor& tokens, const at::Tensor& weight);  // [T] int64, [V, H] -> [T, H]
// accumulator [V, H] += rows of dy [T, H], in token order. Ids outside [0, V) are skipped: other ranks' rows.
void AddEmbeddingGradient(const at::Tensor& tokens, const at::Tensor& dy, at::Tensor& accumulator);

// ---- Loss head (loss_head.cc): projection and cross-entropy in chunks; [T, vocab] never exists ----
struct LossHeadOptions {
  double scale = 1;            // multiplies the gradient: 1 / number of targets in the global batch
  double z_loss = 0;           // coefficient of lse^2
  double softcap = 0;          // logits l become c tanh(l / c); 0: they do not
  int64_t chunk_tokens = 512;  // memory is taken for so many, also where there are fewer: it is the same every time
  bool with_gradient = true;
  bool overwrite = false;  // d_weight and d_b are set, not added to
  // Where the vocabulary is cut over ranks: `weight` holds the ids from first_id on, of vocab_size in all, and
  // combine() turns this part's statistics of a chunk [2, rows] (lse; logit of the target, 0 where it is another
  // part's) into those of the whole, in place.
  int64_t first_id = 0, vocab_size = 0;
  std::function<void(at::Tensor& statistics)> combine = nullptr;
};
// An adapter of the head: it adds thin b^T to the logits.
struct LossHeadAdapter {
  at::Tensor thin;            // [T, r]
  at::Tensor b;               // [V, r]
  at::Tensor d_thin;          // [T, r], set if with_gradient
  at::Tensor* d_b = nullptr;  // [V, r] (arithmetic type): as d_weight
};
struct LossHeadResult {
  at::Tensor sums;  // [2] float64 on x's device: sum over targets of cross-entropy (fp32 per token), and of lse^2
  at::Tensor dx;    // [T, H], if with_gradient
};
// x [T, H] (T may be 0), weight [V, H], targets [T] int64 (negative: ignored). d_weight [V, H] (arithmetic type) gets
// the weight's gradient added when defined.
LossHeadResult LossHead(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets,
                        const LossHeadOptions& options, at::Tensor* d_weight, LossHeadAdapter* adapter = nullptr);

// ---- What a step decides (update_decision.cc), on the tensors' device, without waiting for it ----
// decision [kDecisionNumbers] = Decide() of the sums, in the order of the ranks named, of parts [ranks, 3]: sum of the
// loss, sum of lse^2 (of the ranks in loss_ranks), sum of the gradient's squares (of those in norm_ranks). All float64,
// ranks int64. previous: the decision before; it may be `decision`.
void DecideUpdate(const DecisionRule& rule, const at::Tensor& parts, const at::Tensor& loss_ranks,
                  const at::Tensor& norm_ranks, const at::Tensor& previous, at::Tensor decision);
const UpdateDecision& DecisionIn(const at::Tensor& tensor);  // on the CPU, valid while the tensor is

// ---- Optimizers on flat shards (optimizer_step.cc). All float32 [n] unless said; on the tensors' device. One launch
// each, whatever the shape. `decision` may say that nothing is to change. ----
// copy: bfloat16 [n] to receive the rounded weights, or undefined.
void AdamWUpdate(const AdamWRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g, at::Tensor m,
                 at::Tensor v, at::Tensor copy);
// bfloat16 weights without master: stochastic rounding with 16 bits per element i from `key` at element index.Of(i).
void AdamWUpdateBf16(const AdamWRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g, at::Tensor m,
                     at::Tensor v, RandomKey key, const WholeIndex& index);
// velocity and copy may be undefined.
void SgdUpdate(const SgdRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g, at::Tensor velocity,
               at::Tensor copy);
void LionUpdate(const LionRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g, at::Tensor m,
                at::Tensor copy);
// p moves along `direction`; the gradient has been clipped already.
void DirectionUpdate(const DirectionRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& direction,
                     at::Tensor copy);
// mean follows the gradient; out = what Muon orthogonalizes, zeros where nothing is to change.
void MuonMomentum(const MuonMomentumRule& rule, const at::Tensor& decision, const at::Tensor& g, at::Tensor mean,
                  at::Tensor out);
// bfloat16 weights without master, rounded as in AdamWUpdateBf16.
void LionUpdateBf16(const LionRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g, at::Tensor m,
                    RandomKey key, const WholeIndex& index);
void DirectionUpdateBf16(const DirectionRule& rule, const at::Tensor& decision, at::Tensor p,
                         const at::Tensor& direction, RandomKey key, const WholeIndex& index);

// ---- AdamW whose moments are kept in 8 bits (adamw8.cc, kernels/base/moment_codes.h) ----
// The maps on a device.
struct MomentTables {
  at::Tensor first, second;              // [256] float32
  at::Tensor first_codes, second_codes;  // [kMomentBins] uint8
};
MomentTables MakeMomentTables(at::Device device);

// Of a part of a parameter that begins with a block. Zeros are the state before the first step.
struct EightBitMoments {
  at::Tensor first, second;                // [n] uint8
  at::Tensor first_absmax, second_absmax;  // [(n + 255) / 256] float32
};

// p [n] float32 with `copy` (bfloat16 [n] for the rounded weights, or undefined), or bfloat16 without a master, rounded
// as in AdamWUpdateBf16. States are those of bitsandbytes' AdamW8bit to the bit where gradients are.
void AdamW8Update(const AdamWRule& rule, const at::Tensor& decision, at::Tensor p, const at::Tensor& g,
                  const EightBitMoments& moments, const MomentTables& tables, at::Tensor copy, RandomKey key,
                  const WholeIndex& index);

// ---- Newton-Schulz (newton_schulz.cc; kellerjordan.github.io/posts/muon) ----
struct NewtonSchulzRule {
  int steps = 5;
  double a = 3.4445, b = -4.7750, c = 2.0315;  // X becomes a X + (b A + c A^2) X, with A = X X^T
  double eps = 1e-7;                           // the least norm that X is divided by at first
  at::ScalarType type = at::kFloat;            // of the products: float32 or bfloat16
};
// x [rows, columns] float32 -> a matrix of the same singular vectors whose singular values are near one, float32.
// The same bits for any number of threads.
at::Tensor Orthogonalized(const at::Tensor& x, const NewtonSchulzRule& rule);

// ---- Flat helpers (flat.cc) ----
// squares [tensors] float64 = each float32 tensor's sum of squares, by partial sums in an order that depends on its
// size only; total [1] = their sum in order.
void SquaredNorms(const std::vector<at::Tensor>& tensors, at::Tensor squares, at::Tensor total);
double SquaredNorm(const at::Tensor& x);                     // Waits for a GPU.
void AddInto(at::Tensor& a, const at::Tensor& b);            // a += b, same shape; a may be the wider type
void CopyConverted(const at::Tensor& from, at::Tensor& to);  // same shape, converting float32 <-> bfloat16
// out [n] = sum over r, in order, of parts [ranks, n] (float32 or bfloat16; summed in float32). CPU only.
void SumInOrder(const at::Tensor& parts, at::Tensor& out);

}  // namespace trireme

#endif  // TRIREME_KERNELS_BASE_OPS_H_
