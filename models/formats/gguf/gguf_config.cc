#include "models/formats/gguf/gguf_config.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "models/formats/gguf/gguf_fields.h"

namespace trireme {
namespace {

// No model comes near these bounds; they keep products of two within 64 bits, and tables of experts small.
constexpr int64_t kMax = 1 << 28, kMaxExperts = 1 << 13;

// The file holds 32-bit numbers; configurations hold the decimal they were made from, 1e-5 and not 9.99999975e-6.
double ShortestDecimal(double number) {
  if (static_cast<float>(number) != number) return number;
  char text[32];
  const auto end = std::to_chars(text, text + sizeof(text), static_cast<float>(number)).ptr;
  double decimal = number;
  std::from_chars(text, end, decimal);
  return decimal;
}

// Reads the keys of one file into a model.
class ConfigReader {
 public:
  ConfigReader(const GgufHeader& header, const GgufVectorReader& vectors, const RopeScaling* known)
      : header_(header), vectors_(vectors), known_(known), config_(model_.config) {}

  absl::StatusOr<GgufModel> Read() {
    ASSIGN_OR_RETURN(prefix_, header_.String("general.architecture"));
    if (!KnowsGgufArchitecture(prefix_))
      return Refuse("architecture \"", prefix_, "\" is not read; those that are: ", KnownGgufArchitectures());
    ASSIGN_OR_RETURN(const int64_t files, header_.Integer("split.count", 1));
    if (files != 1) return Refuse("is one of ", files, " files; join them with `llama-gguf-split --merge`");
    ASSIGN_OR_RETURN(model_.name, header_.String("general.name", ""));
    RETURN_IF_ERROR(ReadSizes());
    RETURN_IF_ERROR(ChooseArchitecture());
    RETURN_IF_ERROR(ReadHeads());
    for (const GgufKey& key : model_.architecture->keys) RETURN_IF_ERROR(ReadKey(key));
    for (const GgufFixed& fixed : model_.architecture->fixed) RETURN_IF_ERROR(Fix(fixed));
    for (const GgufSwitch& one : model_.architecture->switches) {
      const bool there = header_.FindTensor(absl::StrCat("blk.0.", one.tensor)) != nullptr;
      SetNumber(there != one.lacking, ModelField(one.field), &config_);
    }
    if (model_.architecture->rotates) RETURN_IF_ERROR(ReadRotation());
    RETURN_IF_ERROR(ReadWindows());
    RETURN_IF_ERROR(ReadVocabulary());
    if (model_.architecture->scales_by_width) {
      const bool even = config_.num_hidden_layers() == model_.architecture->even_share_layers;
      config_.set_query_pre_attn_scalar(
          static_cast<double>(even ? config_.hidden_size() / config_.num_attention_heads() : config_.head_dim()));
    }
    if (model_.architecture->read_more != nullptr) {
      const absl::Status more = model_.architecture->read_more(header_, &config_);
      if (!more.ok()) return Refuse(more.message());
    }
    return std::move(model_);
  }

 private:
  template <typename... Why>
  absl::Status Refuse(const Why&... why) const {
    return Error(ExitCode::kData, "gguf ", header_.origin(), ": ", why...);
  }
  std::string Key(const char* name) const { return absl::StrCat(prefix_, ".", name); }

  absl::StatusOr<int64_t> Size(const char* name, int64_t most, std::optional<int64_t> if_absent = std::nullopt) {
    ASSIGN_OR_RETURN(const int64_t size, header_.Integer(Key(name), if_absent));
    return size < 1 || size > most ? Refuse(Key(name), " is ", size) : absl::StatusOr<int64_t>(size);
  }

  absl::StatusOr<double> Real(const char* name, std::optional<double> if_absent = std::nullopt) {
    ASSIGN_OR_RETURN(const double number, header_.Number(Key(name), if_absent));
    return ShortestDecimal(number);
  }

