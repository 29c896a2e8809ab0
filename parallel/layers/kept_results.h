// parallel/layers/kept_results.h
// Selective recompute (arXiv 2205.05198): named results of a unit's first pass that its second pass takes instead of
// computing them again.
#ifndef TRIREME_PARALLEL_LAYERS_KEPT_RESULTS_H_
#define TRIREME_PARALLEL_LAYERS_KEPT_RESULTS_H_

#include <ATen/core/Tensor.h>

#include <map>
#include <set>
#include <string>
#include <vector>

namespace trireme {

// What can be kept of a block, in the order it is computed.
inline constexpr const char* kKeepQkv = "qkv";              // [tokens, (heads + 2 kv_heads) head_dim], rotated
inline constexpr const char* kKeepAttention = "attention";  // output [tokens, heads * head_dim] and lse
inline constexpr const char* kKeepGateUp = "gate_up";       // [tokens, 2 intermediate]

// What is kept whatever else is: [tokens, per_token] the experts that were chosen.
inline constexpr const char* kKeepRouting = "routing";

// What one unit keeps of one microbatch. The first pass fills it, the second empties it.
class KeptResults {
 public:
  explicit KeptResults(const std::set<std::string>* names) : names_(names) {}

  // The results kept under `name`, which this call gives away; else compute()'s, kept when `name` is to be.
  template <typename Compute>
  std::vector<at::Tensor> Take(const char* name, Compute&& compute) {
    if (const auto found = results_.find(name); found != results_.end()) {
      std::vector<at::Tensor> results = std::move(found->second);
      results_.erase(found);
      return results;
    }
    std::vector<at::Tensor> results = compute();
    if (recording && (names_->count(name) > 0 || std::string(name) == kKeepRouting)) results_[name] = results;
    return results;
  }

  bool Has(const char* name) const { return results_.count(name) > 0; }

  bool recording = true;  // the first pass
  std::map<std::string, std::vector<at::Tensor>>& results() { return results_; }

 private:
  const std::set<std::string>* names_;
  std::map<std::string, std::vector<at::Tensor>> results_;
};

// Takes from `kept`, or computes where there is nothing to keep in (null).
template <typename Compute>
std::vector<at::Tensor> TakeKept(KeptResults* kept, const char* name, Compute&& compute) {
  return kept == nullptr ? compute() : kept->Take(name, compute);
}

}  // namespace trireme

#endif  // TRIREME_PARALLEL_LAYERS_KEPT_RESULTS_H_
