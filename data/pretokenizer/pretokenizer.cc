#include "data/pretokenizer/pretokenizer.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "data/pretokenizer/pretokenizer_metaspace.h"
#include "data/pretokenizer/pretokenizer_patterns.h"
#include "data/pretokenizer/pretokenizer_regex.h"
#include "data/unicode/bpe_bytes.h"
#include "launch/base/json.h"

namespace trireme {
namespace {

using nlohmann::json;

constexpr size_t kMaxPretokenizerSteps = 16;

// ByteLevel's add_prefix_space: every piece begins with a space.
class PrefixSpace : public Splitter {
 public:
  absl::Status Split(absl::string_view text, PieceSink* sink) const override {
    if (text[0] == ' ') {
      sink->OnPiece(text);
    } else {
      sink->OnPiece(absl::StrCat(" ", text));
    }
    return absl::OkStatus();
  }
};

// Bytes become characters as ByteLevel spells them, for the steps after it.
class ByteSpeller : public Splitter {
 public:
  absl::Status Split(absl::string_view text, PieceSink* sink) const override {
    sink->OnPiece(SpellBytes(text));
    return absl::OkStatus();
  }
};

// And the bytes again, after those steps.
class ByteUnspeller : public Splitter {
 public:
  absl::Status Split(absl::string_view text, PieceSink* sink) const override {
    std::string bytes;
    if (!UnspellBytes(text, &bytes))
      return Error(ExitCode::kData, "pre_tokenizer: the steps after ByteLevel leave \"", text,
                   "\", which spells no bytes");
    sink->OnPiece(bytes);
    return absl::OkStatus();
  }
};

absl::StatusOr<bool> BoolField(const json& object, const char* name, absl::StatusOr<bool> if_absent) {
  if (!object.contains(name)) return if_absent;
  const std::optional<bool> flag = JsonBool(JsonMember(object, name));
  if (!flag.has_value()) return Error(ExitCode::kData, "pre_tokenizer: ", name, " is not true or false");
  return *flag;
}

absl::StatusOr<std::string> StringField(const json& object, const char* name) {
  const std::string* text = JsonText(JsonMember(object, name));
  if (text == nullptr) return Error(ExitCode::kData, "pre_tokenizer: ", name, " is not a string");
  return *text;
}

absl::Status Missing(const char* name) { return Error(ExitCode::kData, "pre_tokenizer: ", name, " is missing"); }

// A literal text as a pattern.
std::string EscapeLiteral(const std::string& literal) {
  std::string pattern;
  for (const char c : literal) {
    if (absl::string_view("\\.+*?()|[]{}^$#&-~").find(c) != absl::string_view::npos) pattern.push_back('\\');
    pattern.push_back(c);
  }
  return pattern;
}

absl::StatusOr<SplitBehavior> Behavior(const json& object) {
  ASSIGN_OR_RETURN(const std::string name, StringField(object, "behavior"));
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  return Error(ExitCode::kData, "pre_tokenizer: unknown behavior \"", name, "\"");
}

absl::StatusOr<std::unique_ptr<Splitter>> MakeSplit(const json& object) {
  const auto pattern = object.find("pattern");
  if (pattern == object.end() || !pattern->is_object())
    return Error(ExitCode::kData, "pre_tokenizer: Split has no pattern");
  const bool is_regex = pattern->contains("Regex");
  ASSIGN_OR_RETURN(std::string text, StringField(*pattern, is_regex ? "Regex" : "String"));
  if (text.empty()) return Error(ExitCode::kData, "pre_tokenizer: Split has an empty pattern");
  if (!is_regex) text = EscapeLiteral(text);
  ASSIGN_OR_RETURN(const SplitBehavior behavior, Behavior(object));
  ASSIGN_OR_RETURN(const bool invert, BoolField(object, "invert", Missing("invert")));
  // These patterns match every character: what is between matches is empty, so `Isolated` and inverted `Removed` are
  // the same.
  const bool isolates = behavior == SplitBehavior::kIsolated || (behavior == SplitBehavior::kRemoved && invert);
  if (isolates && text == kGpt2Pattern) return std::unique_ptr<Splitter>(new Gpt2Splitter());
  if (isolates && text == kLlama3Pattern) return std::unique_ptr<Splitter>(new Llama3Splitter(3));
  if (isolates && text == kQwen2Pattern) return std::unique_ptr<Splitter>(new Llama3Splitter(1));
  return RegexSplitter::Create(text, behavior, invert);
}

absl::Status AddByteLevel(const json& object, std::vector<std::unique_ptr<Splitter>>* steps) {
  ASSIGN_OR_RETURN(const bool add_prefix_space, BoolField(object, "add_prefix_space", Missing("add_prefix_space")));
  ASSIGN_OR_RETURN(const bool use_regex, BoolField(object, "use_regex", true));
  if (add_prefix_space) steps->push_back(std::make_unique<PrefixSpace>());
  if (use_regex) steps->push_back(std::make_unique<Gpt2Splitter>());
  return absl::OkStatus();
}

// The members of a Sequence, nested ones flattened, or the object itself.
absl::Status Flatten(const json& object, std::vector<const json*>* members) {
  if (!object.is_object()) return Error(ExitCode::kData, "pre_tokenizer: expected an object");
  ASSIGN_OR_RETURN(const std::string type, StringField(object, "type"));
  if (type != "Sequence") {
    members->push_back(&object);
  } else {
    const auto list = object.find("pretokenizers");
    if (list == object.end() || !list->is_array())
      return Error(ExitCode::kData, "pre_tokenizer: Sequence has no pretokenizers");
    for (const json& member : *list) RETURN_IF_ERROR(Flatten(member, members));
  }
  if (members->size() > kMaxPretokenizerSteps)
    return Error(ExitCode::kData, "pre_tokenizer: more than ", kMaxPretokenizerSteps, " steps");
  return absl::OkStatus();
}

// Hands the pieces of one step to the next. After an error of a later step it hands on nothing more.
class StepSink : public PieceSink {
 public:
  StepSink(const std::unique_ptr<Splitter>* next, const std::unique_ptr<Splitter>* end, PieceSink* last)
      : next_(next), end_(end), last_(last) {}
  void OnPiece(absl::string_view piece) override {
    if (!status_.ok()) return;
    if (next_ + 1 == end_) {
      status_ = (*next_)->Split(piece, last_);
    } else {
      StepSink sink(next_ + 1, end_, last_);
      status_ = (*next_)->Split(piece, &sink);
      if (status_.ok()) status_ = sink.status();
    }
  }
  const absl::Status& status() const { return status_; }

