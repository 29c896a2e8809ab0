#include "models/parts/projections.h"

namespace trireme {

void Projections::Add(const std::string& name, std::vector<int64_t> shape, Placement placement, double deviation,
                      int64_t heads, bool fused) {
  ParameterSpec spec;
  spec.name = place_.prefix + name;
  const bool matrix = shape.size() == 2;
  spec.shape = std::move(shape);
  spec.placement = placement;
  spec.standard_deviation = deviation;
  spec.initialization = matrix ? Initialization::kNormal : Initialization::kZeros;
  spec.decay = matrix;
  spec.heads = heads;
  spec.fused_with_previous = fused;
  made_.push_back(std::move(spec));
}

void Projections::AddRows(const std::vector<Rows>& group, bool bias) {
  for (const Rows& one : group) {
    Add(absl::StrCat(one.name, ".weight"), {one.rows, one.columns > 0 ? one.columns : place_.hidden_size},
        Placement::kRows, place_.deviation, one.heads, &one != &group.front());
  }
  for (const Rows& one : group) {
    if (bias)
      Add(absl::StrCat(one.name, ".bias"), {one.rows}, Placement::kRows, place_.deviation, one.heads,
          &one != &group.front());
  }
}

void Projections::AddColumns(const std::string& name, int64_t columns, bool bias) {
  Add(name + ".weight", {place_.hidden_size, columns}, Placement::kColumns, place_.residual_deviation, 0, false);
  if (bias) Add(name + ".bias", {place_.hidden_size}, Placement::kReplicated, place_.deviation, 0, false);
}

void Projections::AddShared(const std::string& name, int64_t rows, bool bias) {
  Add(name + ".weight", {rows, place_.hidden_size}, Placement::kReplicated, place_.deviation, 0, false);
  if (bias) Add(name + ".bias", {rows}, Placement::kReplicated, place_.deviation, 0, false);
}

void Projections::AddNorm(const std::string& name, const NormSpec& norm, int64_t width, int64_t heads) {
  for (ParameterSpec& spec : NormParameters(norm, place_.prefix + name, width)) {
    spec.heads = heads;
    if (heads > 0) spec.placement = Placement::kRows;
    made_.push_back(std::move(spec));
  }
}

void Projections::AddNumber(const std::string& name, double value, bool trainable) {
  ParameterSpec spec;
  spec.name = place_.prefix + name;
  spec.shape = {1};
  spec.initialization = Initialization::kConstant;
  spec.standard_deviation = value;
  spec.decay = false;
  spec.trainable = trainable;
  made_.push_back(std::move(spec));
}

void Projections::AddHeadNumbers(const std::string& name, int64_t heads) {
  Add(name, {heads}, Placement::kRows, place_.deviation, heads, false);
  made_.back().initialization = Initialization::kNormal;
}

void Projections::AddRouter(const std::string& name, int64_t rows, bool bias) {
  const size_t before = made_.size();
  AddShared(name, rows, bias);
  for (size_t i = before; i < made_.size(); ++i) made_[i].wide = true;
}

void Projections::AddCorrection(const std::string& name, int64_t width) {
  Add(name, {width}, Placement::kReplicated, 0, 0, false);
  made_.back().wide = true;
  made_.back().trainable = false;
  made_.back().balanced = true;
}

void Projections::AddExperts(const std::string& name, int64_t matrices, const Experts& experts, int64_t rows,
                             int64_t columns, double deviation, bool bias) {
  const auto add = [&](const char* kind, std::vector<int64_t> shape) {
    Add(name + kind, std::move(shape), Placement::kRows, deviation, experts.experts, false);
    made_.back().expert = true;
    made_.back().active = experts.active;
  };
  add(".weight", {experts.experts * rows, columns});
  made_.back().matrices = matrices * experts.experts;
  if (bias) add(".bias", {experts.experts * rows});
}

}  // namespace trireme
