#include "data/unicode/unicode_nfc.h"

#include <absl/container/flat_hash_map.h>

#include <algorithm>
#include <vector>

#include "data/unicode/unicode.h"

namespace trireme {
namespace {

// Hangul syllables decompose by arithmetic (Unicode Standard, section 3.12).
constexpr uint32_t kSyllableBase = 0xAC00, kLeadBase = 0x1100, kVowelBase = 0x1161, kTrailBase = 0x11A7;
constexpr uint32_t kNumLeads = 19, kNumVowels = 21, kNumTrails = 28;
constexpr uint32_t kNumSyllables = kNumLeads * kNumVowels * kNumTrails;
// Below this code point text is normal as it stands.
constexpr unsigned char kFirstLeadByte = 0xCC;  // U+0300

struct Character {
  uint32_t code_point;
  uint8_t combining_class;
};

class Tables {
 public:
  static const Tables& Get() {
    static const Tables* tables = new Tables();
    return *tables;
  }

  uint8_t CombiningClass(uint32_t c) const {
    const CombiningClassRange* end = kCombiningClasses + kNumCombiningClasses;
    const CombiningClassRange* range = std::lower_bound(
        kCombiningClasses, end, c, [](const CombiningClassRange& r, uint32_t value) { return r.last < value; });
    return range != end && range->first <= c ? range->combining_class : 0;
  }

  void Decompose(uint32_t c, std::vector<Character>* out) const {
    if (c < 0xC0) {
      out->push_back({c, 0});
    } else if (c - kSyllableBase < kNumSyllables) {
      const uint32_t syllable = c - kSyllableBase;
      out->push_back({kLeadBase + syllable / (kNumVowels * kNumTrails), 0});
      out->push_back({kVowelBase + syllable / kNumTrails % kNumVowels, 0});
      if (syllable % kNumTrails != 0) out->push_back({kTrailBase + syllable % kNumTrails, 0});
    } else if (const auto found = decompositions_.find(c); found != decompositions_.end()) {
      Decompose(found->second->first, out);
      if (found->second->second != 0) Decompose(found->second->second, out);
    } else {
      out->push_back({c, CombiningClass(c)});
    }
  }

  // 0 when the two do not compose.
  uint32_t Compose(uint32_t first, uint32_t second) const {
    if (first - kLeadBase < kNumLeads && second - kVowelBase < kNumVowels) {
      return kSyllableBase + ((first - kLeadBase) * kNumVowels + (second - kVowelBase)) * kNumTrails;
    }
    if (first - kSyllableBase < kNumSyllables && (first - kSyllableBase) % kNumTrails == 0 &&
        second - kTrailBase - 1 < kNumTrails - 1) {
      return first + (second - kTrailBase);
    }
    const auto found = compositions_.find(uint64_t{first} << 32 | second);
    return found == compositions_.end() ? 0 : found->second;
  }

 private:
  Tables() {
    for (int i = 0; i < kNumDecompositions; ++i) {
      const Decomposition& d = kDecompositions[i];
      decompositions_[d.code_point] = &d;
      if (d.composes) compositions_[uint64_t{d.first} << 32 | d.second] = d.code_point;
    }
  }

  absl::flat_hash_map<uint32_t, const Decomposition*> decompositions_;
  absl::flat_hash_map<uint64_t, uint32_t> compositions_;
};

// Puts combining marks into canonical order, then composes in place.
void Recompose(const Tables& tables, std::vector<Character>* text) {
  for (auto run = text->begin(); run != text->end();) {
    if (run->combining_class == 0) {
      ++run;
      continue;
    }
    auto end = std::find_if(run, text->end(), [](const Character& c) { return c.combining_class == 0; });
    std::stable_sort(run, end,
                     [](const Character& a, const Character& b) { return a.combining_class < b.combining_class; });
    run = end;
  }
  size_t out = 0;
  size_t starter = text->size();  // index in the output; none yet
  int last_class = -1;            // of the last mark kept since the starter; -1: none
  for (size_t i = 0; i < text->size(); ++i) {
    const Character c = (*text)[i];
    if (starter < text->size() && last_class < c.combining_class) {
      const uint32_t composed = tables.Compose((*text)[starter].code_point, c.code_point);
      if (composed != 0) {
        (*text)[starter].code_point = composed;
        continue;
      }
    }
    if (c.combining_class == 0) {
      starter = out;
      last_class = -1;
    } else {
      last_class = c.combining_class;
    }
    (*text)[out++] = c;
  }
  text->resize(out);
}

}  // namespace

absl::string_view NormalizeNfc(absl::string_view text, std::string* out) {
  const auto is_high = [](char byte) { return static_cast<unsigned char>(byte) >= kFirstLeadByte; };
  if (std::none_of(text.begin(), text.end(), is_high)) return text;
  const Tables& tables = Tables::Get();
  out->clear();
  out->reserve(text.size());
  std::vector<Character> characters;
  const char* p = text.data();
  const char* end = p + text.size();
  // A character below U+0300 that is followed by another, or by the end, stands for itself: work on the stretches
  // between.
  while (p < end) {
    const char* stretch = p;
    while (p < end && !is_high(*p)) ++p;
    if (p < end && p > stretch) {  // the last one may compose with what follows
      do {
        --p;
      } while ((*p & 0xC0) == 0x80);
    }
    out->append(stretch, p - stretch);
    characters.clear();
    bool first = true;
    while (p < end && (first || is_high(*p))) {
      first = false;
      tables.Decompose(DecodeUtf8(p, &p), &characters);
    }
    Recompose(tables, &characters);
    for (const Character& c : characters) AppendUtf8(c.code_point, out);
  }
  return *out == text ? text : absl::string_view(*out);
}

}  // namespace trireme
