// tokenizer.json. A dollar sign in the input stands for the 256 tokens of single bytes, without which no file is taken.
#include <nlohmann/json.hpp>

#include "data/tokenizer/tokenizer.h"
#include "data/unicode/bpe_bytes.h"
#include "models/formats/gguf/gguf_tokenizer.h"
#include "models/source/prompt.h"
#include "tests/fuzz/fuzz_files.h"
#include "tests/fuzz/fuzz_target.h"

namespace trireme {
namespace {

std::string ByteTokens() {
  std::string text;
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    absl::StrAppend(&text, byte == 0 ? "" : ",", nlohmann::json(SpellBytes(absl::string_view(&c, 1))).dump(), ":",
                    byte);
  }
  return text;
}

}  // namespace

bool FuzzOne(const std::string& input) {
  static const std::string byte_tokens = ByteTokens();
  static MemoryFile file;
  const size_t dollar = input.find('$');
  std::string text = input;
  if (dollar != std::string::npos) text.replace(dollar, 1, byte_tokens);
  GgufTokenizerOptions options;
  options.vocab_size = 1 << 12;
  (void)MakeGgufTokenizer(text, options);

  file.Write(text);
  const auto tokenizer = Tokenizer::Load(file.path());
  if (!tokenizer.ok()) return false;
  // What comes before a text, which the other readers do not look at.
  const auto prefix = PrefixIdsOf(text, file.path(), **tokenizer);
  for (const int64_t id : prefix.ok() ? *prefix : std::vector<int64_t>())
    TRIREME_CHECK(id >= 0 && id < (*tokenizer)->vocab_size(), "prefix id ", id);
  std::vector<int32_t> ids;
  (void)(*tokenizer)->Encode("The ab  12 don't <|end|>\xC3\xA9\xFF\xE6\x97\xA5 e\xCC\x81\n\n", &ids);
  (void)(*tokenizer)->Encode(absl::string_view(input).substr(0, 200), &ids);
  for (const int32_t id : ids) TRIREME_CHECK(id >= 0 && id < (*tokenizer)->vocab_size(), "id ", id);
  (void)(*tokenizer)->Decode(ids);
  return true;
}

std::vector<std::string> FuzzSeeds() {
  const auto with = [](const std::string& more, const std::string& pre_tokenizer,
                       const std::string& post_processor = "null") {
    return absl::StrCat(
        R"({"version":"1.0","added_tokens":[{"id":259,"content":"<|end|>","single_word":false,)",
        R"("lstrip":false,"rstrip":true,"normalized":false,"special":true}],"normalizer":)", more,
        R"(,"pre_tokenizer":)", pre_tokenizer, R"(,"post_processor":)", post_processor,
        R"(,"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{$,)",
        R"("ab":256,"Ġt":257,"abĠt":258},"merges":["a b",["Ġ","t"],["ab","Ġt"]],"ignore_merges":true}})");
  };
  const std::string byte_level =
      R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true})";
  const std::string prefix =
      R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<|end|>","type_id":0}},)"
      R"({"Sequence":{"id":"A","type_id":0}}],"special_tokens":{"<|end|>":{"id":"<|end|>","ids":[259]}}})";
  return {
      with("null", byte_level),
      with("null", byte_level, prefix),
      with("null", byte_level, R"({"type":"Sequence","processors":[{"type":"ByteLevel"},)" + prefix + "]}"),
      with("null", byte_level, R"({"type":5,"single":5,"special_tokens":[]})"),
      with("null", byte_level, R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"ab"}}]})"),
      with("null", byte_level, R"({"type":"RobertaProcessing"})"),
      with("null", R"({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"(a+)+$"},)"
                   R"("behavior":"Isolated","invert":false},)" +
                       byte_level + "]}"),
      with(R"({"type":"NFC"})",
           R"({"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},)" + byte_level + "]}"),
      with(
          R"({"type":"Sequence","normalizers":[{"type":"NFC"}]})",
          R"({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\s+(?!\\S)|\\p{L}+|[^\\s\\p{L}]{1,3}"},)"
          R"("behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":true,"use_regex":false}]})"),
  };
}

}  // namespace trireme
