// parallel/comm/mesh.h
// The ranks of a job as a grid with named axes.
#ifndef TRIREME_PARALLEL_COMM_MESH_H_
#define TRIREME_PARALLEL_COMM_MESH_H_

#include <array>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "launch/base/process.h"
#include "parallel/comm/operation_log.h"
#include "parallel/comm/process_group.h"

namespace trireme {

// Outermost first: tensor ranks are neighbours, so they stay in one machine.
enum class Axis { kPipeline, kDataReplicate, kDataShard, kContext, kTensor };
inline constexpr int kNumAxes = 5;
const char* AxisName(Axis axis);

struct MeshShape {
  std::array<int, kNumAxes> size = {1, 1, 1, 1, 1};
  // No axis of its own: so many neighbours of data_shard x context x tensor share the experts, each having a part of
  // them. It divides that product.
  int expert = 1;
  int operator[](Axis axis) const { return size[static_cast<int>(axis)]; }
  int& operator[](Axis axis) { return size[static_cast<int>(axis)]; }
  int world() const;
  std::string ToString() const;  // "pipeline 1 x data_replicate 1 x data_shard 2 x context 1 x tensor 1"
};

// Where a rank computes.
struct RankDevice {
  std::string host;  // as NCCL tells hosts apart
  std::string gpu;   // DeviceId(); empty: the CPU
};
// Whether all ranks compute on the same kind of device, each on a GPU of its own; kConfig otherwise.
absl::Status CheckDevices(const std::vector<RankDevice>& ranks);

class Mesh {
 public:
  // Collective over the job. shape.world() must equal the number of ranks. Groups talk over MPI for a CPU `device`,
  // over NCCL for a GPU; kConfig where CheckDevices() says so.
  static absl::StatusOr<std::unique_ptr<Mesh>> Create(const Process& process, const MeshShape& shape,
                                                      at::Device device);

  // This process by itself, whatever the job's size: every group is a group of one.
  static std::unique_ptr<Mesh> Alone(at::Device device);

  const MeshShape& shape() const { return shape_; }
  int coordinate(Axis axis) const { return coordinates_[static_cast<int>(axis)]; }

  // The ranks that differ from this one along these axes only, in mesh order. Collective over the job on first use (all
  // ranks ask for the same sets in the same order). Never null.
  std::shared_ptr<ProcessGroup> group(std::initializer_list<Axis> axes);

  // The ranks that have the other experts, and those that have the same ones as this rank, of the same place in
  // pipeline and data_replicate. second: as second_group().
  std::shared_ptr<ProcessGroup> expert_group();
  std::shared_ptr<ProcessGroup> expert_data_group(bool second = false);

  // The same ranks, talking over MPI: for CPU tensors on GPU runs (counts, norms, statuses). On CPU runs it is group()
  // itself.
  std::shared_ptr<ProcessGroup> host_group(std::initializer_list<Axis> axes);

  // A second communicator over the same ranks, so that two operations can be under way at once. On CPU runs it is
  // group() itself.
  std::shared_ptr<ProcessGroup> second_group(std::initializer_list<Axis> axes);

  // The ranks that differ from this one along `axis` only and have the same part there: part_of[coordinate], -1 for
  // alone. Collective over the job on first use of `name`; every rank passes the same part_of.
  std::shared_ptr<ProcessGroup> Split(Axis axis, const std::vector<int>& part_of, const std::string& name);

  // All ranks, for control messages on CPU tensors: MPI on GPU runs too.
  ProcessGroup& control() { return *control_; }

  // The ranks of the job that are first on every axis but these, in order.
  std::vector<int64_t> RanksAlong(std::initializer_list<Axis> axes) const;

  // Rank among the data-parallel ranks (replicate x shard) and their number: who reads which samples.
  int data_rank() const;
  int num_data_ranks() const;

  OperationLog& log() { return *log_; }
  at::Device device() const { return device_; }

 private:
  Mesh() = default;
  std::vector<int> MembersOf(unsigned set) const;  // ranks of the job in this rank's group of these axes

  enum class Kind { kDevice, kHost, kSecond };
  std::shared_ptr<ProcessGroup> Get(std::initializer_list<Axis> axes, Kind kind);

  MeshShape shape_;
  std::array<int, kNumAxes> coordinates_ = {};
  at::Device device_ = at::kCPU;
  std::unique_ptr<OperationLog> log_ = std::make_unique<OperationLog>();
  std::shared_ptr<ProcessGroup> control_;
  std::shared_ptr<ProcessGroup> Make(const std::string& name, const std::vector<int>& members, int color, Kind kind);
  // Of the ranks along data_shard, context and tensor those that `same` says belong to this one, by their places there.
  std::shared_ptr<ProcessGroup> Among(const std::string& name, Kind kind, bool (*same)(int a, int b, int expert));

  std::map<std::pair<unsigned, Kind>, std::shared_ptr<ProcessGroup>> groups_;  // by set of axes (one bit each) and kind
  std::map<std::string, std::shared_ptr<ProcessGroup>> splits_;                // by name
};

}  // namespace trireme

#endif  // TRIREME_PARALLEL_COMM_MESH_H_
