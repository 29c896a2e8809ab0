#include "models/formats/gguf/gguf_model.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>
#include <utility>

namespace trireme {
namespace {

constexpr char kRopeFactors[] = "rope_freqs.weight";

// LLAMA_FTYPE_*: what the matrices mostly are.
uint32_t FileType(GgufType type) {
  switch (type) {
    case GgufType::kF16:
      return 1;
    case GgufType::kQ4_0:
      return 2;
    case GgufType::kQ8_0:
      return 7;
    case GgufType::kBF16:
      return 32;
    default:
      TRIREME_CHECK(type == GgufType::kF32, "files of ", GgufTypeName(type), " are not written");
      return 0;
  }
}

// Names and shapes; all types F32.
std::vector<GgufTensor> TensorShapes(const GgufModelFacts& f) {
  std::vector<GgufTensor> tensors;
  const auto add = [&tensors](std::string name, std::vector<int64_t> shape) {
    tensors.push_back({std::move(name), GgufType::kF32, std::move(shape)});
  };
  const int64_t q_rows = f.head_count * f.head_dim, kv_rows = f.head_count_kv * f.head_dim;
  add("token_embd.weight", {f.vocab_size, f.embedding_length});
  if (f.rope_scaling.has_value()) add(kRopeFactors, {f.head_dim / 2});
  for (int64_t layer = 0; layer < f.block_count; ++layer) {
    const std::string blk = absl::StrCat("blk.", layer, ".");
    add(blk + "attn_norm.weight", {f.embedding_length});
    add(blk + "attn_q.weight", {q_rows, f.embedding_length});
    add(blk + "attn_k.weight", {kv_rows, f.embedding_length});
    add(blk + "attn_v.weight", {kv_rows, f.embedding_length});
    if (f.architecture->qkv_biases) {
      add(blk + "attn_q.bias", {q_rows});
      add(blk + "attn_k.bias", {kv_rows});
      add(blk + "attn_v.bias", {kv_rows});
    }
    if (f.architecture->qk_norms) {
      add(blk + "attn_q_norm.weight", {f.head_dim});
      add(blk + "attn_k_norm.weight", {f.head_dim});
    }
    add(blk + "attn_output.weight", {f.embedding_length, q_rows});
    if (f.architecture->gemma) add(blk + "post_attention_norm.weight", {f.embedding_length});
    add(blk + "ffn_norm.weight", {f.embedding_length});
    add(blk + "ffn_gate.weight", {f.feed_forward_length, f.embedding_length});
    add(blk + "ffn_up.weight", {f.feed_forward_length, f.embedding_length});
    add(blk + "ffn_down.weight", {f.embedding_length, f.feed_forward_length});
    if (f.architecture->gemma) add(blk + "post_ffw_norm.weight", {f.embedding_length});
  }
  add("output_norm.weight", {f.embedding_length});
  if (!f.tied_embeddings) add("output.weight", {f.vocab_size, f.embedding_length});
  return tensors;
}

std::vector<float> Frequencies(const GgufModelFacts& facts) {
  std::vector<float> frequencies(facts.head_dim / 2);
  for (int64_t i = 0; i < facts.head_dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(facts.head_dim);
    frequencies[i] = 1.0f / std::pow(static_cast<float>(facts.rope_freq_base), exponent);
  }
  return frequencies;
}

// The file holds 32-bit numbers; configurations hold the decimal they were made from, 1e-5 and not 9.99999975e-6.
absl::StatusOr<double> ShortestDecimal(absl::StatusOr<double> number) {
  if (!number.ok() || static_cast<float>(*number) != *number) return number;
  char text[32];
  const auto end = std::to_chars(text, text + sizeof(text), static_cast<float>(*number)).ptr;
  double decimal = *number;
  std::from_chars(text, end, decimal);
  return decimal;
}

// Inverts GgufRopeFactors. The largest factor is the scale; between it and 1 the inverse factors are linear in the
// frequency, which gives two more numbers; low_freq_factor is 1, as it is in every published model, because multiplying
// it, high_freq_factor and the original length by the same number changes nothing.
// known: must be it.
absl::StatusOr<GgufRopeScaling> InferScaling(const GgufFile& file, GgufModelFacts facts, const GgufRopeScaling* known) {
  const auto unknown = [&] {
    return Error(ExitCode::kData, "gguf ", file.path(), ": ", kRopeFactors,
                 " is not the position scaling of Llama 3, the only kind that is read; take the model's Hugging Face "
                 "directory");
  };
  const GgufTensor* tensor = file.FindTensor(kRopeFactors);
  if (tensor->shape != std::vector<int64_t>{facts.head_dim / 2}) return unknown();
  std::vector<float> factors(facts.head_dim / 2);
  RETURN_IF_ERROR(file.Read(*tensor, 0, 1, 0, tensor->columns(), factors.data()));
  const auto fits = [&](const GgufRopeScaling& scaling) {
    facts.rope_scaling = scaling;
    const std::vector<float> again = GgufRopeFactors(facts);
    // Factors are written in 32 bits after a few roundings; a wrong guess is off by far more.
    return std::equal(again.begin(), again.end(), factors.begin(),
                      [](float a, float b) { return std::fabs(a - b) <= 1e-5f * b; });
  };
  if (known != nullptr) return fits(*known) ? absl::StatusOr<GgufRopeScaling>(*known) : unknown();
  const std::vector<float> frequencies = Frequencies(facts);
  GgufRopeScaling scaling;
  scaling.factor = *std::max_element(factors.begin(), factors.end());
  std::vector<std::pair<double, double>> ramp;  // turns per position, weight of the unscaled frequency
  for (size_t i = 0; i < factors.size(); ++i) {
    if (!(factors[i] >= 1)) return unknown();
    if (factors[i] > 1 && factors[i] < scaling.factor)
      ramp.emplace_back(frequencies[i] / (2 * M_PI), (1 / factors[i] - 1 / scaling.factor) / (1 - 1 / scaling.factor));
  }
  if (ramp.size() < 2) return unknown();
  const double slope = (ramp.front().second - ramp.back().second) / (ramp.front().first - ramp.back().first);
  const double intercept = ramp.back().second - slope * ramp.back().first;
  scaling.original_max_position_embeddings = std::round(-slope / intercept);
  scaling.high_freq_factor = 1 - 1 / intercept;
  // Undo the noise of 32-bit factors where a round number was meant.
  const double round_number = std::round(scaling.high_freq_factor * 100) / 100;
  if (std::fabs(scaling.high_freq_factor - round_number) < 1e-3) scaling.high_freq_factor = round_number;
  if (!(scaling.original_max_position_embeddings >= 1) || !(scaling.high_freq_factor > 1)) return unknown();
  return fits(scaling) ? absl::StatusOr<GgufRopeScaling>(scaling) : unknown();
}

// Where the architecture has layers with a window; elsewhere one must be without effect.
absl::Status ReadWindows(const GgufFile& file, GgufModelFacts* facts) {
  const GgufArchitecture& architecture = *facts->architecture;
  const std::string prefix = absl::StrCat(architecture.name, ".");
  const std::string window_key = prefix + "attention.sliding_window", pattern_key = window_key + "_pattern";
  ASSIGN_OR_RETURN(const int64_t window, file.Integer(window_key, 0));
  if (architecture.window_period == 0) {
    if (window <= 0 || window >= facts->context_length) return absl::OkStatus();
    return Error(ExitCode::kData, "gguf ", file.path(), ": ", window_key, " is ", window,
                 ", but llama.cpp gives architecture ", architecture.name, " no window");
  }
  if (window < 1 || window > (1 << 28))
    return Error(ExitCode::kData, "gguf ", file.path(), ": ", window_key, " is ", window, "; it must be positive");
  facts->sliding_window = window;
  if (file.Find(pattern_key) != nullptr) {
    ASSIGN_OR_RETURN(const int64_t period, file.Integer(pattern_key));
    if (period != architecture.window_period)
      return Error(ExitCode::kData, "gguf ", file.path(), ": ", pattern_key, " is ", period, "; only ",
                   architecture.window_period, " is read");
  }
  if (!architecture.local_rope) return absl::OkStatus();
  ASSIGN_OR_RETURN(facts->rope_freq_base_swa, ShortestDecimal(file.Number(prefix + "rope.freq_base_swa", 10000)));
  if (facts->rope_freq_base_swa > 0 && std::isfinite(facts->rope_freq_base_swa)) return absl::OkStatus();
  return Error(ExitCode::kData, "gguf ", file.path(), ": ", prefix, "rope.freq_base_swa is ",
               facts->rope_freq_base_swa);
}

absl::Status ReadSoftcaps(const GgufFile& file, GgufModelFacts* facts) {
  const GgufArchitecture& architecture = *facts->architecture;
  const auto read = [&](const char* name, double if_absent, bool zero_too, double* result) -> absl::Status {
    const std::string key = absl::StrCat(architecture.name, ".", name);
    ASSIGN_OR_RETURN(*result, ShortestDecimal(file.Number(key, if_absent)));
    if (std::isfinite(*result) && (*result > 0 || (*result == 0 && zero_too))) return absl::OkStatus();
    return Error(ExitCode::kData, "gguf ", file.path(), ": ", key, " is ", *result);
  };
  if (!architecture.gemma) return absl::OkStatus();
  if (architecture.attention_softcap)
    RETURN_IF_ERROR(read("attn_logit_softcapping", 50, /*zero_too=*/false, &facts->attn_logit_softcapping));
  return read("final_logit_softcapping", architecture.attention_softcap ? 30 : 0, !architecture.attention_softcap,
              &facts->final_logit_softcapping);
}

absl::Status CheckTensors(const GgufFile& file, const GgufModelFacts& facts) {
  const std::vector<GgufTensor> expected = TensorShapes(facts);
  for (const GgufTensor& want : expected) {
    const GgufTensor* tensor = file.FindTensor(want.name);
    if (tensor == nullptr)
      return Error(ExitCode::kData, "gguf ", file.path(), ": has no tensor ", want.name, "; it is not a whole model");
    if (tensor->shape != want.shape) {
      const auto text = [](const std::vector<int64_t>& shape) {
        std::string result;
        for (const int64_t extent : shape) absl::StrAppend(&result, result.empty() ? "" : ", ", extent);
        return "[" + result + "]";
      };
      return Error(ExitCode::kData, "gguf ", file.path(), ": tensor ", want.name, " is ", text(tensor->shape),
                   " where its metadata says ", text(want.shape));
    }
  }
  if (file.tensors().size() == expected.size()) return absl::OkStatus();
  std::set<std::string> known;
  for (const GgufTensor& want : expected) known.insert(want.name);
  for (const GgufTensor& tensor : file.tensors()) {
    if (known.count(tensor.name) == 0) {
      return Error(ExitCode::kData, "gguf ", file.path(), ": tensor ", tensor.name,
                   " belongs to no model of architecture ", facts.architecture->name,
                   "; experts and other extras are not read");
    }
  }
  return absl::OkStatus();
}

}  // namespace

GgufMetadata GgufModelMetadata(const GgufModelFacts& facts, GgufType type) {
  const auto u32 = [](int64_t number) { return static_cast<uint32_t>(number); };
  const auto key = [&facts](const char* name) { return absl::StrCat(facts.architecture->name, ".", name); };
  GgufMetadata metadata = {
      {"general.architecture", std::string(facts.architecture->name)},
      {"general.type", std::string("model")},
      {"general.name", facts.name},
      {"general.file_type", FileType(type)},
      {"general.quantization_version", u32(2)},
      {key("block_count"), u32(facts.block_count)},
      {key("context_length"), u32(facts.context_length)},
      {key("embedding_length"), u32(facts.embedding_length)},
      {key("feed_forward_length"), u32(facts.feed_forward_length)},
      {key("vocab_size"), u32(facts.vocab_size)},
      {key("attention.head_count"), u32(facts.head_count)},
      {key("attention.head_count_kv"), u32(facts.head_count_kv)},
      {key("attention.key_length"), u32(facts.head_dim)},
      {key("attention.value_length"), u32(facts.head_dim)},
      {key("attention.layer_norm_rms_epsilon"), static_cast<float>(facts.layer_norm_rms_epsilon)},
      {key("rope.dimension_count"), u32(facts.head_dim)},
      {key("rope.freq_base"), static_cast<float>(facts.rope_freq_base)},
  };
  const auto number = [&](const char* name, double value) {
    metadata.emplace_back(key(name), static_cast<float>(value));
  };
  const GgufArchitecture& architecture = *facts.architecture;
  if (architecture.window_period > 0) metadata.emplace_back(key("attention.sliding_window"), u32(facts.sliding_window));
  if (architecture.local_rope) number("rope.freq_base_swa", facts.rope_freq_base_swa);
  if (architecture.attention_softcap) number("attn_logit_softcapping", facts.attn_logit_softcapping);
  // One that caps the scores too assumes 30 where the file is silent.
  if (architecture.attention_softcap || facts.final_logit_softcapping > 0)
    number("final_logit_softcapping", facts.final_logit_softcapping);
  if (facts.rope_linear_factor != 1) {
    metadata.emplace_back(key("rope.scaling.type"), std::string("linear"));
    number("rope.scaling.factor", facts.rope_linear_factor);
  }
  return metadata;
}

absl::StatusOr<std::vector<GgufTensor>> GgufModelTensors(const GgufModelFacts& facts, GgufType type) {
  std::vector<GgufTensor> tensors = TensorShapes(facts);
  for (GgufTensor& tensor : tensors) {
    if (tensor.shape.size() < 2) continue;
    const bool sensitive = tensor.name == "token_embd.weight" || tensor.name == "output.weight";
    tensor.type = type == GgufType::kQ4_0 && sensitive ? GgufType::kQ8_0 : type;
    const int64_t block = FindGgufType(tensor.type)->block_elements;
    if (tensor.columns() % block != 0) {
      return Error(ExitCode::kConfig, "gguf: ", GgufTypeName(tensor.type), " stores rows in blocks of ", block,
                   ", but those of ", tensor.name, " have ", tensor.columns(), " elements; choose F16 or BF16");
    }
  }
  return tensors;
}

absl::StatusOr<GgufModelFacts> ReadGgufFacts(const GgufFile& file, const GgufRopeScaling* known_scaling) {
  const auto refuse = [&file](const auto&... why) {
    return Error(ExitCode::kData, "gguf ", file.path(), ": ", why...);
  };
  ASSIGN_OR_RETURN(const std::string architecture, file.String("general.architecture"));
  GgufModelFacts facts;
  facts.architecture = FindGgufArchitecture(architecture);
  if (facts.architecture == nullptr) {
    return refuse("architecture \"", architecture, "\" is not read; those that are: ", KnownGgufArchitectures());
  }
  const auto key = [&architecture](const char* name) { return absl::StrCat(architecture, ".", name); };
  ASSIGN_OR_RETURN(const int64_t files, file.Integer("split.count", 1));
  if (files != 1) return refuse("is one of ", files, " files; join them with `llama-gguf-split --merge`");
  ASSIGN_OR_RETURN(facts.name, file.String("general.name", ""));

  // No model comes near these bounds; they keep products of two within 64 bits.
  constexpr int64_t kMax = 1 << 28;
  const auto num_tensors = static_cast<int64_t>(file.tensors().size());
  const auto size = [&](const char* name, int64_t most, std::optional<int64_t> if_absent,
                        int64_t* result) -> absl::Status {
    ASSIGN_OR_RETURN(*result, file.Integer(key(name), if_absent));
    return *result < 1 || *result > most ? refuse(key(name), " is ", *result) : absl::OkStatus();
  };
  RETURN_IF_ERROR(size("block_count", num_tensors, std::nullopt, &facts.block_count));
  RETURN_IF_ERROR(size("context_length", kMax, std::nullopt, &facts.context_length));
  RETURN_IF_ERROR(size("embedding_length", kMax, std::nullopt, &facts.embedding_length));
  RETURN_IF_ERROR(size("feed_forward_length", kMax, std::nullopt, &facts.feed_forward_length));
  RETURN_IF_ERROR(size("attention.head_count", kMax, std::nullopt, &facts.head_count));
  RETURN_IF_ERROR(size("attention.head_count_kv", kMax, facts.head_count, &facts.head_count_kv));
  const int64_t even_share = facts.embedding_length / facts.head_count;
  RETURN_IF_ERROR(size("attention.key_length", kMax, even_share, &facts.head_dim));
  int64_t value_length, rotated;
  RETURN_IF_ERROR(size("attention.value_length", kMax, facts.head_dim, &value_length));
  RETURN_IF_ERROR(size("rope.dimension_count", kMax, facts.head_dim, &rotated));
  if (value_length != facts.head_dim || rotated != facts.head_dim || facts.head_dim % 2 != 0) {
    return refuse("heads of ", facts.head_dim, " elements with ", rotated, " rotated and values of ", value_length,
                  " are not supported");
  }
  if (facts.head_count % facts.head_count_kv != 0)
    return refuse(facts.head_count, " heads do not share ", facts.head_count_kv, " key-value heads evenly");
  ASSIGN_OR_RETURN(facts.layer_norm_rms_epsilon, ShortestDecimal(file.Number(key("attention.layer_norm_rms_epsilon"))));
  ASSIGN_OR_RETURN(facts.rope_freq_base, ShortestDecimal(file.Number(key("rope.freq_base"), 10000)));
  if (!(facts.rope_freq_base > 0) || !std::isfinite(facts.rope_freq_base) || !(facts.layer_norm_rms_epsilon >= 0))
    return refuse(key("rope.freq_base"), " or ", key("attention.layer_norm_rms_epsilon"), " is out of range");
  ASSIGN_OR_RETURN(const std::string scaling, file.String(key("rope.scaling.type"), "none"));
  if (scaling != "none" && scaling != "linear") return refuse("position scaling \"", scaling, "\" is not supported");
  if (file.Find(key("rope.scale_linear")) != nullptr)
    return refuse(key("rope.scale_linear"), " is of an older dialect that is not read");
  if (scaling == "linear") {
    ASSIGN_OR_RETURN(facts.rope_linear_factor, ShortestDecimal(file.Number(key("rope.scaling.factor"))));
    if (!(facts.rope_linear_factor > 0) || !std::isfinite(facts.rope_linear_factor))
      return refuse(key("rope.scaling.factor"), " is ", facts.rope_linear_factor);
  }
  RETURN_IF_ERROR(ReadWindows(file, &facts));
  RETURN_IF_ERROR(ReadSoftcaps(file, &facts));

  const GgufTensor* embedding = file.FindTensor("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) return refuse("has no token_embd.weight matrix");
  facts.vocab_size = embedding->shape[0];
  ASSIGN_OR_RETURN(const int64_t vocab_size, file.Integer(key("vocab_size"), facts.vocab_size));
  if (facts.vocab_size > kMax || vocab_size != facts.vocab_size)
    return refuse("token_embd.weight has ", facts.vocab_size, " rows where ", key("vocab_size"), " is ", vocab_size);
  facts.tied_embeddings = file.FindTensor("output.weight") == nullptr;
  if (facts.architecture->always_tied && !facts.tied_embeddings)
    return refuse("has output.weight, which llama.cpp ignores in architecture ", architecture);
  if (file.FindTensor(kRopeFactors) != nullptr) {
    if (!facts.architecture->rope_factors)
      return refuse("has ", kRopeFactors, ", which the architecture has no use for");
    if (facts.rope_linear_factor != 1) return refuse("scales positions in two ways");
    ASSIGN_OR_RETURN(facts.rope_scaling, InferScaling(file, facts, known_scaling));
  }
  RETURN_IF_ERROR(CheckTensors(file, facts));
  return facts;
}

absl::Status ReadGgufRows(const GgufFile& file, const GgufModelFacts& facts, const std::string& canonical,
                          int64_t row_begin, int64_t row_end, int64_t column_begin, int64_t column_end, float* out) {
  const std::optional<std::string> name = ToGgufName(*facts.architecture, canonical);
  const GgufTensor* tensor = name.has_value() ? file.FindTensor(*name) : nullptr;
  TRIREME_CHECK(tensor != nullptr, canonical, " is not in ", file.path());
  if (!GgufReordersRows(*facts.architecture, canonical)) {
    RETURN_IF_ERROR(file.Read(*tensor, row_begin, row_end, column_begin, column_end, out));
    const float offset = GgufOffset(*facts.architecture, canonical);
    const int64_t count = (row_end - row_begin) * (column_end - column_begin);
    for (int64_t i = 0; offset != 0 && i < count; ++i) out[i] -= offset;
    return absl::OkStatus();
  }
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t stored = LlamaGgufRow(row, facts.head_dim);
    RETURN_IF_ERROR(file.Read(*tensor, stored, stored + 1, column_begin, column_end, out));
    out += column_end - column_begin;
  }
  return absl::OkStatus();
}

std::vector<float> GgufRopeFactors(const GgufModelFacts& facts) {
  const GgufRopeScaling& s = facts.rope_scaling.value();
  std::vector<float> factors;
  for (const float frequency : Frequencies(facts)) {
    const double wavelength = 2 * M_PI / frequency;
    const double low = s.original_max_position_embeddings / s.low_freq_factor;
    const double high = s.original_max_position_embeddings / s.high_freq_factor;
    double factor = 1;
    if (wavelength > low) {
      factor = s.factor;
    } else if (wavelength >= high) {
      const double smooth = (s.original_max_position_embeddings / wavelength - s.low_freq_factor) /
                            (s.high_freq_factor - s.low_freq_factor);
      factor = 1 / ((1 - smooth) / s.factor + smooth);
    }
    factors.push_back(static_cast<float>(factor));
  }
  return factors;
}

}  // namespace trireme
