#include "parallel/sharding/whole_matrices.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "launch/base/status.h"
#include "parallel/comm/agreement.h"
#include "parallel/sharding/rectangle.h"

namespace trireme {
namespace {

constexpr int kRecordNumbers = 10;  // that a rank tells the others of each of its pieces

// A flat range of a held rectangle, seen by one of the matrices in its parameter.
struct Seen {
  int64_t begin = 0, end = 0;  // in the flattened rectangle
  int64_t first_row = 0, rows = 0;
};
Seen SeenBy(int64_t matrix, int64_t rows_each, const Rectangle& held, const Segment& segment) {
  const int64_t low = std::max(matrix * rows_each, held.offset[0]);
  const int64_t high = std::min((matrix + 1) * rows_each, held.offset[0] + held.size[0]);
  Seen seen;
  if (low >= high) return seen;
  const int64_t width = held.size[1], first = (low - held.offset[0]) * width, last = (high - held.offset[0]) * width;
  seen.begin = std::max(first, segment.parameter_begin);
  seen.end = std::max(seen.begin, std::min(last, segment.parameter_begin + segment.numel));
  seen.first_row = low;
  seen.rows = high - low;
  return seen;
}

}  // namespace

WholeMatrices::WholeMatrices(const std::vector<ParameterBuffer*>& buffers, const Wanted& wanted, Cost cost,
                             std::shared_ptr<ProcessGroup> group, ProcessGroup& host_group)
    : group_(std::move(group)) {
  std::vector<int64_t> record;
  for (ParameterBuffer* buffer : buffers) {
    Round round;
    for (const ParameterSpec& spec : buffer->specs()) {
      if (!wanted(spec)) continue;
      TRIREME_CHECK(spec.shape.size() == 2 && spec.shape[0] % spec.matrices == 0, spec.name,
                    " is not made of matrices");
      for (int64_t i = 0; i < spec.matrices; ++i)
        round.matrices.push_back({spec.shape[0] / spec.matrices, spec.shape[1], {}, {}, 0});
    }
    if (round.matrices.empty()) continue;
    AddOwnPieces(static_cast<int>(rounds_.size()), *buffer, wanted, &record);
    buffers_.push_back(buffer);
    rounds_.push_back(std::move(round));
  }
  const std::vector<std::string> records = GatherBytes(
      host_group, std::string(reinterpret_cast<const char*>(record.data()), record.size() * sizeof(int64_t)));
  for (size_t rank = 0; rank < records.size(); ++rank) {
    for (size_t at = 0; at < records[rank].size(); at += kRecordNumbers * sizeof(int64_t)) {
      int64_t n[kRecordNumbers];
      std::memcpy(n, records[rank].data() + at, sizeof(n));
      Matrix& matrix = rounds_.at(n[0]).matrices.at(n[1]);
      const Piece piece = {static_cast<int64_t>(rank), n[3], n[4], n[5], n[6], n[7], n[8], n[9]};
      (n[2] == 0 ? matrix.sources : matrix.targets).push_back(piece);
    }
  }
  Assign(cost, group_->size());
}

// Of each piece: round, matrix, 0 of sources and 1 of targets, then Piece's fields behind its rank.
void WholeMatrices::AddOwnPieces(int round, const ParameterBuffer& buffer, const Wanted& wanted,
                                 std::vector<int64_t>* record) {
  std::vector<int64_t> first(buffer.specs().size(), -1);  // matrix of each parameter
  int64_t count = 0;
  for (size_t i = 0; i < buffer.specs().size(); ++i) {
    if (!wanted(buffer.specs()[i])) continue;
    first[i] = count;
    count += buffer.specs()[i].matrices;
  }
  const auto add = [&](const Segment& segment, int64_t kind) {
    if (first[segment.parameter] < 0) return;
    const ParameterSpec& spec = buffer.specs()[segment.parameter];
    const Rectangle& held = buffer.rectangle(segment.parameter);
    const int64_t rows_each = spec.shape[0] / spec.matrices;
    for (int64_t i = held.offset[0] / rows_each; i * rows_each < held.offset[0] + held.size[0]; ++i) {
      const Seen seen = SeenBy(i, rows_each, held, segment);
      if (seen.begin >= seen.end) continue;
      const int64_t before = (seen.first_row - held.offset[0]) * held.size[1];
      for (const int64_t number :
           {int64_t{round}, first[segment.parameter] + i, kind,
            segment.own_begin + seen.begin - segment.parameter_begin, seen.end - seen.begin,
            seen.first_row - i * rows_each, held.offset[1], seen.rows, held.size[1], seen.begin - before})
        record->push_back(number);
    }
  };
  for (const Segment& segment : buffer.unique_segments()) add(segment, 0);
  for (const Segment& segment : buffer.segments()) add(segment, 1);
}

void WholeMatrices::Assign(Cost cost, int ranks) {
  std::vector<double> work(ranks);
  for (Round& round : rounds_) {
    // The largest first: small ones even out what they leave.
    std::vector<Matrix*> order;
    for (Matrix& matrix : round.matrices) order.push_back(&matrix);
    std::stable_sort(order.begin(), order.end(), [&](const Matrix* a, const Matrix* b) {
      return cost(a->rows, a->columns) > cost(b->rows, b->columns);
    });
    for (Matrix* matrix : order) {
      int64_t elements = 0;
      for (const Piece& piece : matrix->sources) elements += piece.numel;
      TRIREME_CHECK(elements == matrix->rows * matrix->columns, "of a matrix ", matrix->rows, " x ", matrix->columns,
                    " the ranks hold ", elements, " elements");
      matrix->owner = matrix->sources.front().rank;
      for (const Piece& piece : matrix->sources) {
        if (work[piece.rank] < work[matrix->owner]) matrix->owner = piece.rank;
      }
      work[matrix->owner] += cost(matrix->rows, matrix->columns);
    }
  }
}

bool WholeMatrices::WholeHere(const Matrix& matrix) const {
  return matrix.owner == group_->rank() && matrix.sources.size() == 1 && matrix.sources[0].width == matrix.columns;
}

void WholeMatrices::Copy(const Piece& piece, const at::Tensor& values, at::Tensor matrix, bool into_matrix) {
  for (const FlatPiece& part : FlatRangeToPieces({piece.rows, piece.width}, piece.begin, piece.begin + piece.numel)) {
    const Rectangle& r = part.rectangle;
    at::Tensor there =
        matrix.narrow(0, piece.row + r.offset[0], r.size[0]).narrow(1, piece.column + r.offset[1], r.size[1]);
    at::Tensor here = values.narrow(0, part.flat_begin - piece.begin, r.numel()).view(r.size);
    into_matrix ? there.copy_(here) : here.copy_(there);
  }
}

void WholeMatrices::StartGather(int index, const at::Tensor& values) {
  Round& round = rounds_[index];
  round.values = values;
  round.staged.clear();
  std::vector<PeerTransfer> transfers;
  const int64_t own = group_->rank();
  for (const Matrix& matrix : round.matrices) {
    if (matrix.owner == own) {
      at::Tensor staged =
          WholeHere(matrix) ? at::Tensor() : at::empty({matrix.rows * matrix.columns}, values.options());
      int64_t at = 0;
      for (const Piece& piece : matrix.sources) {
        if (piece.rank != own)
          transfers.push_back(
              {PeerTransfer::kReceive, staged.narrow(0, at, piece.numel), static_cast<int>(piece.rank)});
        at += piece.numel;
      }
      round.staged.push_back(std::move(staged));
      continue;
    }
    for (const Piece& piece : matrix.sources) {
      if (piece.rank == own)
        transfers.push_back(
            {PeerTransfer::kSend, values.narrow(0, piece.own_begin, piece.numel), static_cast<int>(matrix.owner)});
    }
  }
  round.work = transfers.empty() ? Work() : group_->Exchange(std::move(transfers));
}

void WholeMatrices::Change(int index, const std::function<at::Tensor(const at::Tensor& matrix)>& change) {
  Round& round = rounds_[index];
  round.work.Wait();
  const int64_t own = group_->rank();
  std::vector<PeerTransfer> transfers;
  size_t owned = 0;
  for (const Matrix& matrix : round.matrices) {
    if (matrix.owner != own) {
      for (const Piece& piece : matrix.targets) {
        if (piece.rank == own)
          transfers.push_back({PeerTransfer::kReceive, round.values.narrow(0, piece.own_begin, piece.numel),
                               static_cast<int>(matrix.owner)});
      }
      continue;
    }
    const at::Tensor staged = std::exchange(round.staged[owned++], at::Tensor());
    at::Tensor whole;
    if (!staged.defined()) {
      const Piece& all = matrix.sources[0];
      whole = round.values.narrow(0, all.own_begin, all.numel).view({matrix.rows, matrix.columns});
    } else {
      whole = at::empty({matrix.rows, matrix.columns}, round.values.options());
      int64_t at = 0;
      for (const Piece& piece : matrix.sources) {
        const at::Tensor& from = piece.rank == own ? round.values : staged;
        Copy(piece, from.narrow(0, piece.rank == own ? piece.own_begin : at, piece.numel), whole, /*into_matrix=*/true);
        at += piece.numel;
      }
    }
    const at::Tensor result = change(whole);
    for (const Piece& piece : matrix.targets) {
      at::Tensor part = piece.rank == own ? round.values.narrow(0, piece.own_begin, piece.numel)
                                          : at::empty({piece.numel}, round.values.options());
      Copy(piece, part, result, /*into_matrix=*/false);
      if (piece.rank != own) transfers.push_back({PeerTransfer::kSend, part, static_cast<int>(piece.rank)});
    }
  }
  round.work = transfers.empty() ? Work() : group_->Exchange(std::move(transfers));
}

void WholeMatrices::Finish(int index) {
  rounds_[index].work.Wait();
  rounds_[index].values.reset();
}

}  // namespace trireme
