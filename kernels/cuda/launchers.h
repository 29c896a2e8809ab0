// kernels/cuda/launchers.h
// CUDA kernels behind plain C++: raw device pointers, sizes and a stream. Nothing here allocates, synchronizes or
// checks shapes (ops.cc does); a launch that fails ends the process. All results are the same in every run on the same
// GPU: no floating-point atomics. Arithmetic is that of kernels/base/element_math.h in float32, rounded once to the
// storage type.
#ifndef TRIREME_KERNELS_CUDA_LAUNCHERS_H_
#define TRIREME_KERNELS_CUDA_LAUNCHERS_H_

#include <cstdint>

#include "kernels/base/element_math.h"
#include "kernels/base/moment_codes.h"
#include "kernels/base/nf4_math.h"
#include "kernels/base/philox.h"
#include "kernels/base/update_decision.h"
#include "kernels/base/update_elements.h"

namespace trireme::cuda {

// How the values behind a void* are stored.
enum class Storage { kFloat32, kBfloat16 };

using Stream = void*;  // cudaStream_t

// Ends the process, naming `kernel`, if the last launch of this thread failed.
void CheckLaunch(const char* kernel);

// ---- RMSNorm (rms_norm.cu) ----
// What is void* is stored as `storage`: [rows, width], weight [width]. delta null: h is not written.
void LaunchRmsNorm(Storage storage, int64_t rows, int64_t width, const void* x, const void* delta, const void* weight,
                   float offset, float eps, void* h, void* y, float* rstd, Stream stream);
void LaunchRmsNormAgain(Storage storage, int64_t rows, int64_t width, const void* h, const float* rstd,
                        const void* weight, float offset, void* y, Stream stream);
// Parts of the weight's gradient: a function of the shape only. Scratch for LaunchRmsNormBackward is [parts, width]
// float32.
int64_t RmsNormParts(int64_t rows);
// d_h may be null. d_weight null: no weight gradient, and scratch may be null.
void LaunchRmsNormBackward(Storage storage, int64_t rows, int64_t width, const void* h, const float* rstd,
                           const void* weight, float offset, const void* dy, const void* d_h, void* dx, float* scratch,
                           float* d_weight, Stream stream);

// ---- Elements (elementwise.cu) ----
// gate_up [rows, 2 * width], out [rows, width].
void LaunchSwiGlu(Storage storage, int64_t rows, int64_t width, const void* gate_up, void* out, Stream stream);
void LaunchSwiGluBackward(Storage storage, int64_t rows, int64_t width, const void* gate_up, const void* d_out,
                          void* d_gate_up, Stream stream);
// In place on the first heads * head_dim values of rows `stride` apart; cosine, sine [places, head_dim / 2];
// direction 1 or -1. A position outside [0, places) traps.
void LaunchRope(Storage storage, int64_t rows, int64_t heads, int64_t head_dim, int64_t pairs, bool interleaved,
                int64_t stride, void* x, const int64_t* positions, int64_t places, const float* cosine,
                const float* sine, float direction, Stream stream);
// x, out [rows, width], tokens [rows]; the rest as in kernels/base/dropout.h.
void LaunchDropout(Storage storage, int64_t rows, int64_t width, int64_t first_column, const int64_t* tokens,
                   RandomKey key, uint32_t threshold, float scale, const void* x, void* out, Stream stream);
// a [n] += b [n]. a_storage is b_storage or kFloat32.
void LaunchAdd(Storage a_storage, Storage b_storage, int64_t n, void* a, const void* b, Stream stream);

// ---- Experts (experts.cu): as in kernels/experts/ ----
enum class GateKind { kSwiGlu, kGeGlu, kClamped };
// gate_up [rows, 2 * width], weights [rows], out [rows, width]; `clamped` is read by its kind only.
void LaunchExpertGate(Storage storage, GateKind kind, const ClampedGate& clamped, int64_t rows, int64_t width,
                      const void* gate_up, const float* weights, void* out, Stream stream);
void LaunchExpertGateBackward(Storage storage, GateKind kind, const ClampedGate& clamped, int64_t rows, int64_t width,
                              const void* gate_up, const float* weights, const void* d_out, void* d_gate_up,
                              float* d_weights, void* out, Stream stream);
// places [tokens * per_token]: rows of x; out [tokens, width].
void LaunchSumOfChoices(Storage storage, int64_t tokens, int64_t per_token, int64_t width, const int64_t* places,
                        const void* x, void* out, Stream stream);

// ---- Embedding (embedding.cu) ----
// weight [vocab, row_bytes]. A token outside [0, vocab) prints a line and stops the stream with an error.
void LaunchEmbedding(int64_t rows, int64_t vocab, int64_t row_bytes, const int64_t* tokens, const void* weight,
                     void* out, Stream stream);
// accumulator [vocab, width] += rows of dy, added in token order; ids outside [0, vocab) are skipped. sorted [rows]:
// the tokens in ascending order; order [rows]: where each stood, ascending within equal tokens (a stable sort).
void LaunchEmbeddingGradient(Storage storage, int64_t rows, int64_t vocab, int64_t width, const int64_t* sorted,
                             const int64_t* order, const void* dy, float* accumulator, Stream stream);

// ---- Cross-entropy (cross_entropy.cu) ----
struct CrossEntropyArguments {
  int64_t rows = 0, columns = 0;
  const float* logits = nullptr;  // [rows, columns]: the ids from first_id on, of `vocab` in all
  int64_t first_id = 0, vocab = 0;
  const int64_t* targets = nullptr;  // [rows], ids; negative: ignored
  float scale = 1, z_loss = 0;
  bool lse_given = false;      // else lse and of_target are written
  float* lse = nullptr;        // [rows]
  float* of_target = nullptr;  // [rows]: the target's logit, 0 where it is not among the columns
  Storage gradient_storage = Storage::kFloat32;
  void* gradient = nullptr;  // [rows, columns] or null; may be `logits` when stored as float32
};
// gradient: (softmax * (1 + 2 z_loss lse) - onehot) * scale; zero where ignored.
void LaunchCrossEntropy(const CrossEntropyArguments& arguments, Stream stream);
// sums [2] += {sum of lse - of_target, sum of lse^2} over targets, in float64, in an order that depends on rows only.
void LaunchAddLossSums(int64_t rows, const int64_t* targets, const float* lse, const float* of_target, double* sums,
                       Stream stream);

// ---- Optimizers and norm on flat arrays (optimizer.cu) ----
// `decision` lies in device memory.
void LaunchAdamW(const AdamWRule& rule, const UpdateDecision* decision, int64_t n, float* p, const float* g, float* m,
                 float* v, Bf16* copy, Stream stream);
void LaunchAdamWBf16(const AdamWRule& rule, const UpdateDecision* decision, int64_t n, Bf16* p, const float* g,
                     float* m, float* v, RandomKey key, const WholeIndex& index, Stream stream);
void LaunchSgd(const SgdRule& rule, const UpdateDecision* decision, int64_t n, float* p, const float* g,
               float* velocity, Bf16* copy, Stream stream);
void LaunchLion(const LionRule& rule, const UpdateDecision* decision, int64_t n, float* p, const float* g, float* m,
                Bf16* copy, Stream stream);
void LaunchLionBf16(const LionRule& rule, const UpdateDecision* decision, int64_t n, Bf16* p, const float* g, float* m,
                    RandomKey key, const WholeIndex& index, Stream stream);
void LaunchDirection(const DirectionRule& rule, const UpdateDecision* decision, int64_t n, float* p,
                     const float* direction, Bf16* copy, Stream stream);
void LaunchDirectionBf16(const DirectionRule& rule, const UpdateDecision* decision, int64_t n, Bf16* p,
                         const float* direction, RandomKey key, const WholeIndex& index, Stream stream);
void LaunchMuonMomentum(const MuonMomentumRule& rule, const UpdateDecision* decision, int64_t n, const float* g,
                        float* mean, float* out, Stream stream);
void LaunchAdamW8(const AdamWRule& rule, const UpdateDecision* decision, int64_t n, float* p, const float* g,
                  const MomentArrays& moments, const MomentMaps& maps, Bf16* copy, Stream stream);
void LaunchAdamW8Bf16(const AdamWRule& rule, const UpdateDecision* decision, int64_t n, Bf16* p, const float* g,
                      const MomentArrays& moments, const MomentMaps& maps, RandomKey key, const WholeIndex& index,
                      Stream stream);
int64_t SquaredNormParts(int64_t n);  // Scratch for LaunchSquaredNorm is [parts] float64.
// *sum = sum of x^2 in an order that depends on n only.
void LaunchSquaredNorm(int64_t n, const float* x, double* scratch, double* sum, Stream stream);

// ---- What a step decides (update_decision.cu): as in kernels/base/ops.h ----
void LaunchAddUp(int64_t n, const double* values, double* sum, Stream stream);
void LaunchDecide(const DecisionRule& rule, const double* parts, int64_t num_loss_ranks, const int64_t* loss_ranks,
                  int64_t num_norm_ranks, const int64_t* norm_ranks, const UpdateDecision* previous,
                  UpdateDecision* decision, Stream stream);

// ---- For tests (spin.cu) ----
// Occupies the stream for about `nanoseconds`.
void LaunchSpin(int64_t nanoseconds, Stream stream);

// ---- Quantized weights (quantized.cu) ----
// out [blocks * 64]; out [blocks * 32]; out [rows.n].
void LaunchNf4Dequantize(Storage storage, const Nf4Blocks& blocks, void* out, Stream stream);
void LaunchMxfp4Dequantize(Storage storage, const Mxfp4Blocks& blocks, void* out, Stream stream);
void LaunchInt8Dequantize(Storage storage, const Int8Rows& rows, void* out, Stream stream);

}  // namespace trireme::cuda

#endif  // TRIREME_KERNELS_CUDA_LAUNCHERS_H_
