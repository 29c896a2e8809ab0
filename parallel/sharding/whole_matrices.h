// parallel/sharding/whole_matrices.h
// Matrices that are cut over ranks, each put together on one of them for what needs it whole.
#ifndef TRIREME_PARALLEL_SHARDING_WHOLE_MATRICES_H_
#define TRIREME_PARALLEL_SHARDING_WHOLE_MATRICES_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "parallel/comm/process_group.h"
#include "parallel/sharding/parameter_buffer.h"

namespace trireme {

// Every wanted matrix has an owner among the ranks that hold parts of it: the one with the least work so far, so that
// what a rank has whole already stays there. A parameter of several matrices (ParameterSpec::matrices) is cut into
// them. A round is one buffer, and rounds may overlap: StartGather(i + 1) before Change(i), Finish(i) after it.
//
// Values are a float32 tensor [own numel of the buffer] that the caller keeps from StartGather to Finish; only elements
// of wanted parameters are looked at and changed. What comes back is the same on every rank that holds an element.
class WholeMatrices {
 public:
  // Which parameters; what work a matrix of [rows, columns] is.
  using Wanted = std::function<bool(const ParameterSpec& spec)>;
  using Cost = double (*)(int64_t rows, int64_t columns);

  // group: the ranks over which any of the buffers is cut, the same for all; host_group: the same ranks, for CPU
  // tensors. Collective over it. Buffers must outlive this.
  WholeMatrices(const std::vector<ParameterBuffer*>& buffers, const Wanted& wanted, Cost cost,
                std::shared_ptr<ProcessGroup> group, ProcessGroup& host_group);

  // The buffers that have such parameters, in order; the same number on every rank.
  const std::vector<ParameterBuffer*>& buffers() const { return buffers_; }

  // All collective over `group`, in the same order on every rank.
  void StartGather(int round, const at::Tensor& values);
  // Waits for the gather and replaces each matrix [rows, columns] that this rank owns by change(matrix), in order;
  // then starts sending the results to where the parts belong.
  void Change(int round, const std::function<at::Tensor(const at::Tensor& matrix)>& change);
  void Finish(int round);  // The values are the results from here.

 private:
  // A contiguous part of a rank's values: elements [begin, begin + numel) of a rectangle of a matrix.
  struct Piece {
    int64_t rank, own_begin, numel;
    int64_t row, column, rows, width;  // of the rectangle, in the matrix
    int64_t begin;
  };
  struct Matrix {
    int64_t rows = 0, columns = 0;
    std::vector<Piece> sources, targets;  // every element once; every copy of it. By rank.
    int64_t owner = 0;
  };
  struct Round {
    std::vector<Matrix> matrices;
    at::Tensor values;
    std::vector<at::Tensor> staged;  // what arrives of each matrix that this rank owns, its sources in a row
    Work work;
  };

  void AddOwnPieces(int round, const ParameterBuffer& buffer, const Wanted& wanted, std::vector<int64_t>* record);
  void Assign(Cost cost, int ranks);
  bool WholeHere(const Matrix& matrix) const;  // its values lie in a row on this rank, its owner
  static void Copy(const Piece& piece, const at::Tensor& values, at::Tensor matrix, bool into_matrix);

  std::vector<ParameterBuffer*> buffers_;
  std::vector<Round> rounds_;
  std::shared_ptr<ProcessGroup> group_;
};

}  // namespace trireme

#endif  // TRIREME_PARALLEL_SHARDING_WHOLE_MATRICES_H_
