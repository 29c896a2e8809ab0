#include "trainer/export/export_tokenizer.h"

#include <absl/strings/match.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "data/tokenizer/tokenizer.h"
#include "launch/base/file.h"
#include "launch/base/folder.h"
#include "launch/base/log.h"
#include "models/formats/base/json_file.h"
#include "models/formats/gguf/gguf_tokenizer.h"
#include "models/formats/gguf/gguf_tokenizer_json.h"
#include "models/source/end_ids.h"
#include "models/source/model_text.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr char kTokenizerConfig[] = "tokenizer_config.json", kGenerationConfig[] = "generation_config.json",
               kChatTemplate[] = "chat_template.jinja", kMoreTemplates[] = "additional_chat_templates";
// Beside the tokenizer itself. The older ones are still read by some engines.
constexpr const char* kCompanions[] = {kTokenizerConfig,    "special_tokens_map.json", kChatTemplate,
                                       "added_tokens.json", "tokenizer.model",         "vocab.json",
                                       "merges.txt",        kGenerationConfig};

absl::Status Write(const std::string& path, const std::string& contents) {
  ASSIGN_OR_RETURN(const std::unique_ptr<FileWriter> writer, FileWriter::Create(path));
  RETURN_IF_ERROR(writer->Append(contents.data(), contents.size()));
  return writer->Close();
}

absl::Status Copy(const std::string& from, const std::string& to) {
  ASSIGN_OR_RETURN(const std::string contents, ReadFile(from));
  return Write(to, contents);
}

// What stands beside a tokenizer in `folder`, unless `output` has it already. own_template: of a run that has its own,
// which `output` holds; then no other goes there.
absl::Status CopyCompanions(const std::string& folder, const std::string& output, bool own_template) {
  std::vector<std::string> names(std::begin(kCompanions), std::end(kCompanions));
  if (own_template && Exists(absl::StrCat(folder, "/", kTokenizerConfig)) &&
      !Exists(absl::StrCat(output, "/", kTokenizerConfig))) {
    const std::string path = absl::StrCat(folder, "/", kTokenizerConfig);
    ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
    RETURN_IF_ERROR(ParseJsonObject(text, path).status());
    JsonProblem problem;
    std::optional<nlohmann::ordered_json> config = ParseJson<nlohmann::ordered_json>(text, {}, &problem);
    if (config.has_value() && config->erase("chat_template") > 0)
      RETURN_IF_ERROR(Write(absl::StrCat(output, "/", kTokenizerConfig), DumpJson(*config, 2) + "\n"));
  }
  if (const std::string more = absl::StrCat(folder, "/", kMoreTemplates); Exists(more) && !own_template) {
    ASSIGN_OR_RETURN(const std::vector<std::string> templates, ListFolder(more));
    for (const std::string& name : templates) {
      if (absl::EndsWith(name, ".jinja")) names.push_back(absl::StrCat(kMoreTemplates, "/", name));
    }
  }
  for (const std::string& name : names) {
    const std::string from = absl::StrCat(folder, "/", name), to = absl::StrCat(output, "/", name);
    if (!Exists(from) || Exists(to)) continue;
    RETURN_IF_ERROR(MakeDirectories(fs::path(to).parent_path().string()));
    RETURN_IF_ERROR(Copy(from, to));
  }
  return absl::OkStatus();
}

// The token with this id as the file spells it; "" when there is none.
std::string TokenOf(const Tokenizer& tokenizer, int64_t id) {
  if (id < 0 || id >= tokenizer.vocab_size()) return "";
  const std::string spelled(tokenizer.TokenBytes(static_cast<int32_t>(id)));
  return tokenizer.TokenId(spelled) == id ? spelled : "";
}

