// tests/parallel/played_group.h
// A process group of several ranks inside one process, for code that talks to its group only.
#ifndef TRIREME_TESTS_PARALLEL_PLAYED_GROUP_H_
#define TRIREME_TESTS_PARALLEL_PLAYED_GROUP_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "launch/base/status.h"
#include "parallel/sharding/parameter_buffer.h"

namespace trireme {

// Gathers take what the other ranks' buffers hold; sums are as if every rank had brought what this one brings.
class PlayedGroup final : public ProcessGroup {
 public:
  PlayedGroup(int rank, int size) : rank_(rank), size_(size) {}
  // The same buffer of every rank, in rank order; once for each buffer. They must outlive the group's last gather.
  void AddPeers(std::vector<ParameterBuffer*> peers) { peers_.push_back(std::move(peers)); }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::string& name() const override { return name_; }

  Work AllGather(at::Tensor output, at::Tensor input) override {
    const int64_t n = input.numel();
    TRIREME_CHECK(output.numel() == n * size_, "gather of the wrong size");
    for (const std::vector<ParameterBuffer*>& peers : peers_) {
      if (peers[rank_]->own_compute().data_ptr() != input.data_ptr()) continue;
      std::vector<at::Tensor> parts;
      for (ParameterBuffer* peer : peers) parts.push_back(peer->own_compute());
      return Work([=] {
        for (size_t r = 0; r < parts.size(); ++r)
          output.narrow(0, static_cast<int64_t>(r) * n, n).copy_(parts[r].clone());
      });
    }
    TRIREME_CHECK(false, "gather of what is no buffer's");
  }
  Work ReduceScatter(at::Tensor output, at::Tensor input) override {
    const int64_t n = output.numel();
    TRIREME_CHECK(input.numel() == n * size_, "reduce-scatter of the wrong size");
    ++reductions;
    return Work([=, this] { output.copy_(input.narrow(0, rank_ * n, n).to(at::kFloat) * size_); });
  }
  Work AllReduce(at::Tensor tensor, ReduceOp op) override {
    ++reductions;
    return op == ReduceOp::kMax ? Work() : Work([=, this] { tensor.mul_(size_); });
  }
  Work Broadcast(at::Tensor, int) override { return Work(); }
  Work AllToAll(at::Tensor, at::Tensor) override { TRIREME_CHECK(false, "not played"); }
  Work Exchange(std::vector<PeerTransfer>) override { TRIREME_CHECK(false, "not played"); }
  void Barrier() override {}

  int reductions = 0;

 private:
  int rank_, size_;
  std::string name_ = "played";
  std::vector<std::vector<ParameterBuffer*>> peers_;
};

}  // namespace trireme

#endif  // TRIREME_TESTS_PARALLEL_PLAYED_GROUP_H_
