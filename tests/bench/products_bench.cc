// Matrix products alone: Trireme's own beside OpenBLAS' and MKL's, the three taking turns.
//
//     ninja -C build products_bench && build/bin/products_bench [--threads 2] [--rounds 15]
//
// For each shape: gigaflops of the fastest round of each contender, Trireme's factor against the faster library, and
// its share of the peak (a tile whose operands stay in the first-level cache). Rows of decoding read a weight that is
// in no cache: gigabytes of weights per second, and the share of a plain read's. Two runs differ by what else the
// machine does.
#include <absl/strings/numbers.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "kernels/base/thread_pool.h"
#include "kernels/cpu/loops.h"
#include "kernels/cpu/products.h"
#include "kernels/matrix/gemm.h"

namespace trireme {
namespace {

double Seconds(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Contender {
  const char* name;
  ProductLibrary library;
};

struct Shape {
  const char* of;
  int64_t tokens, out, in;  // y [tokens, out] = x [tokens, in] w^T
};
constexpr Shape kShapes[] = {
    {"A q", 2048, 256, 256},        {"A kv", 2048, 256, 256},         {"A gate_up", 2048, 1536, 256},
    {"A down", 2048, 256, 768},     {"A head", 512, 4096, 256},       {"B qkv", 2048, 960, 576},
    {"B o", 2048, 576, 576},        {"B gate_up", 2048, 3072, 576},   {"B down", 2048, 576, 1536},
    {"B512 qkv", 512, 960, 576},    {"B512 gate_up", 512, 3072, 576}, {"B512 down", 512, 576, 1536},
    {"LoRA A", 2048, 16, 576},      {"LoRA B", 2048, 576, 16},        {"expert", 128, 256, 256},
    {"expert wide", 128, 128, 256}, {"scores", 64, 512, 32},          {"scores 64", 64, 512, 64},
};

class Bench {
 public:
  Bench(int rounds, std::vector<Contender> contenders) : rounds_(rounds), contenders_(std::move(contenders)) {
    for (std::vector<float>* values : {&a_, &b_, &c_}) values->assign(size_t{1} << 24, 0.5f);
    for (size_t i = 0; i < a_.size(); ++i) {
      a_[i] = static_cast<float>(i % 201) * 0.01f - 1;
      b_[i] = static_cast<float>(i % 199) * 0.01f - 1;
    }
  }

  void Run() {
    const double peak = Peak();
    std::printf("peak of %d threads: %.0f GFLOP/s\n%-14s %-9s %16s", CpuThreads(), peak, "", "", "");
    for (const Contender& contender : contenders_) std::printf(" %9s", contender.name);
    std::printf(" %9s %7s\n", "factor", "of peak");
    double logarithms = 0;
    int count = 0;
    for (const Shape& s : kShapes) {
      const bool of_a_step = s.of[0] == 'A' || s.of[0] == 'B';
      for (const auto& [way, ta, tb, m, n, k] :
           {std::tuple{"forward", Transpose::kNo, Transpose::kYes, s.tokens, s.out, s.in},
            std::tuple{"d input", Transpose::kNo, Transpose::kNo, s.tokens, s.in, s.out},
            std::tuple{"d weight", Transpose::kYes, Transpose::kNo, s.out, s.in, s.tokens}}) {
        const double factor = Compare(s.of, way, ta, tb, m, n, k, peak);
        if (!of_a_step) continue;
        logarithms += std::log(factor);
        ++count;
      }
    }
    std::printf("geometric mean over the shapes of A and B: %.3f\n", std::exp(logarithms / count));
    Decode();
  }

 private:
  double Compare(const char* of, const char* way, Transpose ta, Transpose tb, int64_t m, int64_t n, int64_t k,
                 double peak) {
    const double flops = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
    const int inner = static_cast<int>(std::clamp(2e7 / flops, 1.0, 1000.0));  // at least a millisecond or so
    std::vector<double> best(contenders_.size(), 1e9);
    for (int round = 0; round < rounds_; ++round) {
      for (size_t i = 0; i < contenders_.size(); ++i) {
        if (!UseProducts(contenders_[i].library).ok()) continue;
        const double seconds = Seconds([&] {
          for (int j = 0; j < inner; ++j) {
            ParallelGemm(ta, tb, m, n, k, a_.data(), ta == Transpose::kYes ? m : k, b_.data(),
                         tb == Transpose::kYes ? k : n, /*add=*/false, c_.data(), n);
          }
        });
        best[i] = std::min(best[i], seconds / inner);
      }
    }
    std::printf("%-14s %-9s %5ld x%5ld x%5ld", of, way, static_cast<long>(m), static_cast<long>(n),
                static_cast<long>(k));
    for (const double seconds : best) std::printf(" %9.1f", seconds < 1e9 ? flops / seconds / 1e9 : 0.0);
    const double factor = *std::min_element(best.begin() + 1, best.end()) / best[0];
    std::printf(" %8.2fx %6.0f%%\n", factor, 100 * flops / best[0] / 1e9 / peak);
    return factor;
  }

  // Every thread repeats a tile whose operands stay in its first-level cache.
  double Peak() {
    constexpr int64_t kInner = 128, kTimes = 20000;
    const CpuProducts& p = Products();
    const int64_t threads = CpuThreads();
    double best = 1e9;
    for (int round = 0; round < rounds_; ++round) {
      best = std::min(best, Seconds([&] {
                        ParallelTasks(threads, [&](int64_t t) {
                          const int64_t at = t << 16;
                          for (int64_t i = 0; i < kTimes; ++i) {
                            p.tile(kInner, a_.data() + at, b_.data() + at, p.tile_rows, p.tile_columns, /*add=*/false,
                                   c_.data() + at, p.tile_columns);
                          }
                        });
                      }));
    }
    return 2.0 * static_cast<double>(threads * kTimes * p.tile_rows * p.tile_columns * kInner) / best / 1e9;
  }

  // Weights of 256 MiB in float32, in pieces that no cache holds from one use to the next.
  void Decode() {
    constexpr int64_t kIn = 1024, kOut = 4096, kMatrices = 16;
    std::vector<float> weights(static_cast<size_t>(kIn * kOut * kMatrices), 0.25f);
    std::vector<Bf16> narrow(weights.size());
    Loops().bf16.narrow(static_cast<int64_t>(weights.size()), weights.data(), narrow.data());
    double read = 1e9;
    std::vector<double> sums(static_cast<size_t>(kMatrices * 4));
    for (int round = 0; round < rounds_; ++round) {
      read = std::min(read, Seconds([&] {
                        ParallelTasks(kMatrices * 4, [&](int64_t i) {
                          sums[static_cast<size_t>(i)] =
                              Loops().squared_norm(kIn * kOut / 4, weights.data() + i * kIn * kOut / 4);
                        });
                      }));
    }
    const double gigabytes = static_cast<double>(weights.size()) * 4 / 1e9;
    std::printf("\nplain read: %.1f GB/s\n%-14s", gigabytes / read, "decoding");
    for (const Contender& contender : contenders_) std::printf(" %9s", contender.name);
    std::printf(" %9s %13s\n", "of a read", "bf16 weights");
    for (const int64_t rows : {1, 2, 4, 8, 16, 32, 64}) {
      std::vector<double> best(contenders_.size() + 1, 1e9);
      for (int round = 0; round < rounds_; ++round) {
        for (size_t i = 0; i < contenders_.size(); ++i) {
          if (!UseProducts(contenders_[i].library).ok()) continue;
          best[i] = std::min(best[i], DecodeOnce(rows, kOut, kIn, kMatrices, weights.data()));
          if (i == 0) best.back() = std::min(best.back(), DecodeOnce(rows, kOut, kIn, kMatrices, narrow.data()));
        }
      }
      std::printf("%4ld rows     ", static_cast<long>(rows));
      for (size_t i = 0; i < contenders_.size(); ++i) std::printf(" %9.1f", best[i] < 1e9 ? gigabytes / best[i] : 0.0);
      std::printf(" %8.0f%% %8.2fx rows\n", 100 * read / best[0], best[0] / best.back());
    }
  }

  template <typename W>
  double DecodeOnce(int64_t rows, int64_t out, int64_t in, int64_t matrices, const W* weights) {
    return Seconds([&] {
      for (int64_t i = 0; i < matrices; ++i) {
        ParallelGemm(Transpose::kNo, Transpose::kYes, rows, out, in, a_.data(), in, weights + i * in * out, in,
                     /*add=*/false, c_.data(), out);
      }
    });
  }

  int rounds_;
  std::vector<Contender> contenders_;
  std::vector<float> a_, b_, c_;
};

int Main(int argc, char** argv) {
  int threads = 2, rounds = 15;
  for (int i = 1; i + 1 < argc; i += 2) {
    const bool known = std::strcmp(argv[i], "--threads") == 0
                           ? absl::SimpleAtoi(argv[i + 1], &threads)
                           : std::strcmp(argv[i], "--rounds") == 0 && absl::SimpleAtoi(argv[i + 1], &rounds);
    if (!known) {
      std::fprintf(stderr, "usage: products_bench [--threads N] [--rounds N]\n");
      return 2;
    }
  }
  SetCpuThreads(threads);
  std::vector<Contender> contenders = {{"own", ProductLibrary::kOwn}};
  for (const Contender& library :
       {Contender{"OpenBLAS", ProductLibrary::kOpenBlas}, Contender{"MKL", ProductLibrary::kMkl}}) {
    if (UseProducts(library.library).ok()) contenders.push_back(library);
  }
  if (contenders.size() < 2) {
    std::fprintf(stderr, "this build has no library to compare with\n");
    return 1;
  }
  std::printf("instruction set: %s\n", Loops().name);
  Bench(rounds, contenders).Run();
  return 0;
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) { return trireme::Main(argc, argv); }
