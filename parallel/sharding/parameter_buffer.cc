#include "parallel/sharding/parameter_buffer.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/ops.h"
#include "kernels/thread_pool.h"
#include "launch/status.h"

namespace trireme {
namespace {

constexpr int64_t kUnit = 256;  // Shards and fused groups begin at multiples of this.

int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

int64_t NumelOf(const ParameterSpec& spec) {
  int64_t n = 1;
  for (int64_t extent : spec.shape) n *= extent;
  return n;
}

}  // namespace

// One parameter, or a fused group seen as one matrix.
class ParameterBuffer::GroupWeight final : public Weight {
 public:
  GroupWeight(ParameterBuffer* buffer, int64_t offset, const std::vector<int64_t>& shape, std::string name,
              bool trainable)
      : buffer_(buffer), offset_(offset), shape_(shape), name_(std::move(name)), trainable_(trainable) {}

  void AppendRows(int64_t rows) { shape_[0] += rows; }

  Gathered full() const override {
    TRIREME_CHECK(buffer_->unsharded_, "parameter ", name_, " is used while its unit is resharded");
    return {View(buffer_->gathered_)};
  }
  bool trainable() const override { return trainable_; }
  void AddGradient(GradientTask task) override { buffer_->AccumulateGradient(*this, task); }

  at::Tensor View(const at::Tensor& flat) const {
    int64_t n = 1;
    for (int64_t extent : shape_) n *= extent;
    return flat.narrow(0, offset_, n).view(shape_);
  }

  const std::string& name() const { return name_; }
  int contributions = 0;  // in this step