  absl::Status ReadSizes() {
    const auto read = [&](const char* name, const char* field, int64_t most,
                          std::optional<int64_t> if_absent = std::nullopt) -> absl::Status {
      ASSIGN_OR_RETURN(const int64_t size, Size(name, most, if_absent));
      SetNumber(static_cast<double>(size), ModelField(field), &config_);
      return absl::OkStatus();
    };
    RETURN_IF_ERROR(read("block_count", "num_hidden_layers", static_cast<int64_t>(header_.tensors().size())));
    RETURN_IF_ERROR(read("context_length", "max_position_embeddings", kMax));
    RETURN_IF_ERROR(read("embedding_length", "hidden_size", kMax));
    RETURN_IF_ERROR(read("feed_forward_length", "intermediate_size", kMax));
    RETURN_IF_ERROR(read("attention.head_count", "num_attention_heads", kMax));
    return read("attention.head_count_kv", "num_key_value_heads", kMax, config_.num_attention_heads());
  }

  // By what tells records of one name apart.
  absl::Status ChooseArchitecture() {
    ModelConfig known = config_;
    for (const auto& [name, field] :
         {std::pair("expert_count", "num_experts"), {"attention.sliding_window", "sliding_window"}}) {
      ASSIGN_OR_RETURN(const int64_t number, header_.Integer(Key(name), 0));
      if (number < 0 || number > kMax) return Refuse(Key(name), " is ", number);
      SetNumber(static_cast<double>(number), ModelField(field), &known);
    }
    if (known.num_experts() > kMaxExperts)
      return Refuse(Key("expert_count"), " is ", known.num_experts(), "; at most ", kMaxExperts, " are read");
    model_.architecture = FindGgufArchitecture(prefix_, header_, known);
    if (model_.architecture == nullptr)
      return Refuse("no model of architecture \"", prefix_, "\" that is read has such sizes and constants");
    config_.set_family(model_.architecture->family);
    return absl::OkStatus();
  }

  // What the architecture has whatever a file says, which must not say otherwise.
  absl::Status Fix(const GgufFixed& fixed) {
    const google::protobuf::FieldDescriptor& field = ModelField(fixed.field);
    const bool said = config_.GetReflection()->HasField(config_, &field);
    const ModelConfig before = config_;
    SetField(fixed.value, field, &config_);
    if (!said || NumberOf(before, field) == NumberOf(config_, field)) return absl::OkStatus();
    return Refuse(fixed.field, " is ", NumberOf(before, field), ", but architecture \"", prefix_, "\" is read with ",
                  NumberOf(config_, field), " only");
  }

  // One key of all heads: the latent that keys and values are made of, and behind it what turns.
  absl::Status ReadLatentHeads() {
    ASSIGN_OR_RETURN(const int64_t latent, Size("attention.kv_lora_rank", kMax));
    ASSIGN_OR_RETURN(const int64_t turning, Size("rope.dimension_count", kMax));
    ASSIGN_OR_RETURN(const int64_t key, Size("attention.key_length", kMax));
    ASSIGN_OR_RETURN(const int64_t value, Size("attention.value_length", kMax));
    ASSIGN_OR_RETURN(const int64_t query, Size("attention.key_length_mla", kMax));
    ASSIGN_OR_RETURN(const int64_t result, Size("attention.value_length_mla", kMax));
    if (config_.num_key_value_heads() != 1 || key != latent + turning || value != latent)
      return Refuse("keys of ", config_.num_key_value_heads(), " heads, ", key, " wide, with values of ", value,
                    " are not those of a latent of ", latent, " that turns in ", turning);
    if (turning % 2 != 0 || query <= turning) return Refuse("queries of ", query, " elements turn in ", turning);
    config_.set_num_key_value_heads(config_.num_attention_heads());
    config_.set_head_dim(static_cast<int32_t>(turning));
    config_.set_qk_rope_head_dim(static_cast<int32_t>(turning));
    config_.set_qk_nope_head_dim(static_cast<int32_t>(query - turning));
    config_.set_v_head_dim(static_cast<int32_t>(result));
    return absl::OkStatus();
  }

