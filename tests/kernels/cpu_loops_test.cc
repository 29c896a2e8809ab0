// The inner loops compiled for different instruction sets agree: what a small machine computes, a large one does.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "kernels/cpu/loops.h"

namespace trireme {
namespace {

struct Candidate {
  const CpuLoops* loops;
  const char* missing;  // what the processor lacks for them; null when it has all
};

Candidate Avx2() {
#if defined(__x86_64__)
  return {&Avx2Loops(), __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? nullptr : "AVX2 and FMA"};
#else
  return {&Avx2Loops(), "x86-64"};
#endif
}

Candidate Avx512() {
#if defined(__x86_64__)
  const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return {&Avx512Loops(), has ? nullptr : "AVX-512 (F, BW, DQ, VL)"};
#else
  return {&Avx512Loops(), "x86-64"};
#endif
}

class CpuLoopsTest : public testing::TestWithParam<Candidate (*)()> {
 protected:
  void SetUp() override {
    const Candidate candidate = GetParam()();
    if (candidate.missing != nullptr) {
      std::printf("skipped: this processor lacks %s\n", candidate.missing);
      GTEST_SKIP() << "this processor lacks " << candidate.missing;
    }
    loops_ = candidate.loops;
  }

  template <typename T>
  std::vector<T> Random(int64_t n, double deviation = 1) {
    std::normal_distribution<double> normal(0, deviation);
    std::vector<T> values(n);
    for (T& value : values) value = FromDouble<T>(normal(generator_));
    return values;
  }
  template <typename T>
  static T FromDouble(double value) {
    if constexpr (std::is_same_v<T, Bf16>) {
      return RoundToBf16(static_cast<float>(value));
    } else {
      return static_cast<T>(value);
    }
  }
  static double Value(Bf16 x) { return ToFloat(x); }
  static double Value(double x) { return x; }

  // Sums in another order, fused or separate multiply-add: within `bound` of the largest value.
  template <typename T>
  static void ExpectClose(const std::vector<T>& a, const std::vector<T>& b, double bound, const char* what) {
    ASSERT_EQ(a.size(), b.size());
    double largest = 0, difference = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      largest = std::max(largest, std::abs(Value(a[i])));
      difference = std::max(difference, std::abs(Value(a[i]) - Value(b[i])));
      ASSERT_EQ(std::isnan(Value(a[i])), std::isnan(Value(b[i]))) << what << " at " << i;
    }
    EXPECT_LE(difference, bound * largest) << what;
  }
  template <typename T>
  static constexpr double Bound() {
    return std::is_same_v<T, double> ? 1e-14 : std::is_same_v<T, float> ? 3e-6 : 1.0 / 128;
  }
  template <typename C>
  static constexpr double SumBound() {
    return std::is_same_v<C, double> ? 1e-14 : 3e-6;
  }

  template <typename T, typename C>
  void CompareRows(const TypedLoops<T, C>& a, const TypedLoops<T, C>& b);
  template <typename T, typename C>
  void CompareAttention(const TypedLoops<T, C>& a, const TypedLoops<T, C>& b);
  template <typename T, typename C>
  void CompareLoss(const TypedLoops<T, C>& a, const TypedLoops<T, C>& b);
  template <typename T, typename C>
  void CompareFlat(const TypedLoops<T, C>& a, const TypedLoops<T, C>& b);

