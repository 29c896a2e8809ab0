// parallel/sharding/parameter_buffer.h
// The parameters of one unit that are stored and moved together.
#ifndef TRIREME_PARALLEL_SHARDING_PARAMETER_BUFFER_H_
#define TRIREME_PARALLEL_SHARDING_PARAMETER_BUFFER_H_

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/base/update_decision.h"
#include "kernels/base/weight.h"
#include "parallel/comm/process_group.h"
#include "parallel/sharding/quantized_storage.h"
#include "parallel/sharding/rectangle.h"

namespace trireme {

enum class Initialization { kNormal, kUniform, kOnes, kZeros, kConstant };

// How n tensor ranks share a parameter.
enum class Placement {
  kReplicated,  // each holds it all
  kRows,        // each n-th of the rows: column-parallel products
  kColumns,     // each n-th of the columns: row-parallel products
  kVocabulary,  // rows, not necessarily divisible: the last ranks hold fewer
};

struct ParameterSpec {
  std::string name;            // canonical, as in a Llama checkpoint: "model.layers.0.self_attn.q_proj.weight"
  std::vector<int64_t> shape;  // global; one or two dimensions
  Initialization initialization = Initialization::kNormal;
  double standard_deviation = 0.02;    // kUniform: the values lie between minus and plus this; kConstant: the value
  double rate = 1;                     // multiplies the learning rate
  bool decay = true;                   // weight decay applies
  std::optional<double> weight_decay;  // instead of the rule's, also where `decay` says none
  bool trainable = true;
  bool balanced = false;  // a correction of a router's scores, which may follow the loads of its experts; not trainable
  bool added = false;     // by an adapter: no parameter of the model's own files
  bool fused_with_previous =
      false;  // multiplied as one matrix with the parameter before: lies unpadded after it, same columns
  Placement placement = Placement::kReplicated;
  int64_t heads = 0;  // kRows: the rows are this many heads; fewer than ranks are held by several ranks each. 0: any
  bool expert =
      false;  // of a mixture's experts, whose heads they are: cut over expert ranks, in a buffer of its own kind
  int64_t matrices = 1;       // that stand in it one under another, of as many rows each, and are quantized apart
  bool block_matrix = false;  // multiplied inside a block, and no router: what Muon orthogonalizes
  bool wide = false;          // float32 whatever the compute type, in a buffer of its own kind
  double active = 1;          // the share of tokens that multiply with it
  bool quantized = false;     // a matrix that is held in fewer bits, in a buffer of its own kind; not trainable
};

// Why `spec` cannot be held quantized when `ranks`, of tensor or expert, share it; OK: it can.
absl::Status CheckQuantizable(const ParameterSpec& spec, QuantizationFormat format, int ranks);

// Whether an optimizer that keeps its state in 8 bits does so for this parameter: it is large enough.
bool KeepsMomentCodes(const ParameterSpec& spec);

// Why some state of `spec` that has one number for every `block` elements cannot be cut as the parameter is when
// `ranks` share it, and its buffer is cut over `shards`; `before`: elements of its fused group that lie before it on a
// rank. OK: it can.
absl::Status CheckBlocks(const ParameterSpec& spec, int64_t block, int ranks, int shards, int64_t* before);

// Where elements of this rank's part of a buffer belong.
struct Segment {
  int parameter = 0;      // index into specs()
  int64_t own_begin = 0;  // first element, within the own tensors
  int64_t numel = 0;
  int64_t parameter_begin = 0;  // index of that element in the flattened rectangle() of the parameter
};

// What is cut over the shard group: nothing (DDP), optimizer state (ZeRO-1), gradients too (ZeRO-2), parameters too
// (ZeRO-3, FSDP).
enum class ShardLevel { kNone, kOptimizer, kGradients, kParameters };
const char* ShardLevelName(ShardLevel level);  // as parallel.shard spells it: "NONE", ...

struct BufferOptions {
  std::string name;  // of the unit: "model.layers.3"
  ShardLevel shard = ShardLevel::kParameters;
  bool reduce_every_microbatch = true;
  at::ScalarType compute = at::kFloat;         // of gathered values
  bool master_weights = true;                  // keep float32 beside a bfloat16 compute type
  at::ScalarType reduce = at::kFloat;          // on the wire when gradients are summed
  std::shared_ptr<ProcessGroup> gather_group;  // over which shards are cut (data_shard x context)
  std::shared_ptr<ProcessGroup>
      reduce_group;  // the same ranks; another communicator on GPUs, so that both can be under way
  std::shared_ptr<ProcessGroup> replicate_group;  // copies of the sharded model
  // The following may be null: none.
  std::shared_ptr<ProcessGroup> tensor_group;  // over which placements cut parameters
  // By a number of heads smaller than that of tensor ranks: those that hold the same heads of such parameters.
  std::map<int64_t, std::shared_ptr<ProcessGroup>> head_replica_groups;
  std::shared_ptr<ProcessGroup> tied_group;  // pipeline ranks that hold a copy of this buffer
  at::Device device = at::kCPU;
  int uses = 1;                                    // units that use it (2: tied embedding and head)
  std::optional<QuantizationFormat> quantization;  // the buffer holds its (frozen) parameters in fewer bits
  std::shared_ptr<DequantizedValues> dequantized;  // with it: where full() puts values, for all buffers
  bool poison_resharded = false;  // tests: fill the slab with NaN on Reshard(), so that a use after it shows
};

// A rank's rectangles of the parameters (the same sizes on all tensor ranks: a short vocabulary part is padded) lie one
// after another (each fused group from a multiple of 256 elements) and are cut into equal contiguous
// shards over the gather group, at multiples of 256 elements. What a rank owns of a parameter is at most three
// rectangles. With one shard rank, stored, gathered and (in one dtype) compute values are one tensor and nothing moves.
// Slabs come from the reusing allocators. Level: NONE owns everything on every rank; OPTIMIZER and GRADIENTS keep the
// gathered values; PARAMETERS gathers them per use. A quantized buffer moves codes and scales, and Weight::full()
// dequantizes: its values are valid until the next full() of any quantized weight.
class ParameterBuffer {
 public:
  ParameterBuffer(std::vector<ParameterSpec> specs, BufferOptions options);
  ~ParameterBuffer();
  ParameterBuffer(const ParameterBuffer&) = delete;
  ParameterBuffer& operator=(const ParameterBuffer&) = delete;