 private:
  ParameterBuffer* buffer_;
  int64_t offset_;
  std::vector<int64_t> shape_;
  std::string name_;
  bool trainable_;
};

ParameterBuffer::ParameterBuffer(std::vector<ParameterSpec> specs, BufferOptions options)
    : specs_(std::move(specs)), options_(std::move(options)) {
  for (const ParameterSpec& spec : specs_) {
    if (spec.fused_with_previous) {
      TRIREME_CHECK(!weights_.empty() && spec.shape.size() == 2, spec.name, " has nothing to be fused with");
      weights_.back()->AppendRows(spec.shape[0]);
    } else {
      numel_ = RoundUp(numel_, kUnit);
      weights_.push_back(std::make_unique<GroupWeight>(this, numel_, spec.shape, spec.name, spec.trainable));
    }
    offsets_.push_back(numel_);
    weight_of_parameter_.push_back(static_cast<int>(weights_.size()) - 1);
    numel_ += NumelOf(spec);
  }
  const int64_t ranks = options_.gather_group->size();
  numel_ = RoundUp(numel_, kUnit * ranks);
  shard_numel_ = numel_ / ranks;
  own_numel_ = owns_all() ? numel_ : shard_numel_;
  own_offset_ = owns_all() ? 0 : shard_numel_ * options_.gather_group->rank();

  for (size_t i = 0; i < specs_.size(); ++i) {
    const int64_t begin = std::max(offsets_[i], own_offset_);
    const int64_t end = std::min(offsets_[i] + NumelOf(specs_[i]), own_offset_ + own_numel_);
    if (begin < end) segments_.push_back({static_cast<int>(i), begin - own_offset_, end - begin, begin - offsets_[i]});
  }

  const at::TensorOptions compute = at::TensorOptions().dtype(options_.compute).device(options_.device);
  const bool one_dtype = options_.compute == at::kFloat || !options_.master_weights;
  const bool keeps_gathered = owns_all() || options_.shard != ParallelConfig::PARAMETERS;
  if (keeps_gathered) {
    gathered_ = at::zeros({numel_}, compute);
    own_compute_ = gathered_.narrow(0, own_offset_, own_numel_);
  } else {
    own_compute_ = at::zeros({own_numel_}, compute);
  }
  own_weights_ = one_dtype ? own_compute_ : at::zeros({own_numel_}, compute.dtype(at::kFloat));
  unsharded_ = keeps_gathered;
}

ParameterBuffer::~ParameterBuffer() = default;

int64_t ParameterBuffer::num_parameters() const {
  int64_t n = 0;
  for (const ParameterSpec& spec : specs_) n += NumelOf(spec);
  return n;
}

Weight& ParameterBuffer::weight(int index) { return *weights_[weight_of_parameter_[index]]; }

int64_t ParameterBuffer::unique_begin() const {
  return options_.shard == ParallelConfig::NONE && sharded() ? shard_numel_ * options_.gather_group->rank() : 0;
}

void ParameterBuffer::StartUnshard() {
  if (unsharded_ || unsharding_) return;
  gathered_ = at::empty({numel_}, own_compute_.options());
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
  if (owns_all() || options_.shard != ParallelConfig::PARAMETERS || !unsharded_) return;
  if (options_.poison_resharded) gathered_.fill_(std::numeric_limits<double>::quiet_NaN());
  gathered_.reset();
  unsharded_ = false;
}

void ParameterBuffer::BeginStep() {
  gradient_fresh_ = true;
  // With one shard rank the gradient is accumulated in place: keep the memory.
  if (sharded()) {
    gradient_.reset();
    own_gradient_.reset();
  }
  for (auto& weight : weights_) weight->contributions = 0;
}

void ParameterBuffer::AccumulateGradient(GroupWeight& weight, const GradientTask& task) {
  if (!gradient_.defined()) {
    gradient_ = at::zeros({numel_}, at::TensorOptions().dtype(at::kFloat).device(options_.device));
  } else if (gradient_fresh_) {
    gradient_.zero_();
  }
  gradient_fresh_ = false;
  ++weight.contributions;
  at::Tensor accumulator = weight.View(gradient_);
  task(accumulator);
}

void ParameterBuffer::StartReduce(bool last_microbatch) {
  FinishReduce();
  if (!gradient_.defined() || gradient_fresh_) return;
  if (!sharded()) {
    own_gradient_ = gradient_;
    return;
  }
  if (!last_microbatch && !options_.reduce_every_microbatch) return;
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
  if (own_gradient_.defined()) options_.replicate_group->AllReduce(own_gradient_, ReduceOp::kSum).Wait();
}

void ParameterBuffer::Publish(bool converted) {
  if (!converted && own_weights_.data_ptr() != own_compute_.data_ptr()) CopyConverted(own_weights_, own_compute_);
  if (gathered_.defined() && !owns_all()) options_.gather_group->AllGather(gathered_, own_compute_).Wait();
}

void ParameterBuffer::Initialize(uint64_t seed) {
  // Made on the host in float32, then copied: the same numbers on every device.
  at::Tensor values = at::zeros({own_numel_}, at::TensorOptions().dtype(at::kFloat));
  float* data = values.mutable_data_ptr<float>();
  for (const Segment& segment : segments_) {
    const ParameterSpec& spec = specs_[segment.parameter];
    float* out = data + segment.own_begin;
    if (spec.initialization != Initialization::kNormal) {
      std::fill(out, out + segment.numel, spec.initialization == Initialization::kOnes ? 1.0f : 0.0f);
      continue;
    }
    const RandomKey key = MakeRandomKey(seed, RandomPurpose::kInitialization, StableId(spec.name.c_str()), 0);
    ParallelRanges(segment.numel, 16384, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const uint64_t element = static_cast<uint64_t>(segment.parameter_begin + i);
        const Random4 random = Philox(key, element / 2, 0);
        // Box-Muller: each pair of words gives two normal numbers; elements 2j and 2j+1 take one each.
        const double u = (random.word[0] + 0.5) * 0x1p-32,
                     angle = 6.283185307179586 * ((random.word[1] + 0.5) * 0x1p-32);
        const double radius = std::sqrt(-2.0 * std::log(u));
        out[i] = static_cast<float>(spec.standard_deviation * radius *
                                    (element % 2 == 0 ? std::cos(angle) : std::sin(angle)));
      }
    });
  }
  CopyConverted(values, own_weights_);
}

int64_t ParameterBuffer::MemoryBytes() const {
  int64_t bytes = own_weights_.nbytes();
  if (own_compute_.data_ptr() != own_weights_.data_ptr()) bytes += own_compute_.nbytes();
  if (gathered_.defined() && !owns_all()) bytes += gathered_.nbytes() - own_compute_.nbytes();
  return bytes + own_numel_ * 4;
}

}  // namespace trireme
