// models/parts/projections.h
// The parameters of a part, made in the order of its buffer.
#ifndef TRIREME_MODELS_PARTS_PROJECTIONS_H_
#define TRIREME_MODELS_PARTS_PROJECTIONS_H_

#include <string>
#include <vector>

#include "models/spec/part.h"

namespace trireme {

class Projections {
 public:
  explicit Projections(const PartPlace& place) : place_(place) {}

  struct Rows {
    const char* name;
    int64_t rows;
    int64_t heads = 0;    // that the rows are; 0: any
    int64_t columns = 0;  // 0: the width of the stream
  };
  // Matrices [rows, hidden] that are multiplied as one, each tensor rank having a part of the rows; with biases if so.
  void AddRows(const std::vector<Rows>& group, bool bias);
  // A matrix [hidden, columns] that writes to the residual stream, each tensor rank having a part of the columns.
  void AddColumns(const std::string& name, int64_t columns, bool bias);
  // A matrix [rows, hidden] that every rank has whole, for its own rows of the stream.
  void AddShared(const std::string& name, int64_t rows, bool bias);
  // A norm's weight and bias. heads: they lie with the heads that tensor ranks have; 0: each rank has all.
  void AddNorm(const std::string& name, const NormSpec& norm, int64_t width, int64_t heads);

  // A number for each head, which lies with the head.
  void AddHeadNumbers(const std::string& name, int64_t heads);

  // A matrix [rows, hidden] that every rank has whole, in float32; NAME.weight and, if so, NAME.bias.
  void AddRouter(const std::string& name, int64_t rows, bool bias = false);
  // Numbers in float32 that no gradient reaches.
  void AddCorrection(const std::string& name, int64_t width);
  // A matrix [rows, columns] for each expert, stacked, which is `matrices` one under another, and if so a bias [rows]
  // for each. active: the share of experts that a token has.
  struct Experts {
    int64_t experts;
    double active;
  };
  void AddExperts(const std::string& name, int64_t matrices, const Experts& experts, int64_t rows, int64_t columns,
                  double deviation, bool bias);
  // One number, which all ranks have; one that is not trained stays what it is.
  void AddNumber(const std::string& name, double value, bool trainable);

  std::vector<ParameterSpec> Take() { return std::move(made_); }

 private:
  void Add(const std::string& name, std::vector<int64_t> shape, Placement placement, double deviation, int64_t heads,
           bool fused);

  const PartPlace& place_;
  std::vector<ParameterSpec> made_;
};

}  // namespace trireme

#endif  // TRIREME_MODELS_PARTS_PROJECTIONS_H_