  const std::string& name() const { return options_.name; }
  const std::vector<ParameterSpec>& specs() const { return specs_; }
  const BufferOptions& options() const { return options_; }
  bool trainable() const;  // any parameter is; else there are neither gradients nor master weights
  const Rectangle& rectangle(int parameter) const { return rectangles_[parameter]; }  // of this tensor rank
  int64_t numel() const { return numel_; }                                            // with padding
  int64_t num_parameters() const;                                                     // elements without padding

  // The weight that starts with parameter `index` (the first of its fused group): [sum of rows, columns] or [width].
  Weight& weight(int index);

  // ---- Values. Collective over the gather group; idempotent. ----
  void StartUnshard();   // Begins gathering.
  void FinishUnshard();  // Weight::full() is valid from here (on the current stream)
  void Reshard();        // ... to here.

  // ---- Gradients. Between BeginStep and FinishGradients, weights add their gradients. ----
  void BeginStep();
  // Collective over the reduce group: sums this microbatch's gradient into own_gradient(), if due. Until FinishReduce
  // the sum is under way.
  // After the last microbatch's the sum over the replicate group begins, too.
  void StartReduce(bool last_microbatch);
  void FinishReduce();
  // Collective over the replicate, tied and tensor groups, after the last FinishReduce: completes the sum over the
  // replicate group, and copies of a parameter get the sum of their gradients. CHECKs that every trainable parameter
  // got exactly uses x num_microbatches contributions.
  void FinishGradients(int num_microbatches);

  // While set, gradient tasks go there instead of running (zero-bubble schedules); null: they run at once.
  using DeferredTasks = std::vector<std::function<void()>>;
  void set_deferred(DeferredTasks* tasks) { deferred_ = tasks; }

  // ---- What the optimizer and checkpoints see: this rank's part. ----
  const at::Tensor& own_weights() const {
    return own_weights_;
  }  // [own_numel] float32, or bfloat16 without master weights; undefined when quantized
  const at::Tensor& own_gradient() const {
    return own_gradient_;
  }  // [own_numel] float32; undefined before FinishReduce and when frozen
  const at::Tensor& own_compute() const {
    return own_compute_;
  }  // [own_numel] compute dtype; the same tensor where dtypes agree
  const std::vector<Segment>& segments() const { return segments_; }