  const CpuLoops* loops_ = nullptr;
  std::mt19937_64 generator_{71};
};

template <typename T, typename C>
void CpuLoopsTest::CompareRows(const TypedLoops<T, C>& a, const TypedLoops<T, C>& b) {
  for (const int64_t width : {1, 5, 16, 67, 1000}) {
    const int64_t rows = 3, n = rows * width;
    const auto x = Random<T>(n), delta = Random<T>(n), weight = Random<T>(width), dy = Random<T>(n), d_h = Random<T>(n);
    struct Results {
      std::vector<T> h, y, again, dx, swiglu, d_gate_up;
      std::vector<C> rstd, d_weight;
    };
    const auto gate_up = Random<T>(2 * n, 5);
    const auto run = [&](const TypedLoops<T, C>& loops) {
      Results r = {x, x, x, x, x, gate_up, std::vector<C>(rows), std::vector<C>(width)};
      loops.rms_norm(rows, width, x.data(), delta.data(), weight.data(), C(0.5), C(1e-5), r.h.data(), r.y.data(),
                     r.rstd.data());
      loops.rms_norm_again(rows, width, x.data(), r.rstd.data(), weight.data(), C(0.5), r.again.data());
      loops.rms_norm_backward(rows, width, x.data(), r.rstd.data(), weight.data(), C(0.5), dy.data(), d_h.data(),
                              r.dx.data(), r.d_weight.data());
      loops.swiglu(rows, width, gate_up.data(), r.swiglu.data());
      loops.swiglu_backward(rows, width, gate_up.data(), dy.data(), r.d_gate_up.data());
      return r;
    };
    const Results one = run(a), two = run(b);
    ExpectClose(one.h, two.h, 0, "x + delta");
    ExpectClose(one.y, two.y, Bound<T>(), "rms_norm");
    ExpectClose(one.again, two.again, Bound<T>(), "rms_norm_again");
    ExpectClose(one.rstd, two.rstd, SumBound<C>(), "rstd");
    ExpectClose(one.dx, two.dx, Bound<T>(), "rms_norm_backward");
    ExpectClose(one.d_weight, two.d_weight, SumBound<C>(), "d_weight");
    ExpectClose(one.swiglu, two.swiglu, Bound<T>(), "swiglu");
    ExpectClose(one.d_gate_up, two.d_gate_up, Bound<T>(), "swiglu_backward");
  }
  for (const int64_t head_dim : {2, 10, 64}) {
    const auto x = Random<T>(4 * 5 * head_dim);
    const auto cosine = Random<C>(9 * head_dim / 2), sine = Random<C>(9 * head_dim / 2);
    const std::vector<int64_t> positions = {8, 0, 3, 3};
    for (const bool interleaved : {false, true}) {
      auto one = x, two = x;
      const int64_t pairs = interleaved ? head_dim / 2 : (head_dim + 2) / 4;
      const auto run = [&](const TypedLoops<T, C>& loops, std::vector<T>* rows) {
        loops.rope(4, 3, head_dim, pairs, interleaved, 5 * head_dim, rows->data(), positions.data(), cosine.data(),
                   sine.data(), C(-1));
      };
      run(a, &one);
      run(b, &two);
      ExpectClose(one, two, Bound<T>(), "rope");
    }
  }
}

template <typename T, typename C>
void CpuLoopsTest::CompareAttention(const TypedLoops<T, C>& a, const TypedLoops<T, C>& b) {
  const int64_t rows = 13, ld = 80;
  for (const int64_t columns : {1, 16, 61}) {
    for (const int64_t first_limit : {-5, 0, 1, 30, 1000}) {
      for (const int64_t window : {0, 1, 20}) {
        const auto scores = Random<C>(rows * ld, 4), d = Random<C>(rows * ld), delta = Random<C>(rows);
        struct Results {
          std::vector<C> scores, again, d, max, sum, shrink, dots;
        };
        const auto run = [&](const TypedLoops<T, C>& loops) {
          Results r = {scores,
                       scores,
                       d,
                       std::vector<C>(rows, C(0.5)),
                       std::vector<C>(rows, C(2)),
                       std::vector<C>(rows),
                       std::vector<C>(rows)};
          loops.softmax_block(rows, columns, ld, first_limit, window, C(0.3), r.scores.data(), r.max.data(),
                              r.sum.data(), r.shrink.data());
          loops.softmax_again(rows, columns, ld, first_limit, window, C(0.3), r.again.data(), delta.data());
          loops.softmax_backward(rows, columns, ld, C(0.3), r.scores.data(), delta.data(), r.d.data());
          loops.row_dots(rows, columns, ld, scores.data(), ld, d.data(), r.dots.data());
          loops.scale_rows(rows, columns, ld, delta.data(), r.again.data());
          return r;
        };
        const Results one = run(a), two = run(b);
        ExpectClose(one.scores, two.scores, SumBound<C>(), "softmax_block");
        ExpectClose(one.max, two.max, SumBound<C>(), "row_max");
        ExpectClose(one.sum, two.sum, SumBound<C>(), "row_sum");
        ExpectClose(one.shrink, two.shrink, SumBound<C>(), "shrink");
        ExpectClose(one.again, two.again, SumBound<C>(), "softmax_again, scale_rows");
        ExpectClose(one.d, two.d, SumBound<C>(), "softmax_backward");
        ExpectClose(one.dots, two.dots, SumBound<C>(), "row_dots");
      }
    }
  }
}

template <typename T, typename C>
void CpuLoopsTest::CompareLoss(const TypedLoops<T, C>& a, const TypedLoops<T, C>& b) {
  for (const int64_t vocab : {1, 17, 5003}) {
    for (const int64_t target : {int64_t{-1}, int64_t{0}, vocab - 1}) {
      const auto logits = Random<C>(vocab, 6);
      C lse_a, lse_b;
      std::vector<C> losses_a = {a.cross_entropy(vocab, logits.data(), target, &lse_a)};
      std::vector<C> losses_b = {b.cross_entropy(vocab, logits.data(), target, &lse_b)};
      // A loss is a difference of larger numbers.
      losses_a.push_back(lse_a);
      losses_b.push_back(lse_b);
      ExpectClose(losses_a, losses_b, SumBound<C>(), "cross_entropy");
      auto one = logits, two = logits;
      a.cross_entropy_backward(vocab, one.data(), target, lse_a, C(0.1), C(0.01));
      b.cross_entropy_backward(vocab, two.data(), target, lse_a, C(0.1), C(0.01));
      ExpectClose(one, two, SumBound<C>(), "cross_entropy_backward");
    }
  }
}

template <typename T, typename C>
void CpuLoopsTest::CompareFlat(const TypedLoops<T, C>& a, const TypedLoops<T, C>& b) {
  for (const int64_t n : {1, 31, 1003}) {
    const auto x = Random<T>(n), y = Random<T>(n);
    const auto wide = Random<C>(n);
    const auto run = [&](const TypedLoops<T, C>& loops) {
      std::pair<std::vector<T>, std::vector<C>> r = {x, wide};
      std::vector<C> widened(n);
      loops.add(n, r.first.data(), y.data());
      loops.widen(n, r.first.data(), widened.data());
      loops.accumulate(n, r.second.data(), x.data());
      for (int64_t i = 0; i < n; ++i) r.second[i] += widened[i];
      loops.narrow(n, r.second.data(), r.first.data());
      return r;
    };
    const auto one = run(a), two = run(b);
    ExpectClose(one.first, two.first, 0, "add, widen, narrow");
    ExpectClose(one.second, two.second, 0, "accumulate");
  }
}

TEST_P(CpuLoopsTest, Rows) {
  CompareRows(PortableLoops().f32, loops_->f32);
  CompareRows(PortableLoops().f64, loops_->f64);
  CompareRows(PortableLoops().bf16, loops_->bf16);
}

TEST_P(CpuLoopsTest, Attention) {
  CompareAttention(PortableLoops().f32, loops_->f32);
  CompareAttention(PortableLoops().f64, loops_->f64);
}

TEST_P(CpuLoopsTest, CrossEntropy) {
  CompareLoss(PortableLoops().f32, loops_->f32);
  CompareLoss(PortableLoops().f64, loops_->f64);
}

TEST_P(CpuLoopsTest, Flat) {
  CompareFlat(PortableLoops().f32, loops_->f32);
  CompareFlat(PortableLoops().f64, loops_->f64);
  CompareFlat(PortableLoops().bf16, loops_->bf16);
}

TEST_P(CpuLoopsTest, SpecialValuesConvertAlike) {
  std::vector<float> values;
  for (const uint32_t bits :
       {0x7F800000u, 0xFF800000u, 0x7FC00000u, 0x7F800001u, 0x7F7FFFFFu, 0x00000001u, 0x80000000u}) {
    for (int i = 0; i < 33; ++i) values.push_back(BitsFloat(bits));
  }
  const int64_t n = static_cast<int64_t>(values.size());
  std::vector<Bf16> one(n), two(n);
  PortableLoops().bf16.narrow(n, values.data(), one.data());
  loops_->bf16.narrow(n, values.data(), two.data());
  for (int64_t i = 0; i < n; ++i) {
    EXPECT_EQ(one[i].bits, two[i].bits) << i;
    EXPECT_EQ(one[i].bits, RoundToBf16(values[i]).bits) << i;
  }
}

TEST_P(CpuLoopsTest, Updates) {
  const int64_t n = 1003;
  const AdamWStep step = {0.5f, 0.9f, 0.95f, 0.1f, 0.05f, 1e-2f, 3.0f, 1e-8f};
  const auto p = Random<float>(n), g = Random<float>(n), m = Random<float>(n), root_v = Random<float>(n);
  std::vector<float> v(n);
  for (int64_t i = 0; i < n; ++i) v[i] = root_v[i] * root_v[i];
  const auto bf16 = Random<Bf16>(n);
  std::vector<uint16_t> bits(n);
  for (uint16_t& value : bits) value = static_cast<uint16_t>(generator_());
  struct Results {
    std::vector<float> p, m, v, sgd, velocity;
    std::vector<Bf16> copy, sgd_copy, rounded;
    double norm;
    std::vector<uint16_t> random;
  };
  const auto run = [&](const CpuLoops& loops) {
    Results r = {p, m, v, p, m, bf16, bf16, bf16, loops.squared_norm(n, p.data()), bits};
    loops.adamw(n, step, 0.99f, r.p.data(), g.data(), r.m.data(), r.v.data(), r.copy.data());
    auto again_m = m, again_v = v;
    loops.adamw_bf16(n, step, 0.99f, r.rounded.data(), g.data(), again_m.data(), again_v.data(), bits.data());
    loops.sgd(n, 0.5f, 0.1f, 0.9f, 0.99f, r.sgd.data(), g.data(), r.velocity.data(), r.sgd_copy.data());
    loops.philox_bits(12345678901, n, 3, 4, r.random.data());
    return r;
  };
  const Results one = run(PortableLoops()), two = run(*loops_);
  ExpectClose(one.p, two.p, 1e-6, "adamw p");
  ExpectClose(one.m, two.m, 1e-6, "adamw m");
  ExpectClose(one.v, two.v, 1e-6, "adamw v");
  ExpectClose(one.copy, two.copy, 1.0 / 128, "adamw copy");
  ExpectClose(one.rounded, two.rounded, 1.0 / 128, "adamw_bf16");
  ExpectClose(one.sgd, two.sgd, 1e-6, "sgd p");
  ExpectClose(one.velocity, two.velocity, 1e-6, "sgd velocity");
  ExpectClose(one.sgd_copy, two.sgd_copy, 1.0 / 128, "sgd copy");
  EXPECT_NEAR(one.norm, two.norm, 1e-13 * one.norm);
  EXPECT_EQ(one.random, two.random);
}

// TRIREME_CPU must not silently mean something else.
TEST(Loops, NameWhatTheyAre) {
  EXPECT_STREQ(PortableLoops().name, "portable");
#if defined(__x86_64__)
  EXPECT_STREQ(Avx2Loops().name, "avx2");
  EXPECT_STREQ(Avx512Loops().name, "avx512");
#endif
}

INSTANTIATE_TEST_SUITE_P(InstructionSets, CpuLoopsTest, testing::Values(&Avx2, &Avx512),
                         [](const auto& info) { return info.index == 0 ? "avx2" : "avx512"; });

// What it is at most, and what is not known is refused. Each in a process of its own: the choice is made once.
TEST(LoopsDeathTest, TheEnvironmentChoosesAtMost) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto choose = [](const char* wish) {
    setenv("TRIREME_CPU", wish, 1);
    std::fprintf(stderr, "loops: %s", Loops().name);
    std::_Exit(0);
  };
  EXPECT_EXIT(choose("typo"), testing::ExitedWithCode(2),
              "TRIREME_CPU: is \"typo\"; there are: portable, avx2, avx512");
  EXPECT_EXIT(choose("portable"), testing::ExitedWithCode(0), "loops: portable");
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  EXPECT_EXIT(choose("avx2"), testing::ExitedWithCode(0), avx2 ? "loops: avx2" : "loops: portable");
  EXPECT_EXIT(choose("avx512"), testing::ExitedWithCode(0), avx2 ? "loops: avx" : "loops: portable");
  EXPECT_EXIT(choose(""), testing::ExitedWithCode(0), avx2 ? "loops: avx" : "loops: portable");
#endif
}

}  // namespace
}  // namespace trireme
