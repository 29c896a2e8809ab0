#include "models/formats/gguf_config.h"

#include <absl/strings/match.h>

#include <cstring>
#include <filesystem>
#include <fstream>

namespace trireme {

bool NamesGguf(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) return false;
  if (absl::EndsWith(path, ".gguf")) return true;
  char magic[4] = {};
  return std::filesystem::is_regular_file(path, error) && std::ifstream(path).read(magic, sizeof(magic)) &&
         std::memcmp(magic, "GGUF", sizeof(magic)) == 0;
}

ModelConfig ConfigOfGguf(const GgufModelFacts& facts) {
  ModelConfig model;
  // Sizes are below 2^28.
  const auto int32 = [](int64_t number) { return static_cast<int32_t>(number); };
  model.set_family(facts.architecture->family);
  model.set_num_hidden_layers(int32(facts.block_count));
  model.set_hidden_size(int32(facts.embedding_length));
  model.set_num_attention_heads(int32(facts.head_count));
  model.set_num_key_value_heads(int32(facts.head_count_kv));
  model.set_head_dim(int32(facts.head_dim));
  model.set_intermediate_size(int32(facts.feed_forward_length));
  model.set_vocab_size(int32(facts.vocab_size));
  model.set_max_position_embeddings(int32(facts.context_length));
  model.set_rope_theta(facts.rope_freq_base);
  model.set_rms_norm_eps(facts.layer_norm_rms_epsilon);
  model.set_tie_word_embeddings(facts.tied_embeddings);
  if (facts.rope_scaling.has_value()) {
    RopeScaling& scaling = *model.mutable_rope_scaling();
    scaling.set_rope_type(RopeScaling::LLAMA3);
    scaling.set_factor(facts.rope_scaling->factor);
    scaling.set_low_freq_factor(facts.rope_scaling->low_freq_factor);
    scaling.set_high_freq_factor(facts.rope_scaling->high_freq_factor);
    scaling.set_original_max_position_embeddings(int32(facts.rope_scaling->original_max_position_embeddings));
  }
  return model;
}

absl::StatusOr<GgufModelFacts> GgufFactsOf(const ModelConfig& model, const std::string& name) {
  GgufModelFacts facts;
  facts.name = name;
  facts.architecture = GgufArchitectureOfFamily(model.family());
  if (facts.architecture == nullptr)
    return Error(ExitCode::kConfig, "gguf: the family \"", model.family(),
                 "\" has no architecture here; export to Hugging Face's format instead");
  if (model.sliding_window() > 0)
    return Error(ExitCode::kConfig, "gguf: the architecture \"", facts.architecture->name,
                 "\" has no sliding window, the model has one of ", model.sliding_window(),
                 "; export to Hugging Face's format instead");
  if (model.attention_bias())
    return Error(ExitCode::kConfig,
                 "gguf: biases of attention_bias are not written; export to Hugging Face's format instead");
  if (model.has_rope_scaling() && model.rope_scaling().rope_type() != RopeScaling::LLAMA3)
    return Error(ExitCode::kConfig, "gguf: rope_scaling ", RopeScaling::Type_Name(model.rope_scaling().rope_type()),
                 " is not written, LLAMA3 is; export to Hugging Face's format instead");
  facts.block_count = model.num_hidden_layers();
  facts.context_length = model.max_position_embeddings();
  facts.embedding_length = model.hidden_size();
  facts.feed_forward_length = model.intermediate_size();
  facts.head_count = model.num_attention_heads();
  facts.head_count_kv = model.has_num_key_value_heads() ? model.num_key_value_heads() : facts.head_count;
  facts.head_dim = model.has_head_dim() ? model.head_dim() : facts.embedding_length / facts.head_count;
  facts.vocab_size = model.vocab_size();
  facts.layer_norm_rms_epsilon = model.rms_norm_eps();
  facts.rope_freq_base = model.rope_theta();
  facts.tied_embeddings = model.tie_word_embeddings();
  if (model.has_rope_scaling()) {
    const RopeScaling& s = model.rope_scaling();
    facts.rope_scaling = GgufRopeScaling{s.factor(), s.low_freq_factor(), s.high_freq_factor(),
                                         static_cast<double>(s.original_max_position_embeddings())};
  }
  return facts;
}

absl::StatusOr<HfTokenIds> ReadGgufTokenIds(const GgufFile& file, int64_t vocab_size) {
  HfTokenIds ids;
  const auto read = [&](const char* name) -> absl::StatusOr<std::optional<int64_t>> {
    ASSIGN_OR_RETURN(const int64_t id, file.Integer(absl::StrCat("tokenizer.ggml.", name, "_token_id"), -1));
    return id < 0 || id >= vocab_size ? std::nullopt : std::optional<int64_t>(id);
  };
  ASSIGN_OR_RETURN(ids.bos, read("bos"));
  ASSIGN_OR_RETURN(ids.pad, read("padding"));
  ASSIGN_OR_RETURN(const std::optional<int64_t> eos, read("eos"));
  if (eos.has_value()) ids.eos = {*eos};
  return ids;
}

}  // namespace trireme
