#include "models/formats/gguf_tokenizer.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "data/bpe_file.h"
#include "data/pretokenizer_patterns.h"

namespace trireme {
namespace {

using nlohmann::json;

// LLAMA_TOKEN_TYPE_*.
constexpr int32_t kNormal = 1, kControl = 3, kUserDefined = 4, kUnused = 5;

template <typename... Args>
absl::Status Bad(const Args&... args) {
  return Error(ExitCode::kData, "tokenizer for gguf: ", args...);
}

void Flatten(const json& step, std::vector<const json*>* steps) {
  if (step["type"] != "Sequence") {
    steps->push_back(&step);
    return;
  }
  for (const json& member : step["pretokenizers"]) Flatten(member, steps);
}

// The name in llama.cpp of the splitting rules, which are well formed: the file has been parsed before.
absl::StatusOr<std::string> SplitName(const json& root, bool ignore_merges) {
  std::vector<const json*> steps;
  Flatten(root["pre_tokenizer"], &steps);
  const json& last = *steps.back();
  if (last["add_prefix_space"] == true)
    return Bad(
        "every text begins with a space (add_prefix_space), which llama.cpp cannot be told; export to Hugging "
        "Face's format instead");
  const bool gpt2_last = last.value("use_regex", true);
  std::string rules;
  for (const json* step : steps) {
    if (step == &last) continue;
    const std::string type = (*step)["type"];
    if (type == "Digits") {
      rules += (*step)["individual_digits"] == true ? "digit," : "digits,";
    } else {
      const json& pattern = (*step)["pattern"];
      const bool isolated = (*step)["behavior"] == "Isolated" && (*step)["invert"] == false;
      const bool removed_inverted = (*step)["behavior"] == "Removed" && (*step)["invert"] == true;
      const std::string regex = pattern.value("Regex", "");
      // These patterns match every character, so both ways of cutting are the same.
      if (!isolated && !removed_inverted) {
        rules += "?,";
      } else if (regex == kGpt2Pattern) {
        rules += "gpt2,";
      } else if (regex == kLlama3Pattern) {
        rules += "llama3,";
      } else if (regex == kQwen2Pattern) {
        rules += "qwen2,";
      } else {
        rules += "?,";
      }
    }
  }
  if (gpt2_last) rules += "gpt2,";
  const char* name = nullptr;
  if (rules == "gpt2," && !ignore_merges) name = "gpt-2";
  if (rules == "digit,gpt2," && !ignore_merges) name = "smollm";
  if (rules == "qwen2," && !ignore_merges) name = "qwen2";
  // The same rules by two names: "llama-bpe" also takes whole words before merging.
  if (rules == "llama3,") name = ignore_merges ? "llama-bpe" : "dbrx";
  if (name != nullptr) return std::string(name);
  return Bad("llama.cpp has no name for these splitting rules", ignore_merges ? " with ignore_merges" : "", ": ",
             root["pre_tokenizer"].dump().substr(0, 300),
             "; it knows those of GPT-2, SmolLM, Llama 3 and Qwen 2; export to Hugging Face's format instead");
}

// A space inside a part, which the "a b" form of a merge cannot hold, is spelled as the converter spells it.
std::string MergePart(const std::string& part) {
  std::string result;
  for (const char c : part) result += c == ' ' ? "\xC4\xA0" : std::string(1, c);
  return result;
}

std::vector<std::string> Merges(const json& list) {
  std::vector<std::string> merges;
  merges.reserve(list.size());
  for (const json& merge : list) {
    if (merge.is_array()) {
      merges.push_back(MergePart(merge[0]) + " " + MergePart(merge[1]));
    } else if (const std::string text = merge; text.rfind("#version", 0) != 0) {
      merges.push_back(text);
    }
  }
  return merges;
}

absl::Status CheckOptions(const GgufTokenizerOptions& options) {
  const std::pair<const char*, std::optional<int32_t>> ids[] = {
      {"bos", options.bos_token_id}, {"eos", options.eos_token_id}, {"pad", options.pad_token_id}};
  for (const auto& [name, id] : ids) {
    if (id.has_value() && (*id < 0 || *id >= options.vocab_size))
      return Error(ExitCode::kConfig, "tokenizer for gguf: ", name, "_token_id ", *id, " is outside the vocabulary of ",
                   options.vocab_size);
  }
  if (options.add_bos_token && !options.bos_token_id.has_value())
    return Error(ExitCode::kConfig, "tokenizer for gguf: add_bos_token needs a bos_token_id");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<GgufTokenizer> MakeGgufTokenizer(absl::string_view tokenizer_json, const GgufTokenizerOptions& options) {
  ASSIGN_OR_RETURN(const BpeFile file, ParseBpeFile(tokenizer_json));
  if (!file.pre_tokenizer.byte_level())
    return Bad("only byte-level BPE is written, and this one is in SentencePiece's manner");
  RETURN_IF_ERROR(CheckOptions(options));
  if (static_cast<int64_t>(file.bytes_of_id.size()) > options.vocab_size) {
    return Error(ExitCode::kConfig, "tokenizer for gguf: has ids up to ", file.bytes_of_id.size() - 1,
                 " but the model's vocabulary is ", options.vocab_size, "; it is another model's tokenizer");
  }
  const json root = json::parse(tokenizer_json.begin(), tokenizer_json.end());
  const json& model = root["model"];
  const bool ignore_merges = model.contains("ignore_merges") && model["ignore_merges"] == true;
  ASSIGN_OR_RETURN(const std::string split_name, SplitName(root, ignore_merges));

  GgufTokenizer result;
  if (file.normalizer.applies_nfc()) {
    result.warnings.push_back(
        "llama.cpp does not apply the tokenizer's NFC normalization: text that is not in that form gets other ids");
  }
  std::vector<std::string> tokens(options.vocab_size);
  std::vector<int32_t> types(options.vocab_size, kUnused);
  for (const auto& [token, id] : file.id_of_token) {
    tokens[id] = token;
    types[id] = kNormal;
  }
  for (const AddedToken& added : file.added_tokens) {
    types[added.id] = added.special ? kControl : kUserDefined;
    if (added.lstrip || added.rstrip) {
      result.warnings.push_back(absl::StrCat("llama.cpp does not let ", added.content,
                                             " take the white space beside it (lstrip, rstrip): such text gets other "
                                             "ids"));
    }
  }
  for (int64_t id = 0; id < options.vocab_size; ++id) {
    if (types[id] != kUnused) continue;
    tokens[id] = absl::StrCat("[PAD", id, "]");
    while (file.id_of_token.contains(tokens[id])) tokens[id] += "_";  // llama.cpp wants them to differ.
  }

  GgufMetadata& out = result.metadata;
  out.emplace_back("tokenizer.ggml.model", std::string("gpt2"));
  out.emplace_back("tokenizer.ggml.pre", split_name);
  out.emplace_back("tokenizer.ggml.tokens", GgufArray(std::move(tokens)));
  out.emplace_back("tokenizer.ggml.token_type", GgufArray(std::move(types)));
  out.emplace_back("tokenizer.ggml.merges", GgufArray(Merges(model["merges"])));
  const std::pair<const char*, std::optional<int32_t>> ids[] = {
      {"bos", options.bos_token_id}, {"eos", options.eos_token_id}, {"padding", options.pad_token_id}};
  for (const auto& [name, id] : ids) {
    if (id.has_value())
      out.emplace_back(absl::StrCat("tokenizer.ggml.", name, "_token_id"), static_cast<uint32_t>(*id));
  }
  out.emplace_back("tokenizer.ggml.add_bos_token", options.add_bos_token);
  if (!options.chat_template.empty()) out.emplace_back("tokenizer.chat_template", options.chat_template);
  return result;
}

}  // namespace trireme