 private:
  absl::Status status_;
  const std::unique_ptr<Splitter>* next_;
  const std::unique_ptr<Splitter>* end_;
  PieceSink* last_;
};

}  // namespace

PreTokenizer::PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;
PreTokenizer::~PreTokenizer() = default;

absl::StatusOr<PreTokenizer> PreTokenizer::FromJson(const nlohmann::json& json) {
  PreTokenizer result;
  if (json.is_null()) return result;
  std::vector<const nlohmann::json*> members;
  RETURN_IF_ERROR(Flatten(json, &members));
  for (size_t i = 0; i < members.size(); ++i) {
    ASSIGN_OR_RETURN(const std::string type, StringField(*members[i], "type"));
    const bool is_last = i + 1 == members.size();
    if (type == "ByteLevel" && !result.byte_level_) {
      RETURN_IF_ERROR(AddByteLevel(*members[i], &result.steps_));
      result.byte_level_ = true;
      if (!is_last) result.steps_.push_back(std::make_unique<ByteSpeller>());
    } else if (type == "Split") {
      ASSIGN_OR_RETURN(std::unique_ptr<Splitter> split, MakeSplit(*members[i]));
      result.steps_.push_back(std::move(split));
    } else if (type == "Digits") {
      ASSIGN_OR_RETURN(const bool individual,
                       BoolField(*members[i], "individual_digits", Missing("individual_digits")));
      result.steps_.push_back(std::make_unique<DigitsSplitter>(individual));
    } else if (type == "Punctuation") {
      ASSIGN_OR_RETURN(const SplitBehavior behavior,
                       members[i]->contains("behavior") ? Behavior(*members[i]) : SplitBehavior::kIsolated);
      ASSIGN_OR_RETURN(std::unique_ptr<Splitter> split, RegexSplitter::Punctuation(behavior));
      result.steps_.push_back(std::move(split));
    } else if (type == "Metaspace" && members.size() == 1) {
      ASSIGN_OR_RETURN(Metaspace metaspace, Metaspace::FromJson(*members[i]));
      if (metaspace.split) result.steps_.push_back(std::make_unique<MetaspaceSplitter>(/*runs=*/false));
      result.metaspace_ = std::make_unique<Metaspace>(metaspace);
    } else {
      return Error(ExitCode::kData, "pre_tokenizer: type ", type,
                   " is not supported (ByteLevel once, Split, Digits, Punctuation and Sequences of them are, and "
                   "Metaspace alone)");
    }
    if (is_last && result.byte_level_ && type != "ByteLevel")
      result.steps_.push_back(std::make_unique<ByteUnspeller>());
  }
  return result;
}

void PreTokenizer::CutBeforeMetaspaces() { steps_.push_back(std::make_unique<MetaspaceSplitter>(/*runs=*/true)); }

absl::Status PreTokenizer::Split(absl::string_view text, bool at_start, PieceSink* sink) const {
  if (text.empty()) return absl::OkStatus();
  std::string spelled;
  if (metaspace_ != nullptr) text = spelled = metaspace_->Spell(text, at_start);
  if (steps_.empty()) {
    sink->OnPiece(text);
    return absl::OkStatus();
  }
  StepSink steps(steps_.data(), steps_.data() + steps_.size(), sink);
  steps.OnPiece(text);
  return steps.status();
}

}  // namespace trireme