absl::Status WriteTokenizerConfig(const std::string& output, const ModelConfig& model, const HfTokenIds& ids,
                                  const Tokenizer* tokenizer) {
  const bool json = absl::EndsWith(FindTokenizer(output), ".json");
  nlohmann::ordered_json config = {{"clean_up_tokenization_spaces", false},
                                   {"model_max_length", model.max_position_embeddings()},
                                   {"tokenizer_class", json ? "PreTrainedTokenizerFast" : "LlamaTokenizer"}};
  const auto add = [&](const char* key, const std::optional<int64_t>& id) {
    const std::string token = id.has_value() && tokenizer != nullptr ? TokenOf(*tokenizer, *id) : "";
    if (!token.empty()) config[key] = token;
  };
  add("bos_token", ids.bos);
  add("eos_token", ids.eos.empty() ? std::nullopt : std::optional<int64_t>(ids.eos[0]));
  add("pad_token", ids.pad);
  return Write(absl::StrCat(output, "/", kTokenizerConfig), DumpJson(config, 2) + "\n");
}

// Whether an id says that there is none: it is negative, or no number of 64 bits.
bool SaysNone(const nlohmann::ordered_json& id) { return id.is_number_integer() && JsonInteger(id).value_or(-1) < 0; }

// Whether a generation_config.json has these ids, so that it can stay as it is.
bool Agrees(const nlohmann::ordered_json& config, const HfTokenIds& ids) {
  for (const char* key : {"bos_token_id", "pad_token_id"}) {
    if (SaysNone(JsonMember(config, key))) return false;
  }
  const nlohmann::ordered_json& eos = JsonMember(config, "eos_token_id");
  if (const std::optional<int64_t> id = JsonInteger(eos)) return ids.eos == std::vector<int64_t>{*id};
  if (SaysNone(eos)) return false;
  if (!eos.is_array()) return ids.eos.empty();
  return eos.size() == ids.eos.size() && std::all_of(ids.eos.begin(), ids.eos.end(), [&](int64_t id) {
           return std::find(eos.begin(), eos.end(), id) != eos.end();
         });
}

// The ids go into the file that is there, if they are not in it, or into a new one.
absl::Status WriteGenerationConfig(const std::string& output, const HfTokenIds& ids) {
  const std::string path = absl::StrCat(output, "/", kGenerationConfig);
  nlohmann::ordered_json config = nlohmann::ordered_json::object();
  const bool copied = Exists(path);
  if (copied) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
    RETURN_IF_ERROR(ParseJsonObject(text, kGenerationConfig).status());
    JsonProblem problem;
    std::optional<nlohmann::ordered_json> parsed = ParseJson<nlohmann::ordered_json>(text, {}, &problem);
    if (!parsed.has_value()) return Error(ExitCode::kData, kGenerationConfig, ": ", DescribeJsonProblem(problem));
    config = *std::move(parsed);
    if (Agrees(config, ids)) return absl::OkStatus();
  }
  const auto set = [&](const char* key, const std::optional<int64_t>& id) {
    const auto old = config.find(key);
    if (old != config.end() && SaysNone(*old)) config.erase(old);
    if (id.has_value() && !config.contains(key)) config[key] = *id;
  };
  set("bos_token_id", ids.bos);
  config.erase("eos_token_id");
  if (ids.eos.size() == 1) config["eos_token_id"] = ids.eos[0];
  if (ids.eos.size() > 1) config["eos_token_id"] = ids.eos;
  set("pad_token_id", ids.pad);
  return Write(path, DumpJson(config, 2) + "\n");
}

// What stands in a GGUF file, as files of a model directory.
absl::Status WriteGgufTokenizer(const GgufFile& file, const std::string& output) {
  ASSIGN_OR_RETURN(const std::string tokenizer, TokenizerJsonOfGguf(file));
  RETURN_IF_ERROR(Write(absl::StrCat(output, "/tokenizer.json"), tokenizer));
  ASSIGN_OR_RETURN(const std::string chat_template, file.String("tokenizer.chat_template", ""));
  const std::string path = absl::StrCat(output, "/", kChatTemplate);
  return chat_template.empty() || Exists(path) ? absl::OkStatus() : Write(path, chat_template);
}

