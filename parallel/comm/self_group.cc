#include "launch/base/status.h"
#include "parallel/comm/mpi_group.h"

namespace trireme {
namespace {

class SelfGroup final : public ProcessGroup {
 public:
  explicit SelfGroup(const std::string& name) : name_(name) {}
  int rank() const override { return 0; }
  int size() const override { return 1; }
  const std::string& name() const override { return name_; }

  Work AllGather(at::Tensor output, at::Tensor input) override { return Copy(output, input); }
  Work ReduceScatter(at::Tensor output, at::Tensor input) override { return Copy(output, input); }
  Work AllReduce(at::Tensor, ReduceOp) override { return Work(); }
  Work Broadcast(at::Tensor, int) override { return Work(); }
  Work AllToAll(at::Tensor output, at::Tensor input) override { return Copy(output, input); }
  Work Exchange(std::vector<PeerTransfer> transfers) override {
    // Sends to itself match receives in order.
    std::vector<at::Tensor> sent;
    for (const PeerTransfer& t : transfers) {
      if (t.direction == PeerTransfer::kSend) sent.push_back(t.tensor);
    }
    size_t next = 0;
    for (PeerTransfer& t : transfers) {
      if (t.direction == PeerTransfer::kReceive) {
        TRIREME_CHECK(next < sent.size(), "exchange: a receive without its send");
        t.tensor.copy_(sent[next++]);
      }
    }
    return Work();
  }
  void Barrier() override {}

 private:
  static Work Copy(at::Tensor& output, const at::Tensor& input) {
    if (output.data_ptr() != input.data_ptr()) output.view({-1}).copy_(input.reshape({-1}));
    return Work();
  }
  std::string name_;
};

}  // namespace

std::shared_ptr<ProcessGroup> MakeSelfGroup(const std::string& name) { return std::make_shared<SelfGroup>(name); }

}  // namespace trireme
