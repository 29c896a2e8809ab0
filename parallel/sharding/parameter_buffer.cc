// Long because gathering, gradients and initialization share where parameters lie in the buffer; how quantized ones are
// stored is quantized_storage.cc.
#include "parallel/sharding/parameter_buffer.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "kernels/base/ops.h"
#include "kernels/base/thread_pool.h"
#include "launch/base/status.h"
#include "parallel/comm/mpi_group.h"

namespace trireme {
namespace {

constexpr int64_t kUnit = 256;  // Shards and fused groups begin at multiples of this.

int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

int64_t NumelOf(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (int64_t extent : shape) n *= extent;
  return n;
}

// What rank `rank` of `ranks` holds of a parameter, and in how much room.
struct Placed {
  Rectangle rectangle;
  int64_t room;  // elements, the same on all ranks
};
Placed Place(const ParameterSpec& spec, int ranks, int rank) {
  Placed placed = {{std::vector<int64_t>(spec.shape.size(), 0), spec.shape}, NumelOf(spec.shape)};
  if (ranks == 1 || spec.placement == Placement::kReplicated) return placed;
  const size_t dim = spec.placement == Placement::kColumns ? 1 : 0;
  int64_t parts = ranks, part = rank;
  if (spec.placement == Placement::kRows && spec.heads > 0 && spec.heads < ranks) {
    TRIREME_CHECK(ranks % spec.heads == 0, spec.name, ": ", spec.heads, " heads on ", ranks, " tensor ranks");
    parts = spec.heads;
    part = rank * parts / ranks;
  }
  const int64_t extent = spec.shape[dim], size = (extent + parts - 1) / parts;
  TRIREME_CHECK(extent % parts == 0 || spec.placement == Placement::kVocabulary, spec.name, ": ", extent,
                " does not divide into ", parts, " parts");
  placed.rectangle.offset[dim] = std::min(extent, part * size);
  placed.rectangle.size[dim] = std::min(extent, (part + 1) * size) - placed.rectangle.offset[dim];
  placed.room = NumelOf(spec.shape) / extent * size;
  return placed;
}

// What of a parameter is quantized apart, of this rank's part of it that begins at `offset` of the buffer: the part
// itself, or the whole matrices in it.
std::vector<QuantizedStorage::Matrix> MatricesOf(const ParameterSpec& spec, const Rectangle& own, int64_t offset) {
  if (spec.matrices == 1) return {{offset, own, spec.shape}};
  const int64_t rows = spec.shape[0] / spec.matrices, columns = spec.shape[1];
  std::vector<QuantizedStorage::Matrix> all;
  for (int64_t row = 0; row < own.size[0]; row += rows)
    all.push_back({offset + row * columns, {{0, 0}, {rows, columns}}, {rows, columns}});
  return all;
}

std::shared_ptr<ProcessGroup> OrAlone(std::shared_ptr<ProcessGroup> group) {
  return group != nullptr ? std::move(group) : MakeSelfGroup("alone");
}

}  // namespace

const char* ShardLevelName(ShardLevel level) {
  constexpr const char* kNames[] = {"NONE", "OPTIMIZER", "GRADIENTS", "PARAMETERS"};
  return kNames[static_cast<int>(level)];
}

absl::Status CheckQuantizable(const ParameterSpec& spec, QuantizationFormat format, int ranks) {
  for (int rank = 0; rank < ranks; ++rank) {
    const Rectangle own = Place(spec, ranks, rank).rectangle;
    const QuantizedStorage::Matrix first = MatricesOf(spec, own, 0).front();
    const absl::Status status = QuantizedStorage::Check(format, first.shape, first.rectangle);
    if (!status.ok()) return Annotate(status, spec.name);
  }
  return absl::OkStatus();
}

bool KeepsMomentCodes(const ParameterSpec& spec) {
  constexpr int64_t kLeast = 4096;  // elements
  return NumelOf(spec.shape) >= kLeast;
}

absl::Status CheckBlocks(const ParameterSpec& spec, int64_t block, int ranks, int shards, int64_t* before) {
  if (!spec.fused_with_previous) *before = 0;
  const int64_t begin = *before;
  *before += Place(spec, ranks, 0).room;
  if (shards > 1 && begin % block != 0)
    return Error(ExitCode::kConfig, spec.name, " lies ", begin, " elements behind ",
                 "the first of the matrices that are multiplied with it");
  for (int rank = 0; rank < ranks; ++rank) {
    const Rectangle own = Place(spec, ranks, rank).rectangle;
    const int64_t columns = spec.shape.size() == 2 ? spec.shape[1] : 1;
    const bool whole_rows = spec.shape.size() < 2 || own.size[1] == columns;
    const bool fits = whole_rows ? own.offset[0] * columns % block == 0
                                 : columns % block == 0 && own.offset[1] % block == 0 && own.size[1] % block == 0;
    if (!fits) return Error(ExitCode::kConfig, spec.name, " is cut to ", own.ToString(), " on a rank");
  }
  return absl::OkStatus();
}

// One parameter, or a fused group seen as one matrix.
class ParameterBuffer::GroupWeight final : public Weight {
 public:
  GroupWeight(ParameterBuffer* buffer, int parameter, int64_t offset, const Rectangle& rectangle, std::string name,
              bool trainable)
      : buffer_(buffer),
        parameter_(parameter),
        offset_(offset),
        shape_(rectangle.size),
        first_row_(rectangle.offset[0]),
        name_(std::move(name)),
        trainable_(trainable) {}

