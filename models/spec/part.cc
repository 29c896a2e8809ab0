#include "models/spec/part.h"

#include <ATen/TensorOperators.h>

#include "parallel/layers/functions.h"

namespace trireme {

std::vector<ParameterSpec> NormParameters(const NormSpec& norm, const std::string& name, int64_t width) {
  std::vector<ParameterSpec> parameters;
  const auto add = [&](const char* kind, Initialization initialization) {
    ParameterSpec spec;
    spec.name = absl::StrCat(name, kind);
    spec.shape = {width};
    spec.initialization = initialization;
    spec.decay = false;
    parameters.push_back(std::move(spec));
  };
  if (norm.weight) add(".weight", norm.offset == 1 ? Initialization::kZeros : Initialization::kOnes);
  if (norm.bias) add(".bias", Initialization::kZeros);
  return parameters;
}

Weight* PartWeights::Find(const std::string& name) const {
  for (const auto& [known, weight] : weights_) {
    if (known == name) return weight;
  }
  return nullptr;
}

Weight& PartWeights::At(const std::string& name) const {
  Weight* weight = Find(name);
  TRIREME_CHECK(weight != nullptr, "a part asks for ", name, ", which is none of its parameters");
  return *weight;
}

NormedStream::NormedStream(at::Tensor x, at::Tensor delta, const NormWeights* norm, ProcessGroup& tensor,
                           KeptResults* kept)
    : x_(std::move(x)), delta_(std::move(delta)), norm_(norm), tensor_(tensor), kept_(kept) {}

at::Tensor NormedStream::Multiply(Weight& weight, Weight* bias, const char* name) {
  const bool fused =
      norm_ != nullptr && norm_->spec.kind == NormSpec::kRms && norm_->weight != nullptr && !rows_.defined();
  if (!fused) return ColumnLinear(Rows(), weight, bias, tensor_, kept_, name);
  at::Tensor product;
  std::tie(x_, product) =
      NormLinear(x_, delta_, *norm_->weight, norm_->spec.eps, weight, tensor_, kept_, name, bias, norm_->spec.offset);
  delta_ = at::Tensor();
  return product;
}

const at::Tensor& NormedStream::Rows() {
  if (!rows_.defined()) rows_ = norm_ == nullptr ? Sum() : ApplyNorm(Sum(), *norm_);
  return rows_;
}

const at::Tensor& NormedStream::Sum() {
  if (delta_.defined()) x_ = x_ + delta_;
  delta_ = at::Tensor();
  return x_;
}

at::Tensor ApplyNorm(const at::Tensor& x, const NormWeights& norm) {
  const NormSpec& spec = norm.spec;
  if (spec.kind == NormSpec::kRms) return Norm(x, *norm.weight, spec.eps, spec.offset);
  return LayerNorm(x, norm.weight, norm.bias, spec.eps, spec.offset);
}

}  // namespace trireme