  // The segments that this rank counts and saves: every element of a parameter once among the ranks of the gather,
  // tensor and tied groups.
  const std::vector<Segment>& unique_segments() const { return unique_segments_; }
  std::vector<at::Tensor> UniqueGradients() const;  // their parts of own_gradient(), of trainable parameters

  // Where the segment's elements stand in the whole parameter.
  WholeIndex WholeIndexOf(const Segment& segment) const;

  // Called after own_weights() changed (an update or a load): makes compute and gathered values follow, the latter by
  // the next Weight::full(). Collective over the gather group. `converted`: own_compute() was already written.
  void Publish(bool converted);

  // Sets this rank's part of a parameter from the values of its rectangle(). Publish() must follow.
  void Set(int parameter, const at::Tensor& values);

  // Fills own weights: element e of a parameter depends on (seed, name, e) only. Publish() must follow. Collective over
  // the gather and tensor groups when quantized.
  void Initialize(uint64_t seed);

  // ---- Quantized buffers. Publish() must follow both. ----
  bool quantized() const { return storage_ != nullptr; }
  // Quantizes what `read` gives: `out` gets elements [begin, end) of the flattened rectangle() of a parameter; called
  // for pieces of a few MiB, for some twice. Collective over the gather and tensor groups, also where reads fail.
  absl::Status QuantizeFrom(const QuantizedStorage::Reader& read);
  // Takes this rank's part of a matrix that is quantized already, bit for bit. Not collective.
  void TakeQuantized(int parameter, const QuantizedMatrix& whole);

  int64_t MemoryBytes()
      const;  // Held between steps on this rank: weights, compute copies, gradients; not optimizer state.

 private:
  class GroupWeight;

  void InitialValues(uint64_t seed, const Segment& segment, float* out) const;
  void AccumulateGradient(GroupWeight& weight, const GradientTask& task);
  void Contribute(GroupWeight& weight, const GradientTask& task);
  void StartReplicateSum();
  void SumOverReplicas(ProcessGroup& group, const std::vector<const Segment*>& segments);
  ProcessGroup* ReplicasOf(int parameter) const;  // tensor ranks with the same rectangle; null: none
  bool sharded() const { return options_.gather_group->size() > 1; }
  bool owns_all() const { return options_.shard == ShardLevel::kNone || !sharded(); }

  std::vector<ParameterSpec> specs_;
  std::vector<Rectangle> rectangles_;
  std::vector<int64_t> offsets_;  // of each parameter in the buffer
  BufferOptions options_;
  int64_t numel_ = 0, shard_numel_ = 0, own_numel_ = 0, own_offset_ = 0;
  std::vector<std::unique_ptr<GroupWeight>> weights_;
  std::vector<int> weight_of_parameter_;
  std::vector<Segment> segments_, unique_segments_;
  std::vector<std::pair<int64_t, int64_t>> gaps_;  // begin and end of what belongs to no trainable weight
  DeferredTasks* deferred_ = nullptr;

  std::unique_ptr<QuantizedStorage> storage_;  // null: plain values
  std::vector<int> first_matrix_;              // of each parameter in storage_, and behind the last
  at::Tensor own_weights_, own_compute_;       // quantized: the second is bytes
  at::Tensor gathered_;                        // [numel], compute dtype, or bytes; undefined while resharded
  int64_t gathered_numel_ = 0;
  bool unsharded_ = false, unsharding_ = false;
  Work unshard_work_, publish_work_;

  at::Tensor gradient_;  // [numel] float32: what weights add into; undefined while none was added
  at::Tensor own_gradient_;
  at::Tensor reduced_;  // result of the reduction under way
  Work reduce_work_, replicate_work_;
  bool reducing_ = false, last_reduction_ = false, replicates_summed_ = false;  // the last: at least begun
  bool gradient_empty_ = true;                                                  // nothing was added to gradient_ yet
};

}  // namespace trireme

#endif  // TRIREME_PARALLEL_SHARDING_PARAMETER_BUFFER_H_