  void Append(int64_t rows, bool trainable) {
    shape_[0] += rows;
    ++members_;
    trainable_ = trainable_ || trainable;  // One product gives the gradient of all.
  }

  Gathered full() const override {
    TRIREME_CHECK(buffer_->unsharded_, "parameter ", name_, " is used while its unit is resharded");
    buffer_->publish_work_.Wait();
    if (buffer_->quantized()) {
      const int begin = buffer_->first_matrix_[parameter_];
      return {Dequantized(begin, buffer_->first_matrix_[parameter_ + members_] - begin, shape_), first_row_};
    }
    return {View(buffer_->gathered_), first_row_};
  }
  at::Tensor Rows(int64_t first, int64_t count) const override {
    if (!buffer_->quantized()) return Weight::Rows(first, count);
    TRIREME_CHECK(buffer_->unsharded_, "parameter ", name_, " is used while its unit is resharded");
    buffer_->publish_work_.Wait();
    const int begin = buffer_->first_matrix_[parameter_], end = buffer_->first_matrix_[parameter_ + members_];
    const int64_t of_matrix = shape_[0] / (end - begin);
    TRIREME_CHECK(first % of_matrix == 0 && count % of_matrix == 0, "rows of parts of matrices of ", name_);
    return Dequantized(begin + static_cast<int>(first / of_matrix), static_cast<int>(count / of_matrix),
                       {count, shape_[1]});
  }
  bool at_hand() const override { return !buffer_->quantized(); }
  bool trainable() const override { return trainable_; }
  void AddGradient(GradientTask task) override { buffer_->AccumulateGradient(*this, task); }
  bool gradient_deferred() const override { return buffer_->deferred_ != nullptr; }

  int64_t begin() const { return offset_; }
  int64_t end() const { return offset_ + NumelOf(shape_); }
  at::Tensor View(const at::Tensor& flat) const { return flat.narrow(0, offset_, NumelOf(shape_)).view(shape_); }

  const std::string& name() const { return name_; }
  int contributions = 0;  // in this step
  bool fresh = true;      // nothing was added to its part of gradient_ yet