// Whether texts begin with the token `bos`: by Transformers' setting, else by the rules in tokenizer.json, which may be
// null.
bool AddsBos(const Json& tokenizer, const Json& config, const std::string& bos) {
  if (const std::optional<bool> setting = JsonBool(JsonMember(config, "add_bos_token"))) return *setting;
  if (tokenizer.is_null()) return true;  // a SentencePiece model: Transformers' default
  const auto begins = [&bos](const Json& processor) {
    const Json::array_t& pieces = JsonList(JsonMember(processor, "single"));
    return !pieces.empty() && JsonMember(JsonMember(pieces[0], "SpecialToken"), "id") == bos;
  };
  const Json& processor = JsonMember(tokenizer, "post_processor");
  if (bos.empty()) return false;
  const Json::array_t& members = JsonList(JsonMember(processor, "processors"));
  return begins(processor) || std::any_of(members.begin(), members.end(), begins);
}

// One template, or a list of {name, template} of which "default" is meant; "" when there is none.
std::string ChatTemplateOf(const Json& config) {
  const Json& templates = JsonMember(config, "chat_template");
  for (const Json& entry : JsonList(templates)) {
    if (const std::string* text = JsonText(JsonMember(entry, "template"));
        text != nullptr && JsonMember(entry, "name") == "default")
      return *text;
  }
  return JsonTextOr(templates, "");
}

// `folder` holds the tokenizer and the template already.
std::vector<int64_t> EndsOf(const ModelSource& source, const std::string& folder, const Tokenizer* tokenizer) {
  const absl::StatusOr<ChatTemplate> turns =
      source.text.ends_by_template ? LoadChatTemplate(folder) : absl::StatusOr<ChatTemplate>(absl::NotFoundError(""));
  return EndIds(source, tokenizer, turns.ok() ? &*turns : nullptr);
}

}  // namespace

absl::StatusOr<HfTokenIds> ExportTokenizer(const ModelSource& source, const std::string& output) {
  const std::vector<std::string>& folders = source.tokenizer_folders;
  const ModelConfig& model = source.model;
  const bool own_template = !source.text.chat_template.empty();
  if (own_template) RETURN_IF_ERROR(Write(absl::StrCat(output, "/", kChatTemplate), source.text.chat_template));
  HfTokenIds ids = source.ids;
  Digest digest;
  for (const std::string& folder : folders) {
    const std::string path = FindTokenizer(folder);
    if (path.empty()) continue;
    ASSIGN_OR_RETURN(const Digest own, HashFile(path));
    if (digest.empty()) {
      digest = own;
      RETURN_IF_ERROR(Copy(path, absl::StrCat(output, "/", fs::path(path).filename().string())));
    }
    if (own == digest) RETURN_IF_ERROR(CopyCompanions(folder, output, own_template));
  }
  const bool from_gguf = digest.empty() && source.tokenizer_gguf != nullptr &&
                         source.tokenizer_gguf->Find("tokenizer.ggml.model") != nullptr;
  if (from_gguf) RETURN_IF_ERROR(WriteGgufTokenizer(*source.tokenizer_gguf, output));
  if (digest.empty() && !from_gguf) {
    Warning("export: neither tokenizer.json nor tokenizer.model in ",
            folders.empty() ? "any folder" : absl::StrJoin(folders, ", "),
            "; the model is exported without one, with what else is there");
    for (const std::string& folder : folders) RETURN_IF_ERROR(CopyCompanions(folder, output, own_template));
    ids.eos = EndIds(source, /*tokenizer=*/nullptr, /*turns=*/nullptr);
    RETURN_IF_ERROR(WriteGenerationConfig(output, ids));
    return ids;
  }
  const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(output);
  const std::string config_path = absl::StrCat(output, "/", kTokenizerConfig);
  if (!tokenizer.ok()) {
    // Copying asks for less than encoding does.
    Warning("export: the tokenizer's ids are not checked: ", tokenizer.status().message());
  } else {
    if ((*tokenizer)->vocab_size() > model.vocab_size())
      return Error(ExitCode::kData, "export: the tokenizer of ", source.description, " has ",
                   (*tokenizer)->vocab_size(), " ids, the model only ", model.vocab_size(),
                   "; is it the model's tokenizer?");
    if (Exists(config_path)) {
      ASSIGN_OR_RETURN(const SpecialTokens tokens, ReadSpecialTokens(output));
      if (!ids.bos.has_value()) ids.bos = SpecialTokenId(tokens, "bos_token", **tokenizer);
      if (!ids.pad.has_value()) ids.pad = SpecialTokenId(tokens, "pad_token", **tokenizer);
    }
  }
  ids.eos = EndsOf(source, output, tokenizer.ok() ? tokenizer->get() : nullptr);
  if (!Exists(config_path))
    RETURN_IF_ERROR(WriteTokenizerConfig(output, model, ids, tokenizer.ok() ? tokenizer->get() : nullptr));
  RETURN_IF_ERROR(WriteGenerationConfig(output, ids));
  return ids;
}

