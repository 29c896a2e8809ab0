#include "trainer/export_tokenizer.h"

#include <absl/strings/match.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "data/tokenizer.h"
#include "launch/file.h"
#include "launch/folder.h"
#include "launch/log.h"
#include "models/formats/gguf_tokenizer.h"
#include "models/formats/gguf_tokenizer_json.h"
#include "models/formats/json_file.h"
#include "trainer/model_text.h"

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

// What stands beside a tokenizer in `folder`, unless `output` has it already.
absl::Status CopyCompanions(const std::string& folder, const std::string& output) {
  std::vector<std::string> names(std::begin(kCompanions), std::end(kCompanions));
  if (const std::string more = absl::StrCat(folder, "/", kMoreTemplates); Exists(more)) {
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

absl::Status WriteGenerationConfig(const std::string& output, const HfTokenIds& ids) {
  nlohmann::ordered_json config = nlohmann::ordered_json::object();
  if (ids.bos.has_value()) config["bos_token_id"] = *ids.bos;
  if (ids.eos.size() == 1) config["eos_token_id"] = ids.eos[0];
  if (ids.eos.size() > 1) config["eos_token_id"] = ids.eos;
  if (ids.pad.has_value()) config["pad_token_id"] = *ids.pad;
  return Write(absl::StrCat(output, "/", kGenerationConfig), DumpJson(config, 2) + "\n");
}

// What stands in a GGUF file, as files of a model directory.
absl::Status WriteGgufTokenizer(const GgufFile& file, const std::string& output) {
  ASSIGN_OR_RETURN(const std::string tokenizer, TokenizerJsonOfGguf(file));
  RETURN_IF_ERROR(Write(absl::StrCat(output, "/tokenizer.json"), tokenizer));
  ASSIGN_OR_RETURN(const std::string chat_template, file.String("tokenizer.chat_template", ""));
  return chat_template.empty() ? absl::OkStatus() : Write(absl::StrCat(output, "/", kChatTemplate), chat_template);
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

}  // namespace

absl::StatusOr<HfTokenIds> ExportTokenizer(const ExportSource& source, const std::string& output) {
  const std::vector<std::string>& folders = source.tokenizer_folders;
  const ModelConfig& model = source.model;
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
    if (own == digest) RETURN_IF_ERROR(CopyCompanions(folder, output));
  }
  const bool from_gguf = digest.empty() && source.tokenizer_gguf != nullptr &&
                         source.tokenizer_gguf->Find("tokenizer.ggml.model") != nullptr;
  if (from_gguf) RETURN_IF_ERROR(WriteGgufTokenizer(*source.tokenizer_gguf, output));
  if (digest.empty() && !from_gguf) {
    Warning("export: neither tokenizer.json nor tokenizer.model in ",
            folders.empty() ? "any folder" : absl::StrJoin(folders, ", "),
            "; the model is exported without one, with what else is there");
    for (const std::string& folder : folders) RETURN_IF_ERROR(CopyCompanions(folder, output));
    if (!Exists(absl::StrCat(output, "/", kGenerationConfig))) RETURN_IF_ERROR(WriteGenerationConfig(output, ids));
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
      const std::optional<int64_t> eos = SpecialTokenId(tokens, "eos_token", **tokenizer);
      if (ids.eos.empty() && eos.has_value()) ids.eos = {*eos};
    } else if (ids.eos.empty() && (*tokenizer)->end_of_document() >= 0) {
      ids.eos = {(*tokenizer)->end_of_document()};  // What stands after every document of a corpus.
    }
  }
  if (!Exists(config_path))
    RETURN_IF_ERROR(WriteTokenizerConfig(output, model, ids, tokenizer.ok() ? tokenizer->get() : nullptr));
  if (!Exists(absl::StrCat(output, "/", kGenerationConfig))) RETURN_IF_ERROR(WriteGenerationConfig(output, ids));
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
  const auto id = [](std::optional<int64_t> value) {
    return value.has_value() ? std::optional<int32_t>(static_cast<int32_t>(*value)) : std::nullopt;
  };
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> loaded, Tokenizer::Load(file));
  // As llama.cpp's converter: the tokenizer's word comes before config.json's, which may list several ends.
  ASSIGN_OR_RETURN(const SpecialTokens tokens, ReadSpecialTokens(folder));
  const auto either = [&](const char* role, std::optional<int64_t> other) {
    const std::optional<int64_t> own = SpecialTokenId(tokens, role, *loaded);
    return id(own.has_value() ? own : other);
  };
  options.bos_token_id = either("bos_token", ids.bos);
  options.pad_token_id = either("pad_token", ids.pad);
  options.eos_token_id = either("eos_token", ids.eos.empty() ? std::nullopt : std::optional<int64_t>(ids.eos[0]));
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
