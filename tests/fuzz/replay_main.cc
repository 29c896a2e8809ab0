// Without libFuzzer: `NAME_fuzz` replays the seeds and fixed mutations of them, `NAME_fuzz FILE...` repeats inputs.
#include <cstdio>
#include <cstring>
#include <iterator>
#include <random>

#include "launch/base/file.h"
#include "tests/fuzz/fuzz_target.h"

namespace trireme {
namespace {

constexpr int kMutationsOfASeed = 400;

// Damage as files have it: a byte changed, an end cut off, a part gone, repeated or moved, a size that cannot be.
std::string Mutated(std::string text, std::mt19937_64& random) {
  static const uint64_t kSizes[] = {0, 1, 0x7f, 0xff, 0xffff, 0x7fffffff, 0xffffffff, uint64_t{1} << 62, ~uint64_t{0}};
  const int changes = 1 + static_cast<int>(random() % 3);
  for (int i = 0; i < changes && !text.empty(); ++i) {
    const size_t at = random() % text.size();
    const size_t length = std::min<size_t>(text.size() - at, 1 + random() % 32);
    const uint64_t size = kSizes[random() % std::size(kSizes)];
    switch (random() % 6) {
      case 0:
        text[at] = static_cast<char>(random());
        break;
      case 1:
        text[at] = static_cast<char>(text[at] ^ 1 << random() % 8);
        break;
      case 2:
        text.resize(at);
        break;
      case 3:
        text.erase(at, length);
        break;
      case 4:
        text.insert(random() % text.size(), text.substr(at, length));
        break;
      default:
        std::memcpy(text.data() + at, &size, std::min<size_t>(text.size() - at, random() % 2 == 0 ? 4 : 8));
    }
  }
  return text;
}

int Main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const absl::StatusOr<std::string> input = ReadFile(argv[i]);
    TRIREME_CHECK(input.ok(), input.status().message());
    FuzzOne(*input);
  }
  if (argc > 1) return 0;
  std::mt19937_64 random(1);
  const std::vector<std::string> seeds = FuzzSeeds();
  TRIREME_CHECK(FuzzOne(seeds.front()), "the first seed is refused");
  FuzzOne("");
  int accepted = 0, accepted_mutations = 0;
  for (const std::string& seed : seeds) {
    accepted += FuzzOne(seed);
    for (int i = 0; i < kMutationsOfASeed; ++i) accepted_mutations += FuzzOne(Mutated(seed, random));
  }
  std::printf("accepted: %d of %zu seeds, %d of %zu mutations\n", accepted, seeds.size(), accepted_mutations,
              seeds.size() * kMutationsOfASeed);
  return 0;
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) { return trireme::Main(argc, argv); }