 private:
  // Matrices [first, first + count) of the storage, one under another.
  at::Tensor Dequantized(int first, int count, const std::vector<int64_t>& shape) const {
    at::Tensor values = buffer_->options_.dequantized->Take(NumelOf(shape));
    int64_t done = 0;
    for (int i = first; i < first + count; ++i) {
      const int64_t n = buffer_->storage_->NumelOf(i);
      buffer_->storage_->Dequantize(buffer_->gathered_, i, values.narrow(0, done, n));
      done += n;
    }
    return values.view(shape);
  }

  ParameterBuffer* buffer_;
  int parameter_, members_ = 1;  // the first of the group, and how many
  int64_t offset_;
  std::vector<int64_t> shape_;
  int64_t first_row_;
  std::string name_;
  bool trainable_;
};

ParameterBuffer::ParameterBuffer(std::vector<ParameterSpec> specs, BufferOptions options)
    : specs_(std::move(specs)), options_(std::move(options)) {
  options_.tensor_group = OrAlone(options_.tensor_group);
  options_.tied_group = OrAlone(options_.tied_group);
  for (const ParameterSpec& spec : specs_) {
    const Placed placed = Place(spec, options_.tensor_group->size(), options_.tensor_group->rank());
    TRIREME_CHECK(spec.quantized == options_.quantization.has_value(), spec.name, " is in a buffer of another storage");
    if (spec.quantized) {
      const absl::Status possible = CheckQuantizable(spec, *options_.quantization, options_.tensor_group->size());
      TRIREME_CHECK(possible.ok() && !spec.trainable, possible.message(), " (", spec.name,
                    " is frozen: ", !spec.trainable, ")");
    }
    if (spec.fused_with_previous) {
      TRIREME_CHECK(!weights_.empty(), spec.name, " has nothing to be fused with");
      weights_.back()->Append(placed.rectangle.size[0], spec.trainable);
    } else {
      numel_ = RoundUp(numel_, kUnit);
      weights_.push_back(std::make_unique<GroupWeight>(this, static_cast<int>(rectangles_.size()), numel_,
                                                       placed.rectangle, spec.name, spec.trainable));
    }
    rectangles_.push_back(placed.rectangle);
    offsets_.push_back(numel_);
    weight_of_parameter_.push_back(static_cast<int>(weights_.size()) - 1);
    numel_ += placed.room;
  }
  const int64_t ranks = options_.gather_group->size();
  numel_ = RoundUp(numel_, kUnit * ranks);
  shard_numel_ = numel_ / ranks;
  own_numel_ = owns_all() ? numel_ : shard_numel_;
  own_offset_ = owns_all() ? 0 : shard_numel_ * options_.gather_group->rank();

  for (size_t i = 0; i < specs_.size(); ++i) {
    const int64_t begin = std::max(offsets_[i], own_offset_);
    const int64_t end = std::min(offsets_[i] + rectangles_[i].numel(), own_offset_ + own_numel_);
    if (begin < end) segments_.push_back({static_cast<int>(i), begin - own_offset_, end - begin, begin - offsets_[i]});
  }
  const int64_t low = owns_all() && sharded() ? shard_numel_ * options_.gather_group->rank() : 0;
  for (const Segment& s : segments_) {
    const ProcessGroup* replicas = ReplicasOf(s.parameter);
    if (options_.tied_group->rank() > 0 || (replicas != nullptr && replicas->rank() > 0)) continue;
    const int64_t begin = std::max(s.own_begin, low), end = std::min(s.own_begin + s.numel, low + shard_numel_);
    if (begin < end)
      unique_segments_.push_back({s.parameter, begin, end - begin, s.parameter_begin + begin - s.own_begin});
  }
  int64_t covered = 0;
  for (const auto& weight : weights_) {
    if (!weight->trainable()) continue;
    if (covered < weight->begin()) gaps_.emplace_back(covered, weight->begin());
    covered = weight->end();
  }
  if (covered < numel_) gaps_.emplace_back(covered, numel_);

  at::TensorOptions compute = at::TensorOptions().dtype(options_.compute).device(options_.device);
  gathered_numel_ = numel_;
  int64_t own_numel = own_numel_, own_offset = own_offset_;
  if (options_.quantization.has_value()) {
    TRIREME_CHECK(options_.dequantized != nullptr, name(), ": quantized without room for values");
    std::vector<QuantizedStorage::Matrix> matrices;
    for (size_t i = 0; i < specs_.size(); ++i) {
      first_matrix_.push_back(static_cast<int>(matrices.size()));
      for (QuantizedStorage::Matrix& matrix : MatricesOf(specs_[i], rectangles_[i], offsets_[i]))
        matrices.push_back(std::move(matrix));
    }
    first_matrix_.push_back(static_cast<int>(matrices.size()));
    storage_ = std::make_unique<QuantizedStorage>(*options_.quantization, std::move(matrices), numel_,
                                                  owns_all() ? 1 : static_cast<int>(ranks), options_.device);
    compute = compute.dtype(at::kByte);
    own_numel = storage_->piece_bytes();
    own_offset = owns_all() ? 0 : own_numel * options_.gather_group->rank();
    gathered_numel_ = storage_->piece_bytes() * storage_->pieces();
  }
  const bool one_dtype = options_.compute == at::kFloat || !options_.master_weights || !trainable();
  const bool keeps_gathered = owns_all() || options_.shard != ShardLevel::kParameters;
  if (keeps_gathered) {
    gathered_ = at::zeros({gathered_numel_}, compute);
    own_compute_ = gathered_.narrow(0, own_offset, own_numel);
  } else {
    own_compute_ = at::zeros({own_numel}, compute);
  }
  if (!quantized()) own_weights_ = one_dtype ? own_compute_ : at::zeros({own_numel_}, compute.dtype(at::kFloat));
  unsharded_ = keeps_gathered;
}

ParameterBuffer::~ParameterBuffer() = default;

int64_t ParameterBuffer::num_parameters() const {
  int64_t n = 0;
  for (const ParameterSpec& spec : specs_) n += NumelOf(spec.shape);
  return n;
}

bool ParameterBuffer::trainable() const {
  return std::any_of(specs_.begin(), specs_.end(), [](const ParameterSpec& spec) { return spec.trainable; });
}

Weight& ParameterBuffer::weight(int index) { return *weights_[weight_of_parameter_[index]]; }

ProcessGroup* ParameterBuffer::ReplicasOf(int parameter) const {
  const ParameterSpec& spec = specs_[parameter];
  if (options_.tensor_group->size() == 1) return nullptr;
  if (spec.placement == Placement::kReplicated) return options_.tensor_group.get();
  const bool few_heads =
      spec.placement == Placement::kRows && spec.heads > 0 && spec.heads < options_.tensor_group->size();
  return few_heads ? options_.head_replica_groups.at(spec.heads).get() : nullptr;
}

std::vector<at::Tensor> ParameterBuffer::UniqueGradients() const {
  std::vector<at::Tensor> gradients;
  for (const Segment& s : unique_segments_) {
    if (specs_[s.parameter].trainable) gradients.push_back(own_gradient_.narrow(0, s.own_begin, s.numel));
  }
  return gradients;
}

WholeIndex ParameterBuffer::WholeIndexOf(const Segment& s) const {
  const Rectangle& r = rectangles_[s.parameter];
  const std::vector<int64_t>& shape = specs_[s.parameter].shape;
  WholeIndex index;
  index.begin = s.parameter_begin;
  index.origin = r.offset[0];
  if (shape.size() < 2) return index;
  index.origin = r.offset[0] * shape[1] + r.offset[1];
  index.width = r.size[1];
  index.stride = shape[1];
  return index;
}

void ParameterBuffer::StartUnshard() {
  if (unsharded_ || unsharding_) return;
  gathered_ = at::empty({gathered_numel_}, own_compute_.options());
  unshard_work_ = options_.gather_group->AllGather(gathered_, own_compute_);
  unsharding_ = true;
}

void ParameterBuffer::FinishUnshard() {
  StartUnshard();
  if (!unsharding_) return;
  unshard_work_.Wait();
  unsharding_ = false;
  unsharded_ = true;
}

void ParameterBuffer::Reshard() {
  if (owns_all() || options_.shard != ShardLevel::kParameters || !unsharded_) return;
  if (options_.poison_resharded)
    quantized() ? gathered_.fill_(0xFF) : gathered_.fill_(std::numeric_limits<double>::quiet_NaN());
  gathered_.reset();
  unsharded_ = false;
}

void ParameterBuffer::BeginStep() {
  gradient_empty_ = true;
  replicates_summed_ = false;
  // With one shard rank the gradient is accumulated in place: keep the memory.
  if (sharded()) {
    gradient_.reset();
    own_gradient_.reset();
  }
  for (auto& weight : weights_) {
    weight->contributions = 0;
    weight->fresh = true;
  }
}

void ParameterBuffer::AccumulateGradient(GroupWeight& weight, const GradientTask& task) {
  if (deferred_ == nullptr) return Contribute(weight, task);
  deferred_->push_back([this, &weight, task] { Contribute(weight, task); });
}

void ParameterBuffer::Contribute(GroupWeight& weight, const GradientTask& task) {
  if (!gradient_.defined()) {
    gradient_ = at::empty({numel_}, at::TensorOptions().dtype(at::kFloat).device(options_.device));
    for (const auto& [begin, end] : gaps_) gradient_.narrow(0, begin, end - begin).zero_();
  }
  gradient_empty_ = false;
  ++weight.contributions;
  at::Tensor accumulator = weight.View(gradient_);
  task(accumulator, std::exchange(weight.fresh, false));
}

void ParameterBuffer::StartReduce(bool last_microbatch) {
  FinishReduce();
  if (!gradient_.defined() || gradient_empty_) return;
  if (!sharded()) {
    own_gradient_ = gradient_;
    if (last_microbatch) StartReplicateSum();
    return;
  }
  if (!last_microbatch && !options_.reduce_every_microbatch) return;
  for (auto& weight : weights_) {
    if (weight->trainable() && weight->fresh) weight->View(gradient_).zero_();
    weight->fresh = true;
  }
  gradient_empty_ = true;
  at::Tensor wire = gradient_;
  if (options_.reduce != at::kFloat) {
    wire = at::empty(gradient_.sizes(), gradient_.options().dtype(options_.reduce));
    CopyConverted(gradient_, wire);
  }
  if (owns_all()) {
    reduce_work_ = options_.reduce_group->AllReduce(wire, ReduceOp::kSum);
    reduced_ = wire;
  } else {
    reduced_ = at::empty({shard_numel_}, gradient_.options());
    reduce_work_ = options_.reduce_group->ReduceScatter(reduced_, wire);
  }
  gradient_.reset();
  reducing_ = true;
  last_reduction_ = last_microbatch;
}

void ParameterBuffer::FinishReduce() {
  if (!reducing_) return;
  reduce_work_.Wait();
  reducing_ = false;
  if (reduced_.scalar_type() != at::kFloat) {
    at::Tensor wide = at::empty(reduced_.sizes(), reduced_.options().dtype(at::kFloat));
    CopyConverted(reduced_, wide);
    reduced_ = wide;
  }
  if (!own_gradient_.defined()) {
    own_gradient_ = std::move(reduced_);
  } else {
    AddInto(own_gradient_, reduced_);
  }
  reduced_.reset();
  if (last_reduction_) StartReplicateSum();
}

// Begins while other buffers' gradients are still computed.
void ParameterBuffer::StartReplicateSum() {
  if (std::exchange(replicates_summed_, true)) return;
  replicate_work_ = options_.replicate_group->AllReduce(own_gradient_, ReduceOp::kSum);
}

void ParameterBuffer::FinishGradients(int num_microbatches) {
  FinishReduce();
  for (size_t i = 0; i < specs_.size(); ++i) {
    const GroupWeight& weight = *weights_[weight_of_parameter_[i]];
    if (!weight.trainable()) continue;
    TRIREME_CHECK(weight.contributions == options_.uses * num_microbatches, "parameter ", specs_[i].name, " got ",
                  weight.contributions, " gradient contributions in a step of ", num_microbatches,
                  " microbatches with ", options_.uses, " uses each");
  }
  if (!own_gradient_.defined()) return;
  StartReplicateSum();
  replicate_work_.Wait();
  options_.tied_group->AllReduce(own_gradient_, ReduceOp::kSum).Wait();
  std::map<ProcessGroup*, std::vector<const Segment*>> replicated;
  for (const Segment& s : segments_) {
    ProcessGroup* replicas = ReplicasOf(s.parameter);
    if (replicas != nullptr && specs_[s.parameter].trainable) replicated[replicas].push_back(&s);
  }
  // The largest group first, on every rank: the order must not depend on addresses.
  std::vector<ProcessGroup*> groups = {options_.tensor_group.get()};
  for (const auto& [heads, group] : options_.head_replica_groups) groups.push_back(group.get());
  for (ProcessGroup* group : groups) {
    if (const auto found = replicated.find(group); found != replicated.end()) SumOverReplicas(*group, found->second);
  }
}

// The segments lie alike on all ranks of `group`: packed, summed, unpacked.
void ParameterBuffer::SumOverReplicas(ProcessGroup& group, const std::vector<const Segment*>& segments) {
  int64_t total = 0;
  for (const Segment* s : segments) total += s->numel;
  at::Tensor packed = at::empty({total}, own_gradient_.options());
  const auto each = [&](auto&& copy) {
    int64_t at = 0;
    for (const Segment* s : segments) {
      at::Tensor part = packed.narrow(0, at, s->numel), own = own_gradient_.narrow(0, s->own_begin, s->numel);
      copy(part, own);
      at += s->numel;
    }
  };
  each([](at::Tensor& part, at::Tensor& own) { CopyConverted(own, part); });
  group.AllReduce(packed, ReduceOp::kSum).Wait();
  each([](at::Tensor& part, at::Tensor& own) { CopyConverted(part, own); });
}

void ParameterBuffer::Publish(bool converted) {
  if (!converted && !quantized() && own_weights_.data_ptr() != own_compute_.data_ptr())
    CopyConverted(own_weights_, own_compute_);
  publish_work_.Wait();
  if (gathered_.defined() && !owns_all()) publish_work_ = options_.gather_group->AllGather(gathered_, own_compute_);
}

void ParameterBuffer::Set(int parameter, const at::Tensor& values) {
  const at::Tensor flat = values.reshape({-1});
  for (const Segment& s : segments_) {
    if (s.parameter == parameter)
      own_weights_.narrow(0, s.own_begin, s.numel).copy_(flat.narrow(0, s.parameter_begin, s.numel));
  }
}

void ParameterBuffer::InitialValues(uint64_t seed, const Segment& segment, float* out) const {
  const ParameterSpec& spec = specs_[segment.parameter];
  if (spec.initialization == Initialization::kOnes || spec.initialization == Initialization::kZeros) {
    std::fill(out, out + segment.numel, spec.initialization == Initialization::kOnes ? 1.0f : 0.0f);
    return;
  }
  if (spec.initialization == Initialization::kConstant) {
    std::fill(out, out + segment.numel, static_cast<float>(spec.standard_deviation));
    return;
  }
  const RandomKey key = MakeRandomKey(seed, RandomPurpose::kInitialization, StableId(spec.name.c_str()), 0);
  const WholeIndex whole = WholeIndexOf(segment);
  ParallelRanges(segment.numel, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto element = static_cast<uint64_t>(whole.Of(i));
      const Random4 random = Philox(key, element / 2, 0);
      if (spec.initialization == Initialization::kUniform) {
        out[i] = static_cast<float>(spec.standard_deviation * (2 * ((random.word[element % 2] + 0.5) * 0x1p-32) - 1));
        continue;
      }
      // Box-Muller: each pair of words gives two normal numbers; elements 2j and 2j+1 take one each.
      const double u = (random.word[0] + 0.5) * 0x1p-32, angle = 6.283185307179586 * ((random.word[1] + 0.5) * 0x1p-32);
      const double radius = std::sqrt(-2.0 * std::log(u));
      out[i] =
          static_cast<float>(spec.standard_deviation * radius * (element % 2 == 0 ? std::cos(angle) : std::sin(angle)));
    }
  });
}

