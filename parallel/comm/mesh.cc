#include "parallel/comm/mesh.h"

#include "parallel/comm/mpi_group.h"
#include "parallel/comm/nccl_group.h"

namespace trireme {
namespace {

std::array<int, kNumAxes> CoordinatesOf(const MeshShape& shape, int rank) {
  std::array<int, kNumAxes> coordinates = {};
  for (int axis = kNumAxes - 1; axis >= 0; --axis) {
    coordinates[axis] = rank % shape.size[axis];
    rank /= shape.size[axis];
  }
  return coordinates;
}

}  // namespace

const char* AxisName(Axis axis) {
  static constexpr const char* kNames[] = {"pipeline", "data_replicate", "data_shard", "context", "tensor"};
  return kNames[static_cast<int>(axis)];
}

int MeshShape::world() const {
  int world = 1;
  for (int axis_size : size) world *= axis_size;
  return world;
}

std::string MeshShape::ToString() const {
  std::string text;
  for (int axis = 0; axis < kNumAxes; ++axis) {
    absl::StrAppend(&text, axis == 0 ? "" : " x ", AxisName(static_cast<Axis>(axis)), " ", size[axis]);
  }
  return text;
}

absl::StatusOr<std::unique_ptr<Mesh>> Mesh::Create(const Process& process, const MeshShape& shape, at::Device device) {
  if (shape.world() != process.size()) {
    return Error(ExitCode::kConfig, "mesh: ", shape.ToString(), " = ", shape.world(), " ranks, but the job has ",
                 process.size());
  }
  std::unique_ptr<Mesh> mesh(new Mesh);
  mesh->shape_ = shape;
  mesh->device_ = device;
  mesh->coordinates_ = CoordinatesOf(shape, process.rank());
  mesh->control_ = MakeWorldGroup(mesh->log_.get());
  return mesh;
}

std::unique_ptr<Mesh> Mesh::Alone(at::Device device) {
  std::unique_ptr<Mesh> mesh(new Mesh);
  mesh->device_ = device;
  mesh->control_ = MakeSelfGroup("alone");
  return mesh;
}

std::vector<int> Mesh::MembersOf(unsigned set) const {
  std::vector<int> members;
  for (int rank = 0; rank < shape_.world(); ++rank) {
    const std::array<int, kNumAxes> coordinates = CoordinatesOf(shape_, rank);
    bool same = true;
    for (int axis = 0; axis < kNumAxes; ++axis)
      same &= (set >> axis & 1) != 0 || coordinates[axis] == coordinates_[axis];
    if (same) members.push_back(rank);
  }
  return members;
}

std::shared_ptr<ProcessGroup> Mesh::group(std::initializer_list<Axis> axes) { return Get(axes, Kind::kDevice); }

std::shared_ptr<ProcessGroup> Mesh::host_group(std::initializer_list<Axis> axes) {
  return Get(axes, device_.is_cuda() ? Kind::kHost : Kind::kDevice);
}

std::shared_ptr<ProcessGroup> Mesh::second_group(std::initializer_list<Axis> axes) {
  return Get(axes, device_.is_cuda() ? Kind::kSecond : Kind::kDevice);
}

std::shared_ptr<ProcessGroup> Mesh::Get(std::initializer_list<Axis> axes, Kind kind) {
  unsigned set = 0;
  for (Axis axis : axes) set |= 1u << static_cast<int>(axis);
  std::shared_ptr<ProcessGroup>& group = groups_[{set, kind}];
  if (group != nullptr) return group;
  std::string name;
  for (int axis = 0; axis < kNumAxes; ++axis) {
    if ((set >> axis & 1) != 0) absl::StrAppend(&name, name.empty() ? "" : "+", AxisName(static_cast<Axis>(axis)));
  }
  if (kind == Kind::kHost) absl::StrAppend(&name, "(host)");
  if (kind == Kind::kSecond) absl::StrAppend(&name, "(2)");
  int size = 1;
  for (int axis = 0; axis < kNumAxes; ++axis) size *= (set >> axis & 1) != 0 ? shape_.size[axis] : 1;
  if (size == 1) return group = MakeSelfGroup(name);
  const std::vector<int> members = MembersOf(set);
  return group = Make(name, members, members[0], kind);
}

std::shared_ptr<ProcessGroup> Mesh::Split(Axis axis, const std::vector<int>& part_of, const std::string& name) {
  std::shared_ptr<ProcessGroup>& group = splits_[name];
  if (group != nullptr) return group;
  const int own = part_of[coordinate(axis)];
  std::vector<int> members;
  for (int rank : MembersOf(1u << static_cast<int>(axis))) {
    if (own >= 0 && part_of[CoordinatesOf(shape_, rank)[static_cast<int>(axis)]] == own) members.push_back(rank);
  }
  if (members.size() > 1) return group = Make(name, members, members[0], Kind::kDevice);
  // The others split; who is alone must take part.
  MPI_Comm none;
  MPI_Comm_split(MPI_COMM_WORLD, MPI_UNDEFINED, 0, &none);
  return group = MakeSelfGroup(name);
}

// Collective over the job. Ranks that give the same color make one group, in the order of their ranks in the job.
std::shared_ptr<ProcessGroup> Mesh::Make(const std::string& name, const std::vector<int>& members, int color,
                                         Kind kind) {
  log_->SetMembers(name, members);
  MPI_Comm communicator;
  MPI_Comm_split(MPI_COMM_WORLD, color, /*key=*/0, &communicator);
  return device_.is_cuda() && kind != Kind::kHost ? MakeNcclGroup(name, communicator, device_.index(), log_.get())
                                                  : MakeMpiGroup(name, communicator, log_.get());
}

int Mesh::data_rank() const {
  return coordinate(Axis::kDataReplicate) * shape_[Axis::kDataShard] + coordinate(Axis::kDataShard);
}
int Mesh::num_data_ranks() const { return shape_[Axis::kDataReplicate] * shape_[Axis::kDataShard]; }

}  // namespace trireme