  absl::Status ReadHeads() {
    if (model_.architecture->latent) return ReadLatentHeads();
    const int64_t even_share = config_.hidden_size() / config_.num_attention_heads();
    if (even_share < 1)
      return Refuse(config_.num_attention_heads(), " heads do not share ", config_.hidden_size(), " elements");
    ASSIGN_OR_RETURN(const int64_t head_dim, Size("attention.key_length", kMax, even_share));
    ASSIGN_OR_RETURN(const int64_t value_length, Size("attention.value_length", kMax, head_dim));
    const bool rotates = model_.architecture->rotates;
    ASSIGN_OR_RETURN(const int64_t rotated,
                     rotates ? Size("rope.dimension_count", kMax, head_dim) : absl::StatusOr<int64_t>(head_dim));
    const bool partial = model_.architecture->partial_rotation && rotated < head_dim && rotated % 2 == 0;
    if (value_length != head_dim || (rotated != head_dim && !partial) || head_dim % 2 != 0)
      return Refuse("heads of ", head_dim, " elements with ", rotated, " rotated and values of ", value_length,
                    " are not supported");
    if (config_.num_attention_heads() % config_.num_key_value_heads() != 0)
      return Refuse(config_.num_attention_heads(), " heads do not share ", config_.num_key_value_heads(),
                    " key-value heads evenly");
    config_.set_head_dim(static_cast<int32_t>(head_dim));
    if (model_.architecture->partial_rotation)
      config_.set_partial_rotary_factor(static_cast<double>(rotated) / static_cast<double>(head_dim));
    return absl::OkStatus();
  }

  absl::Status ReadKey(const GgufKey& key) {
    const google::protobuf::FieldDescriptor& field = ModelField(key.field);
    const std::string name = Key(key.key);
    double value = 0;
    if (const GgufValue* found = header_.Find(name); IsTruth(field) && found != nullptr) {
      if (!std::holds_alternative<bool>(*found)) return Refuse(name, " is neither true nor false");
      value = std::get<bool>(*found);
    } else if (IsReal(field) || IsTruth(field)) {
      ASSIGN_OR_RETURN(value, Real(key.key, key.if_absent));
    } else {
      std::optional<int64_t> if_absent;
      if (key.if_absent.has_value()) if_absent = static_cast<int64_t>(*key.if_absent);
      ASSIGN_OR_RETURN(const int64_t number, header_.Integer(name, if_absent));
      value = static_cast<double>(number);
    }
    if (!std::isfinite(value) || value < 0 || (key.positive && value == 0) || value > 1e30 ||
        (!IsReal(field) && value > kMax))
      return Refuse(name, " is ", value, ", which is out of range");
    SetNumber(value, field, &config_);
    return absl::OkStatus();
  }

