#include "trainer/export_tokenizer.h"

#include <absl/strings/str_join.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "data/tokenizer.h"
#include "launch/file.h"
#include "launch/log.h"
#include "models/formats/json_file.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr char kTokenizer[] = "tokenizer.json", kTokenizerConfig[] = "tokenizer_config.json",
               kGenerationConfig[] = "generation_config.json";
// Beside the tokenizer itself. The older ones are still read by some engines.
constexpr const char* kCompanions[] = {kTokenizerConfig,    "special_tokens_map.json", "chat_template.jinja",
                                       "added_tokens.json", "tokenizer.model",         "vocab.json",
                                       "merges.txt",        kGenerationConfig};

bool Exists(const std::string& path) {
  std::error_code error;
  return fs::exists(path, error);
}

absl::Status Write(const std::string& path, const std::string& contents) {
  ASSIGN_OR_RETURN(const std::unique_ptr<FileWriter> writer, FileWriter::Create(path));
  RETURN_IF_ERROR(writer->Append(contents.data(), contents.size()));
  return writer->Close();
}

absl::Status Copy(const std::string& from, const std::string& to) {
  ASSIGN_OR_RETURN(const std::string contents, ReadFile(from));
  return Write(to, contents);
}

// The token with this id; "" when there is none.
std::string TokenOf(const Json& tokenizer, int64_t id) {
  const auto text = [](const Json& token) {
    const auto content = token.find("content");
    return content != token.end() && content->is_string() ? content->get<std::string>() : "";
  };
  if (tokenizer.contains("added_tokens") && tokenizer["added_tokens"].is_array()) {
    for (const Json& token : tokenizer["added_tokens"]) {
      if (token.is_object() && token.value("id", Json()) == id) return text(token);
    }
  }
  const Json::json_pointer vocabulary("/model/vocab");
  if (!tokenizer.contains(vocabulary) || !tokenizer[vocabulary].is_object()) return "";
  for (const auto& [token, token_id] : tokenizer[vocabulary].items()) {
    if (token_id == id) return token;
  }
  return "";
}

// tokenizer_config.json gives a special token as text or as an object with its content.
std::optional<int64_t> IdOf(const Json& config, const char* key, const Tokenizer& tokenizer) {
  const auto token = config.find(key);
  if (token == config.end()) return std::nullopt;
  std::string text;
  if (token->is_string()) text = token->get<std::string>();
  if (token->is_object() && token->contains("content") && (*token)["content"].is_string())
    text = (*token)["content"].get<std::string>();
  const int32_t id = text.empty() ? -1 : tokenizer.TokenId(text);
  return id < 0 ? std::nullopt : std::optional<int64_t>(id);
}

absl::Status WriteTokenizerConfig(const std::string& output, const ModelConfig& model, const HfTokenIds& ids) {
  ASSIGN_OR_RETURN(const Json tokenizer, ReadJsonObject(absl::StrCat(output, "/", kTokenizer)));
  nlohmann::ordered_json config = {{"clean_up_tokenization_spaces", false},
                                   {"model_max_length", model.max_position_embeddings()},
                                   {"tokenizer_class", "PreTrainedTokenizerFast"}};
  const auto add = [&](const char* key, const std::optional<int64_t>& id) {
    const std::string token = id.has_value() ? TokenOf(tokenizer, *id) : "";
    if (!token.empty()) config[key] = token;
  };
  add("bos_token", ids.bos);
  add("eos_token", ids.eos.empty() ? std::nullopt : std::optional<int64_t>(ids.eos[0]));
  add("pad_token", ids.pad);
  return Write(absl::StrCat(output, "/", kTokenizerConfig), config.dump(2) + "\n");
}

absl::Status WriteGenerationConfig(const std::string& output, const HfTokenIds& ids) {
  nlohmann::ordered_json config = nlohmann::ordered_json::object();
  if (ids.bos.has_value()) config["bos_token_id"] = *ids.bos;
  if (ids.eos.size() == 1) config["eos_token_id"] = ids.eos[0];
  if (ids.eos.size() > 1) config["eos_token_id"] = ids.eos;
  if (ids.pad.has_value()) config["pad_token_id"] = *ids.pad;
  return Write(absl::StrCat(output, "/", kGenerationConfig), config.dump(2) + "\n");
}

}  // namespace

absl::StatusOr<HfTokenIds> ExportTokenizer(const std::vector<std::string>& folders, const ModelConfig& model,
                                           const HfTokenIds& known, const std::string& output) {
  HfTokenIds ids = known;
  Digest digest;
  for (const std::string& folder : folders) {
    const std::string path = absl::StrCat(folder, "/", kTokenizer);
    if (!Exists(path)) continue;
    ASSIGN_OR_RETURN(const Digest own, HashFile(path));
    if (digest.empty()) {
      digest = own;
      RETURN_IF_ERROR(Copy(path, absl::StrCat(output, "/", kTokenizer)));
    }
    if (own != digest) continue;
    for (const char* name : kCompanions) {
      const std::string from = absl::StrCat(folder, "/", name), to = absl::StrCat(output, "/", name);
      if (Exists(from) && !Exists(to)) RETURN_IF_ERROR(Copy(from, to));
    }
  }
  if (digest.empty()) {
    Warning("export: no tokenizer.json in ", folders.empty() ? "any folder" : absl::StrJoin(folders, ", "),
            "; the model is exported without a tokenizer");
    RETURN_IF_ERROR(WriteGenerationConfig(output, ids));
    return ids;
  }
  const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(absl::StrCat(output, "/", kTokenizer));
  const std::string config_path = absl::StrCat(output, "/", kTokenizerConfig);
  if (!tokenizer.ok()) {
    // Copying asks for less than encoding does.
    Warning("export: the tokenizer's ids are not checked: ", tokenizer.status().message());
  } else {
    if ((*tokenizer)->vocab_size() > model.vocab_size())
      return Error(ExitCode::kData, "export: ", folders[0], "/", kTokenizer, " has ", (*tokenizer)->vocab_size(),
                   " ids, the model only ", model.vocab_size(), "; is it the model's tokenizer?");
    if (Exists(config_path)) {
      ASSIGN_OR_RETURN(const Json config, ReadJsonObject(config_path));
      if (!ids.bos.has_value()) ids.bos = IdOf(config, "bos_token", **tokenizer);
      if (!ids.pad.has_value()) ids.pad = IdOf(config, "pad_token", **tokenizer);
      const std::optional<int64_t> eos = IdOf(config, "eos_token", **tokenizer);
      if (ids.eos.empty() && eos.has_value()) ids.eos = {*eos};
    } else if (ids.eos.empty() && (*tokenizer)->end_of_document() >= 0) {
      ids.eos = {(*tokenizer)->end_of_document()};  // What stands after every document of a corpus.
    }
  }
  if (!Exists(config_path)) RETURN_IF_ERROR(WriteTokenizerConfig(output, model, ids));
  if (!Exists(absl::StrCat(output, "/", kGenerationConfig))) RETURN_IF_ERROR(WriteGenerationConfig(output, ids));
  return ids;
}

}  // namespace trireme