void ParameterBuffer::Initialize(uint64_t seed) {
  if (quantized()) {
    const absl::Status done = QuantizeFrom([&](int parameter, int64_t begin, int64_t end, float* out) {
      InitialValues(seed, {parameter, 0, end - begin, begin}, out);
      return absl::OkStatus();
    });
    TRIREME_CHECK(done.ok(), done.message());
    return;
  }
  // Made on the host in float32, then copied: the same numbers on every device.
  at::Tensor values = at::zeros({own_numel_}, at::TensorOptions().dtype(at::kFloat));
  float* data = values.mutable_data_ptr<float>();
  for (const Segment& segment : segments_) InitialValues(seed, segment, data + segment.own_begin);
  CopyConverted(values, own_weights_);
}

absl::Status ParameterBuffer::QuantizeFrom(const QuantizedStorage::Reader& read) {
  TRIREME_CHECK(quantized(), name(), " is not quantized");
  ProcessGroup* shard = owns_all() ? nullptr : options_.gather_group.get();
  // What data is the values' own: in the compute type they would have been rounded to it.
  const ValueType type = options_.compute == at::kBFloat16 ? ValueType::kBfloat16 : ValueType::kFloat32;
  absl::Status status;
  for (size_t i = 0; i < specs_.size(); ++i) {
    // A matrix of several is whole on this rank: other tensor ranks have others.
    const QuantizedStorage::Groups groups = {specs_[i].matrices == 1 ? options_.tensor_group.get() : nullptr, shard};
    for (int matrix = first_matrix_[i]; matrix < first_matrix_[i + 1]; ++matrix) {
      const int64_t before = storage_->OffsetOf(matrix) - offsets_[i];
      const auto of_matrix = [&, i](int, int64_t begin, int64_t end, float* out) {
        return read(static_cast<int>(i), before + begin, before + end, out);
      };
      const absl::Status done =
          storage_->Quantize(matrix, own_offset_, own_numel_, type, groups, of_matrix, own_compute_);
      if (status.ok() && !done.ok()) status = Error(ExitCode::kData, specs_[i].name, ": ", done.message());
    }
  }
  return status;
}

void ParameterBuffer::TakeQuantized(int parameter, const QuantizedMatrix& whole) {
  TRIREME_CHECK(quantized(), name(), " is not quantized");
  TRIREME_CHECK(specs_[parameter].matrices == 1, specs_[parameter].name, " is several matrices");
  storage_->Take(first_matrix_[parameter], own_offset_, own_numel_, whole, own_compute_);
}

int64_t ParameterBuffer::MemoryBytes() const {
  int64_t bytes = own_compute_.nbytes();
  if (gathered_.defined() && !owns_all()) bytes += gathered_.nbytes() - own_compute_.nbytes();
  if (quantized()) return bytes + storage_->SideBytes();
  if (own_compute_.data_ptr() != own_weights_.data_ptr()) bytes += own_weights_.nbytes();
  return bytes + (trainable() ? own_numel_ * 4 : 0);
}

}  // namespace trireme
