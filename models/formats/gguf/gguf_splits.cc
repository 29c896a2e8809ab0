#include "models/formats/gguf/gguf_splits.h"

#include <algorithm>
#include <utility>

#include "data/pretokenizer/pretokenizer_patterns.h"
#include "data/unicode/unicode.h"
#include "launch/base/json.h"
#include "models/formats/gguf/gguf_token_type.h"

namespace trireme {
namespace {

using nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

// The step Punctuation in runs. As a pattern it stands for [\p{P}$+<=>^~|`]+, which knows newer characters.
constexpr char kPunctuationRuns[] = "Punctuation";
constexpr char kBytes[] = "";  // here ByteLevel stands
constexpr char kEachNumber[] = R"(\p{N})", kNumberRuns[] = R"(\p{N}+)", kThreeDigits[] = "[0-9][0-9][0-9]";
constexpr char kUpToThreeNumbers[] = R"(\p{N}{1,3})", kLineBreak[] = R"([\r\n])";

// Patterns as published.
constexpr char kQwen35Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kO200kPattern[] =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kTekkenPattern[] =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kDeepSeek3Pattern[] =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kDeepSeekLetters[] =
    R"(\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+)";
constexpr char kDeepSeekPunctuation[] = R"(\s?[!-/:-~！-／：-～‘-‟　-。]+)";
constexpr char kDeepSeekAsian[] = R"([一-龥ࠀ-一가-퟿]+)";
constexpr char kKanaAndHan[] = R"([一-龥぀-ゟ゠-ヿ]+)";
constexpr char kBloomPattern[] = R"( ?[^(\s|[.,!?…。，、।۔،])]+)";
constexpr char kSeedPattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kBailingPattern[] =
    R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)";
constexpr char kExaonePattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+)";
constexpr char kMiniCpmPattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kJaisPattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1})";

// Patterns that match every character, so that removing what lies between matches is the same as isolating these.
constexpr const char* kCoverAll[] = {kGpt2Pattern,   kLlama3Pattern, kQwen2Pattern,
                                     kQwen35Pattern, kO200kPattern,  kTekkenPattern};

constexpr char kOtherCapitals[] = "words with capitals outside ASCII after their first letter, or with combining marks";
constexpr char kOtherSpaces[] = "white space outside ASCII";

// Line breaks and tabs as themselves, which files write in either way.
std::string Canonical(absl::string_view pattern) {
  std::string result;
  for (size_t i = 0; i < pattern.size(); ++i) {
    result += pattern[i];
    if (pattern[i] != '\\' || i + 1 == pattern.size()) continue;
    const char escaped = pattern[++i];
    const char plain = escaped == 'r' ? '\r' : escaped == 'n' ? '\n' : escaped == 't' ? '\t' : '\0';
    if (plain == '\0') {
      result += escaped;
    } else {
      result.back() = plain;
    }
  }
  return result;
}

// The step that `split`, of the type Split, is.
std::string SplitStep(const json& split) {
  const std::string* regex = JsonText(JsonMember(JsonMember(split, "pattern"), "Regex"));
  if (regex == nullptr) return "?";
  const std::string pattern = Canonical(*regex);
  const auto is = [&split](const char* behavior, bool invert) {
    return JsonMember(split, "behavior") == behavior && JsonMember(split, "invert") == invert;
  };
  const bool covers_all = std::any_of(std::begin(kCoverAll), std::end(kCoverAll),
                                      [&pattern](const char* all) { return pattern == Canonical(all); });
  return is("Isolated", false) || (is("Removed", true) && covers_all) ? pattern : "?";
}

absl::Status AddSteps(const json& object, bool is_last, std::vector<std::string>* steps) {
  const std::string type = JsonTextOr(JsonMember(object, "type"), "");
  if (type == "Sequence") {
    const json::array_t& members = JsonList(JsonMember(object, "pretokenizers"));
    for (const json& member : members) RETURN_IF_ERROR(AddSteps(member, is_last && &member == &members.back(), steps));
  } else if (type == "ByteLevel") {
    if (JsonMember(object, "add_prefix_space") == true)
      return GgufTokenizerError(
          "every text begins with a space (add_prefix_space), which llama.cpp cannot be told; export to Hugging "
          "Face's format instead");
    if (JsonBool(JsonMember(object, "use_regex")).value_or(true)) steps->push_back(Canonical(kGpt2Pattern));
    if (!is_last) steps->push_back(kBytes);
  } else if (type == "Digits") {
    steps->push_back(JsonMember(object, "individual_digits") == true ? kEachNumber : kNumberRuns);
  } else if (type == "Punctuation") {
    steps->push_back(JsonMember(object, "behavior") == "Contiguous" ? kPunctuationRuns : "?");
  } else {
    steps->push_back(SplitStep(object));
  }
  return absl::OkStatus();
}