  absl::Status ReadRotation() {
    const GgufArchitecture& architecture = *model_.architecture;
    ASSIGN_OR_RETURN(const double theta, Real("rope.freq_base", 10000));
    if (!(theta > 0) || !std::isfinite(theta)) return Refuse(Key("rope.freq_base"), " is ", theta, ", out of range");
    config_.set_rope_theta(theta);
    for (int64_t i = 0; i < config_.num_hidden_layers() && architecture.no_rope_period > 0; ++i)
      config_.add_no_rope_layers(architecture.rotates_in(i) ? 1 : 0);
    if (header_.Find(Key("rope.scale_linear")) != nullptr)
      return Refuse(Key("rope.scale_linear"), " is of an older dialect that is not read");
    ASSIGN_OR_RETURN(const std::string type, header_.String(Key("rope.scaling.type"), "linear"));
    const bool has_long = header_.FindTensor(kGgufLongFactors) != nullptr;
    const bool yarn = type == "yarn" && !architecture.local_rope;
    if (type != "none" && type != "linear" && !yarn && !(type == "longrope" && has_long))
      return Refuse("position scaling \"", type, "\" is not supported");
    ASSIGN_OR_RETURN(const double attention, Real("rope.scaling.attn_factor", 1));
    if (attention != 1 && !has_long) return Refuse(Key("rope.scaling.attn_factor"), " is ", attention);
    if (type == "linear") {
      ASSIGN_OR_RETURN(const double factor, Real("rope.scaling.factor", 1));
      if (!(factor > 0) || !std::isfinite(factor)) return Refuse(Key("rope.scaling.factor"), " is ", factor);
      if (factor != 1 && architecture.latent)
        return Refuse(Key("rope.scaling.factor"), " is ", factor, ", by which llama.cpp scales the scores, too");
      if (factor != 1) {
        config_.mutable_rope_scaling()->set_rope_type(RopeScaling::LINEAR);
        config_.mutable_rope_scaling()->set_factor(factor);
      }
    }
    if (yarn) RETURN_IF_ERROR(ReadYarn());
    const auto scales_twice = [&](const char* name, bool has_use) -> absl::Status {
      if (!has_use) return Refuse("has ", name, ", which the architecture has no use for");
      return config_.has_rope_scaling() ? Refuse("scales positions in two ways") : absl::OkStatus();
    };
    if (const GgufTensor* factors = header_.FindTensor(kGgufRopeFactors); factors != nullptr) {
      RETURN_IF_ERROR(scales_twice(kGgufRopeFactors, architecture.rope_factors));
      RETURN_IF_ERROR(ReadLlama3(*factors));
    }
    if (has_long) {
      RETURN_IF_ERROR(scales_twice(kGgufLongFactors, architecture.long_factors));
      RETURN_IF_ERROR(ReadLongRope(attention));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<float>> Vector(const GgufTensor& tensor, int64_t size) {
    if (tensor.shape != std::vector<int64_t>{size})
      return Refuse(tensor.name, " does not have the ", size, " elements that rotation needs");
    return vectors_(tensor);
  }

  // llama.cpp reads none of the numbers but factor and context; the others are what they usually are.
  absl::Status ReadYarn() {
    RopeScaling& scaling = *config_.mutable_rope_scaling();
    scaling.set_rope_type(RopeScaling::YARN);
    ASSIGN_OR_RETURN(const double factor, Real("rope.scaling.factor"));
    if (!(factor > 0) || !std::isfinite(factor)) return Refuse(Key("rope.scaling.factor"), " is ", factor);
    scaling.set_factor(factor);
    ASSIGN_OR_RETURN(const int64_t original,
                     Size("rope.scaling.original_context_length", kMax, config_.max_position_embeddings()));
    scaling.set_original_max_position_embeddings(static_cast<int32_t>(original));
    if (model_.architecture->untruncated_yarn) scaling.set_truncate(false);
    ASSIGN_OR_RETURN(const double multiplier, Real("rope.scaling.yarn_log_multiplier", 0));
    if (model_.architecture->latent) {
      // A tenth of mscale_all_dim, for mscale to be the same.
      if (!(multiplier > 0) || !std::isfinite(multiplier) || factor < 1)
        return Refuse(Key("rope.scaling.yarn_log_multiplier"), " is ", multiplier, " for a factor of ", factor,
                      "; mscale_all_dim of a factor of 1 or more is read only");
      scaling.set_mscale_all_dim(ShortestDecimal(static_cast<float>(multiplier * 10)));
      scaling.set_mscale(scaling.mscale_all_dim());
    }
    for (const auto& [name, taken] :
         {std::pair("rope.scaling.yarn_attn_factor", YarnAttention(scaling)),
          {"rope.scaling.yarn_beta_fast", scaling.beta_fast()},
          {"rope.scaling.yarn_beta_slow", scaling.beta_slow()},
          {"rope.scaling.yarn_log_multiplier", model_.architecture->latent ? multiplier : 0.0}}) {
      ASSIGN_OR_RETURN(const double number, Real(name, taken));
      if (static_cast<float>(number) != static_cast<float>(taken))
        return Refuse(Key(name), " is ", number, ", but llama.cpp takes ", taken);
    }
    return absl::OkStatus();
  }

  absl::Status ReadLlama3(const GgufTensor& tensor) {
    ASSIGN_OR_RETURN(const std::vector<float> factors, Vector(tensor, config_.head_dim() / 2));
    const std::optional<RopeScaling> scaling = InferLlama3Scaling(factors, config_.rope_theta(), known_);
    if (!scaling.has_value())
      return Refuse(kGgufRopeFactors,
                    " is not the position scaling of Llama 3, the only kind that is read; take the model's Hugging "
                    "Face directory");
    *config_.mutable_rope_scaling() = *scaling;
    return absl::OkStatus();
  }

  absl::Status ReadLongRope(double attention) {
    const GgufTensor* short_factors = header_.FindTensor(kGgufShortFactors);
    if (short_factors == nullptr) return Refuse("has ", kGgufLongFactors, " without ", kGgufShortFactors);
    const int64_t pairs = RotatedDimsOf(config_) / 2;
    ASSIGN_OR_RETURN(const std::vector<float> longer, Vector(*header_.FindTensor(kGgufLongFactors), pairs));
    ASSIGN_OR_RETURN(const std::vector<float> shorter, Vector(*short_factors, pairs));
    ASSIGN_OR_RETURN(const int64_t original,
                     Size("rope.scaling.original_context_length", kMax, config_.max_position_embeddings()));
    RopeScaling& scaling = *config_.mutable_rope_scaling();
    scaling.set_rope_type(RopeScaling::LONGROPE);
    scaling.set_original_max_position_embeddings(static_cast<int32_t>(original));
    for (const float factor : longer) scaling.add_long_factor(ShortestDecimal(factor));
    for (const float factor : shorter) scaling.add_short_factor(ShortestDecimal(factor));
    const double usual = LongRopeAttention(scaling, config_.max_position_embeddings());
    if (static_cast<float>(usual) != static_cast<float>(attention)) scaling.set_attention_factor(attention);
    return absl::OkStatus();
  }

  absl::Status ReadWindows() {
    const GgufArchitecture& architecture = *model_.architecture;
    const std::string window_key = Key("attention.sliding_window"), pattern_key = window_key + "_pattern";
    ASSIGN_OR_RETURN(const int64_t window, header_.Integer(window_key, 0));
    if (architecture.window_period == 0) {
      if (window <= 0 || window >= config_.max_position_embeddings()) return absl::OkStatus();
      return Refuse(window_key, " is ", window, ", but llama.cpp gives architecture ", architecture.name, " no window");
    }
    if (window < 1 || window > kMax) return Refuse(window_key, " is ", window, "; it must be positive");
    config_.set_sliding_window(static_cast<int32_t>(window));
    const GgufValue* pattern = header_.Find(pattern_key);
    const auto* array = pattern != nullptr ? std::get_if<GgufArray>(pattern) : nullptr;
    const auto* list = array != nullptr ? std::get_if<std::vector<bool>>(array) : nullptr;
    const int64_t layers = config_.num_hidden_layers();
    if (list != nullptr && architecture.lists_windows != GgufWindowList::kNever) {
      if (static_cast<int64_t>(list->size()) < layers)
        return Refuse(pattern_key, " has ", list->size(), " entries for ", layers, " layers");
    } else if (pattern != nullptr) {
      ASSIGN_OR_RETURN(const int64_t period, header_.Integer(pattern_key));
      if (period != architecture.window_period)
        return Refuse(pattern_key, " is ", period, "; only ", architecture.window_period, " is read");
      list = nullptr;
    }
    for (int64_t i = 0; i < layers; ++i) {
      // One layer less than a period: all have the window, which goes without a list.
      if (list == nullptr && layers < architecture.window_period) break;
      const bool slides = list != nullptr ? (*list)[static_cast<size_t>(i)] : architecture.slides(i);
      config_.add_layer_types(slides ? "sliding_attention" : "full_attention");
    }
    if (!architecture.local_rope) return absl::OkStatus();
    ASSIGN_OR_RETURN(const double base, Real("rope.freq_base_swa", 10000));
    if (!(base > 0) || !std::isfinite(base)) return Refuse(Key("rope.freq_base_swa"), " is ", base);
    config_.set_rope_local_base_freq(base);
    return absl::OkStatus();
  }

  absl::Status ReadVocabulary() {
    const GgufTensor* embedding = header_.FindTensor("token_embd.weight");
    if (embedding == nullptr || embedding->shape.size() != 2) return Refuse("has no token_embd.weight matrix");
    const int64_t rows = embedding->shape[0];
    ASSIGN_OR_RETURN(const int64_t vocab_size, header_.Integer(Key("vocab_size"), rows));
    if (rows > kMax || vocab_size != rows)
      return Refuse("token_embd.weight has ", rows, " rows where ", Key("vocab_size"), " is ", vocab_size);
    config_.set_vocab_size(static_cast<int32_t>(rows));
    const bool tied = header_.FindTensor("output.weight") == nullptr;
    config_.set_tie_word_embeddings(tied);
    if (model_.architecture->head == GgufHead::kNever && !tied)
      return Refuse("has output.weight, which llama.cpp ignores in architecture ", prefix_);
    if (model_.architecture->head == GgufHead::kAlways && tied)
      return Refuse("has no output.weight, which llama.cpp needs in architecture ", prefix_);
    return absl::OkStatus();
  }

  const GgufHeader& header_;
  const GgufVectorReader& vectors_;
  const RopeScaling* known_;
  std::string prefix_;
  GgufModel model_;
  ModelConfig& config_;
};

}  // namespace

absl::StatusOr<GgufModel> ReadGgufModel(const GgufHeader& header, const GgufVectorReader& vectors,
                                        const RopeScaling* known) {
  return ConfigReader(header, vectors, known).Read();
}

absl::StatusOr<GgufModel> ReadGgufModel(const GgufFile& file, const RopeScaling* known) {
  const GgufVectorReader read = [&file](const GgufTensor& tensor) -> absl::StatusOr<std::vector<float>> {
    std::vector<float> values(static_cast<size_t>(tensor.columns()));
    RETURN_IF_ERROR(file.Read(tensor, 0, 1, 0, tensor.columns(), values.data()));
    return values;
  };
  return ReadGgufModel(file.header(), read, known);
}

absl::StatusOr<HfTokenIds> ReadGgufTokenIds(const GgufFile& file, int64_t vocab_size) {
  HfTokenIds ids;
  const auto read = [&](const char* name) -> absl::StatusOr<std::optional<int64_t>> {
    ASSIGN_OR_RETURN(const int64_t id, file.Integer(absl::StrCat("tokenizer.ggml.", name, "_token_id"), -1));
    return id < 0 || id >= vocab_size ? std::nullopt : std::optional<int64_t>(id);
  };
  ASSIGN_OR_RETURN(ids.bos, read("bos"));
  ASSIGN_OR_RETURN(ids.pad, read("padding"));
  for (const char* name : {"eos", "eot", "eom"}) {
    ASSIGN_OR_RETURN(const std::optional<int64_t> end, read(name));
    if (end.has_value() && std::find(ids.eos.begin(), ids.eos.end(), *end) == ids.eos.end()) ids.eos.push_back(*end);
  }
  return ids;
}

}  // namespace trireme
