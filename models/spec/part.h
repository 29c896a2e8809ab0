// models/spec/part.h
// What blocks are made of. A part is a mixer (attention) or a feed-forward: what it computes, which parameters it has,
// and what it costs. Blocks, buffers, adapters, quantization, estimates and plans ask this interface and know no part
// by name; the built-in ones stand in models/parts/, a program outside the tree may bring others.
#ifndef TRIREME_MODELS_SPEC_PART_H_
#define TRIREME_MODELS_SPEC_PART_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/base/weight.h"
#include "models/spec/rotation.h"
#include "parallel/comm/mesh.h"
#include "parallel/comm/process_group.h"
#include "parallel/sharding/parameter_buffer.h"
#include "parallel/sharding/unit.h"

namespace trireme {

// How a norm works, wherever it stands.
struct NormSpec {
  enum Kind { kRms, kLayer } kind = kRms;  // arXiv 1910.07467, 1607.06450
  bool weight = true, bias = false;        // of its own
  double offset = 0;                       // what is added to the weight: 1 where it learns the distance from one
  double eps = 1e-5;
};

// The weight and the bias of a norm on this rank; null where `spec` has none.
struct NormWeights {
  NormSpec spec;
  Weight* weight = nullptr;
  Weight* bias = nullptr;
};

// norm(x) [t, hidden].
at::Tensor ApplyNorm(const at::Tensor& x, const NormWeights& norm);

// The parameters of the norm called `name`: NAME.weight and NAME.bias, those that there are.
std::vector<ParameterSpec> NormParameters(const NormSpec& norm, const std::string& name, int64_t width);

// Where a part's parameters stand in the model, and how wide it is there.
struct PartPlace {
  std::string prefix;  // of the parameters' names: "model.layers.3."
  int64_t hidden_size = 0;
  double deviation = 0;           // of initial values
  double residual_deviation = 0;  // of those of matrices that write to the residual stream
};

// The weights of a part on this rank, by their names behind the block's prefix: "self_attn.q_proj.weight". Of a fused
// group only the first has one, which stands for all.
class PartWeights {
 public:
  void Add(std::string name, Weight* weight) { weights_.emplace_back(std::move(name), weight); }
  Weight* Find(const std::string& name) const;  // Null: there is none.
  Weight& At(const std::string& name) const;    // CHECKs that there is one.

 private:
  std::vector<std::pair<std::string, Weight*>> weights_;
};

// What a part reads: the residual stream x + delta [t, hidden], through a norm or as it is. One product that is all
// that reads an RMSNorm is one operation with it (NormLinear); for several readers the norm runs once.
class NormedStream {
 public:
  // delta may be undefined. norm null: the stream is read as it is. All outlive this.
  NormedStream(at::Tensor x, at::Tensor delta, const NormWeights* norm, ProcessGroup& tensor, KeptResults* kept);

  // norm(x + delta) weight^T + bias [T, N/n]; bias may be null. name: under which it may be kept (kept_results.h).
  at::Tensor Multiply(Weight& weight, Weight* bias, const char* name);
  // norm(x + delta) [t, hidden].
  const at::Tensor& Rows();
  // x + delta. It stands once the stream was read; reading it before adds.
  const at::Tensor& Sum();

 private:
  at::Tensor x_, delta_, rows_;
  const NormWeights* norm_;
  ProcessGroup& tensor_;
  KeptResults* kept_;
};

// What parts share on a rank.
struct PartResources {
  AttentionBackend attention;
  RotationTables* rotations = nullptr;
  ProcessGroup* tensor = nullptr;
  ProcessGroup* expert = nullptr;  // over which experts are cut
};

// One forward pass of a part.
struct PartCall {
  NormedStream& input;
  bool adds = false;  // The result is to hold the stream too, added within the last product (residual()).
  at::Tensor onto;    // That stream, where it is not what the part reads; undefined: it is.
  const PartWeights& weights;
  const PartResources& shared;
  const UnitContext& context;
  const std::string& block;  // "model.layers.3", under which it finds its memory of the past

  // What the last product adds; undefined: nothing. To be asked for once the input was read.
  at::Tensor residual() const { return !adds ? at::Tensor() : onto.defined() ? onto : input.Sum(); }
};

// One microbatch on one rank, for estimates.
struct RankSizes {
  int64_t tokens = 0;  // of this context rank
  int64_t tensor = 1;  // tensor ranks
  int64_t element_size = 4;
  int64_t hidden_size = 0;
};
// What a part's passes take, in bytes.
struct PartMemory {
  std::map<std::string, int64_t> kept;  // results that stay until backward, by the names of kept_results.h
  int64_t saved = 0;                    // what stays beside them, unless the block is computed again
  int64_t moment = 0;                   // what one pass needs for a moment
};

// How a mixer attends: by this the engine chooses a backend, plans contexts and counts.
struct AttentionShape {
  int64_t heads = 0, kv_heads = 0, head_dim = 0, value_dim = 0;
  int64_t window = 0;
  double scale = 0, softcap = 0;
  bool alibi = false;
  std::optional<Rotation> rotation;
  bool operator==(const AttentionShape& other) const = default;
};

class BlockPart {
 public:
  virtual ~BlockPart() = default;
  // In the order of the buffer. Matrices of fused groups are neighbours.
  virtual std::vector<ParameterSpec> Parameters(const PartPlace& place) const = 0;
  // The part's result [t, hidden]; all tensor ranks call it alike.
  virtual at::Tensor Forward(const PartCall& call) const = 0;
  virtual PartMemory Memory(const RankSizes& sizes) const = 0;
  // Appends why the mesh cannot share it, each problem naming a field.
  virtual void CheckRanks(const MeshShape& mesh, std::vector<std::string>* problems) const = 0;
  // None: it does not attend.
  virtual std::optional<AttentionShape> attention() const { return std::nullopt; }
};

}  // namespace trireme

#endif  // TRIREME_MODELS_SPEC_PART_H_