OrderedJson ByteLevel(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

OrderedJson StepJson(const std::string& step) {
  if (step == kPunctuationRuns) return {{"type", "Punctuation"}, {"behavior", "Contiguous"}};
  if (step == kEachNumber || step == kNumberRuns)
    return {{"type", "Digits"}, {"individual_digits", step == kEachNumber}};
  return {{"type", "Split"}, {"pattern", {{"Regex", step}}}, {"behavior", "Isolated"}, {"invert", false}};
}

// llama.cpp's rules, of src/llama-vocab.cpp, under the names that its converter gives to published tokenizers.
std::vector<GgufSplit> MakeGgufSplits() {
  using Numbers = GgufSplit::Numbers;
  std::vector<GgufSplit> rules = {
      {.names = {"gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum", "exaone4", "jais", "trillion", "granite-docling",
                 "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "modern-bert"},
       .steps = {kGpt2Pattern}},
      {.names = {"olmo", "mpt"}, .steps = {kGpt2Pattern}, .nfc = true},
      {.names = {"smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"},
       .steps = {kEachNumber, kGpt2Pattern}},
      {.names = {"command-r"}, .steps = {kEachNumber, kGpt2Pattern}, .nfc = true},
      {.names = {"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
                 "jina-v5-nano", "glm4", "glm5"},
       .steps = {kLlama3Pattern},
       .ignore_merges = true},
      {.names = {"dbrx", "smaug-bpe", "chatglm-bpe"}, .steps = {kLlama3Pattern}},
      {.names = {"qwen2"}, .steps = {kQwen2Pattern}, .nfc = true},
      {.names = {"stablelm2", "hunyuan", "solar-open", "grok-2", "megrez", "kormo", "f2llmv2", "deepseek-r1-qwen"},
       .steps = {kQwen2Pattern}},
      {.names = {"qwen35"}, .steps = {kQwen35Pattern}, .nfc = true},
      {.names = {"gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"},
       .steps = {kO200kPattern},
       .differs = kOtherCapitals},
      {.names = {"tekken"}, .steps = {kTekkenPattern}, .ignore_merges = true, .differs = kOtherCapitals},
      {.names = {"deepseek-llm"},
       .steps = {kLineBreak, kDeepSeekLetters, kDeepSeekPunctuation, R"(\s+$)", kDeepSeekAsian, kEachNumber},
       .numbers = Numbers::kNoTwoDigits,
       .differs = "white space and numbers outside ASCII"},
      {.names = {"deepseek-coder"},
       .steps = {kLineBreak, R"(\s?\p{L}+)", R"(\s?\p{P}+)", kDeepSeekAsian, kEachNumber},
       .differs = kOtherSpaces},
      {.names = {"deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"},
       .steps = {kUpToThreeNumbers, kKanaAndHan, kDeepSeek3Pattern}},
      {.names = {"falcon"},
       .steps = {kPunctuationRuns, kGpt2Pattern, kBytes, kNumberRuns, kThreeDigits},
       .numbers = Numbers::kNotWithOthers},
      {.names = {"bloom", "poro-chat", "gpt3-finnish"}, .steps = {kBloomPattern}},
      {.names = {"viking"}, .steps = {kBloomPattern, kEachNumber}},
      {.names = {"seed-coder"}, .steps = {kSeedPattern}},
      {.names = {"bailingmoe", "bailingmoe2", "llada-moe"}, .steps = {kBailingPattern}},
      {.names = {"exaone-moe"}, .steps = {kExaonePattern}, .differs = "a long s (U+017F) behind an apostrophe"},
      {.names = {"minicpm5"}, .steps = {kUpToThreeNumbers, kMiniCpmPattern}, .ignore_merges = true},
      {.names = {"jais-2"}, .steps = {kJaisPattern}},
      {.names = {"default"}, .steps = {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2Pattern, kNumberRuns, kThreeDigits}},
  };
  for (GgufSplit& rule : rules) {
    for (std::string& step : rule.steps) step = Canonical(step);
  }
  return rules;
}

bool IsNumber(uint32_t character) { return CharClasses::Get()[character] == CharClass::kNumber; }

}  // namespace

const std::vector<GgufSplit>& GgufSplits() {
  static const auto& rules = *new std::vector<GgufSplit>(MakeGgufSplits());
  return rules;
}

const GgufSplit* FindGgufSplit(absl::string_view name) {
  for (const GgufSplit& rule : GgufSplits()) {
    if (std::any_of(rule.names.begin(), rule.names.end(), [name](const char* known) { return name == known; }))
      return &rule;
  }
  return nullptr;
}

absl::StatusOr<std::vector<std::string>> SplitSteps(const json& pre_tokenizer) {
  std::vector<std::string> steps;
  RETURN_IF_ERROR(AddSteps(pre_tokenizer, /*is_last=*/true, &steps));
  return steps;
}

OrderedJson PreTokenizerOfSteps(const std::vector<std::string>& steps) {
  OrderedJson list = OrderedJson::array();
  bool has_bytes = false;
  for (size_t i = 0; i < steps.size(); ++i) {
    const bool bytes_follow = i + 1 < steps.size() ? steps[i + 1] == kBytes : !has_bytes;
    if (steps[i] == kBytes) {
      has_bytes = true;
    } else if (steps[i] == Canonical(kGpt2Pattern) && bytes_follow) {
      list.push_back(ByteLevel(/*use_regex=*/true));
    } else {
      list.push_back(StepJson(steps[i]));
      if (bytes_follow) list.push_back(ByteLevel(/*use_regex=*/false));
    }
  }
  if (list.size() == 1) return list[0];
  return {{"type", "Sequence"}, {"pretokenizers", std::move(list)}};
}

std::string JoinedNumbers(const std::vector<std::string>& merges, GgufSplit::Numbers numbers) {
  if (numbers == GgufSplit::Numbers::kAny) return "";
  for (const std::string& merge : merges) {
    const size_t space = merge.find(' ');
    const std::string token = merge.substr(0, space) + merge.substr(std::min(space, merge.size() - 1) + 1);
    const char* p = token.data();
    bool before = false;
    for (bool first = true; p < token.data() + token.size(); first = false) {
      const bool is_digit = *p >= '0' && *p <= '9';
      const bool is_number = IsNumber(DecodeUtf8(p, &p));
      const bool joins = numbers == GgufSplit::Numbers::kNoTwoDigits ? is_digit && before : is_number != before;
      if (!first && joins) return token;
      before = numbers == GgufSplit::Numbers::kNoTwoDigits ? is_digit : is_number;
    }
  }
  return "";
}

}  // namespace trireme