absl::StatusOr<GgufMetadata> ExportedGgufTokenizer(const std::string& folder, const HfTokenIds& ids,
                                                   int64_t vocab_size) {
  const auto path = [&folder](const char* name) { return absl::StrCat(folder, "/", name); };
  const std::string file = FindTokenizer(folder);
  if (file.empty()) return GgufMetadata();
  ASSIGN_OR_RETURN(const std::string contents, ReadFile(file));
  Json tokenizer;
  if (absl::EndsWith(file, ".json")) {
    ASSIGN_OR_RETURN(tokenizer, ReadJsonObject(file));
  }
  ASSIGN_OR_RETURN(const Json config, ReadJsonObject(path(kTokenizerConfig)));
  GgufTokenizerOptions options;
  options.vocab_size = vocab_size;
  ASSIGN_OR_RETURN(options.folder, ReadTokenizerFolder(folder));
  const auto id = [](std::optional<int64_t> value) {
    return value.has_value() ? std::optional<int32_t>(static_cast<int32_t>(*value)) : std::nullopt;
  };
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> loaded, Tokenizer::Load(file));
  // As in llama.cpp's converter, the tokenizer's word comes before config.json's, which may list several ends. So where
  // tokenizer_config.json and tokenizer.json contradict each other on the token that begins a text, this export follows
  // the former, as llama.cpp's converter does, and the Hugging Face export the latter, as Transformers 5 does.
  ASSIGN_OR_RETURN(const SpecialTokens tokens, ReadSpecialTokens(folder));
  const auto either = [&](const char* role, std::optional<int64_t> other) {
    const std::optional<int64_t> own = SpecialTokenId(tokens, role, *loaded);
    return id(own.has_value() ? own : other);
  };
  options.bos_token_id = either("bos_token", ids.bos);
  options.pad_token_id = either("pad_token", ids.pad);
  options.eos_token_id = either("eos_token", ids.eos.empty() ? std::nullopt : std::optional<int64_t>(ids.eos[0]));
  for (const int64_t end : ids.eos) {
    if (options.eos_token_id != end) options.more_ends.push_back(static_cast<int32_t>(end));
  }
  options.add_bos_token =
      options.bos_token_id.has_value() && AddsBos(tokenizer, config, TokenOf(*loaded, *options.bos_token_id));
  if (Exists(path(kChatTemplate))) {
    ASSIGN_OR_RETURN(options.chat_template, ReadFile(path(kChatTemplate)));
  } else {
    options.chat_template = ChatTemplateOf(config);
  }
  ASSIGN_OR_RETURN(GgufTokenizer result, MakeGgufTokenizer(contents, options));
  for (const std::string& warning : result.warnings) Warning("export: ", warning);
  return std::move(result.metadata);
}

}  // namespace trireme
