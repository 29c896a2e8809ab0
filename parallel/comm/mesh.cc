#include "parallel/comm/mesh.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "kernels/base/device.h"
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

// Gathers where every rank computes. Collective over the job.
std::vector<RankDevice> GatherDevices(const Process& process, at::Device device) {
  struct Record {
    char host[192], gpu[64];
  };
  Record own = {};
  const char* pretended = std::getenv("NCCL_HOSTID");
  process.host().copy(own.host, sizeof(own.host) - 1);
  if (pretended != nullptr) std::string(pretended).copy(own.host, sizeof(own.host) - 1);
  DeviceId(device).copy(own.gpu, sizeof(own.gpu) - 1);
  std::vector<Record> all(static_cast<size_t>(process.size()));
  MPI_Allgather(&own, sizeof(own), MPI_BYTE, all.data(), sizeof(own), MPI_BYTE, MPI_COMM_WORLD);
  std::vector<RankDevice> devices;
  for (const Record& record : all) devices.push_back({record.host, record.gpu});
  return devices;
}

}  // namespace

absl::Status CheckDevices(const std::vector<RankDevice>& ranks) {
  std::map<std::pair<std::string, std::string>, size_t> seen;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    const RankDevice& own = ranks[rank];
    if (own.gpu.empty() != ranks[0].gpu.empty()) {
      const size_t on_gpu = own.gpu.empty() ? 0 : rank, on_cpu = own.gpu.empty() ? rank : 0;
      return Error(ExitCode::kConfig, "launch.device: rank ", on_gpu, " (host ", ranks[on_gpu].host,
                   ") has a GPU, but rank ", on_cpu, " (host ", ranks[on_cpu].host,
                   ") sees none; check nvidia-smi and CUDA_VISIBLE_DEVICES there, or set launch.device");
    }
    if (own.gpu.empty()) continue;
    const auto [first, added] = seen.emplace(std::pair(own.host, own.gpu), rank);
    if (!added) {
      return Error(ExitCode::kConfig, "launch.device: ranks ", first->second, " and ", rank,
                   " would share one GPU of host ", own.host,
                   ", which NCCL refuses; start one rank for each GPU, or set launch.device: CPU (to share one for a "
                   "test, give each rank an NCCL_HOSTID of its own)");
    }
  }
  return absl::OkStatus();
}

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
  if (expert > 1) absl::StrAppend(&text, ", expert ", expert);
  return text;
}

absl::StatusOr<std::unique_ptr<Mesh>> Mesh::Create(const Process& process, const MeshShape& shape, at::Device device) {
  if (shape.world() != process.size()) {
    return Error(ExitCode::kConfig, "mesh: ", shape.ToString(), " = ", shape.world(), " ranks, but the job has ",
                 process.size());
  }
  RETURN_IF_ERROR(CheckDevices(GatherDevices(process, device)));
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

std::vector<int64_t> Mesh::RanksAlong(std::initializer_list<Axis> axes) const {
  std::vector<int64_t> ranks;
  for (int rank = 0; rank < shape_.world(); ++rank) {
    std::array<int, kNumAxes> others = CoordinatesOf(shape_, rank);
    for (const Axis axis : axes) others[static_cast<int>(axis)] = 0;
    if (others == std::array<int, kNumAxes>{}) ranks.push_back(rank);
  }
  return ranks;
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

std::shared_ptr<ProcessGroup> Mesh::Among(const std::string& name, Kind kind, bool (*same)(int a, int b, int expert)) {
  std::shared_ptr<ProcessGroup>& group = splits_[name];
  if (group != nullptr) return group;
  constexpr unsigned kInner = 1u << static_cast<int>(Axis::kDataShard) | 1u << static_cast<int>(Axis::kContext) |
                              1u << static_cast<int>(Axis::kTensor);
  // They are neighbours in the job: tensor is innermost, then context, then data_shard.
  const std::vector<int> all = MembersOf(kInner);
  const int own = static_cast<int>(std::find(all.begin(), all.end(), control_->rank()) - all.begin());
  std::vector<int> members;
  for (int place = 0; place < static_cast<int>(all.size()); ++place) {
    if (same(own, place, shape_.expert)) members.push_back(all[static_cast<size_t>(place)]);
  }
  // Every rank of the job has as many.
  if (members.size() == 1) return group = MakeSelfGroup(name);
  return group = Make(name, members, members[0], kind);
}

std::shared_ptr<ProcessGroup> Mesh::expert_group() {
  return Among("expert", Kind::kDevice, [](int a, int b, int expert) { return a / expert == b / expert; });
}

std::shared_ptr<ProcessGroup> Mesh::expert_data_group(bool second) {
  const bool own = second && device_.is_cuda();
  return Among(own ? "expert_data(2)" : "expert_data", own ? Kind::kSecond : Kind::kDevice,
               [](int a, int b, int expert) { return a % expert == b % expert; });
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
