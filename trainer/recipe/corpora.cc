#include "trainer/recipe/corpora.h"

#include <absl/strings/str_join.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "data/tokenizer/tokenizer.h"
#include "launch/base/file.h"
#include "launch/base/folder.h"
#include "launch/base/log.h"
#include "models/formats/gguf/gguf_config.h"
#include "models/source/model_source.h"
#include "models/source/model_text.h"
#include "models/weights/checkpoint_manifest.h"

namespace trireme {
namespace {

// Digests of the files that turn text into tokens, with names for people.
absl::StatusOr<std::vector<std::pair<std::string, std::string>>> TextContents(const ModelText& text,
                                                                              const std::string& chat_template) {
  std::string tokenizer, chat = chat_template;
  const auto add = [](const std::string& path, std::string* digests) -> absl::Status {
    ASSIGN_OR_RETURN(const Digest digest, HashFile(path));
    absl::StrAppend(digests, digest);
    return absl::OkStatus();
  };
  if (Exists(chat_template)) {
    chat.clear();
    RETURN_IF_ERROR(add(chat_template, &chat));
  }
  if (NamesGguf(text.origin)) {
    ASSIGN_OR_RETURN(tokenizer, HashSamples(text.origin));
  } else {
    for (const char* name : {"tokenizer.json", "tokenizer.model", "added_tokens.json", "special_tokens_map.json",
                             "tokenizer_config.json"}) {
      const std::string path = absl::StrCat(text.origin, "/", name);
      if (Exists(path)) RETURN_IF_ERROR(add(path, &tokenizer));
    }
    for (const char* name : {"chat_template.jinja", "chat_template.json"}) {
      const std::string path = absl::StrCat(text.origin, "/", name);
      if (chat_template.empty() && Exists(path)) RETURN_IF_ERROR(add(path, &chat));
    }
  }
  return std::vector<std::pair<std::string, std::string>>{
      {"data.conversations.tokenizer", HashBytes(tokenizer.data(), tokenizer.size())},
      {"data.conversations.chat_template", HashBytes(chat.data(), chat.size())}};
}

absl::StatusOr<Corpora> CorporaOfConversations(const RunConfig& config, SplitBy split_by) {
  ASSIGN_OR_RETURN(const OpenedConversations opened, OpenConversationData(config, split_by));
  const ConversationSplit &train = opened.set.train, &validation = opened.set.validation;
  Info("data: ", Describe(train));
  if (train.counts.without_end > 0) {
    Warning("data.conversations: ", train.counts.without_end, " of ", train.counts.kept,
            " samples end without a trained end of turn: nothing in them teaches the model to stop");
  }
  Corpora corpora;
  corpora.train = MakePackedSampler(train.sequences, config.seed(), /*shuffle=*/true);
  if (validation.sequences != nullptr) {
    Info("validation data: ", Describe(validation));
    corpora.validation = MakePackedSampler(validation.sequences, config.seed(), /*shuffle=*/false);
  }
  corpora.digests = {train.sequences->Digest()};
  corpora.contents = opened.contents;
  corpora.contents.emplace_back("data.conversations", corpora.digests[0]);
  if (validation.sequences != nullptr)
    corpora.contents.emplace_back("data.conversations (validation)", validation.sequences->Digest());
  corpora.facts.vocab_size = opened.tokenizer->vocab_size();
  corpora.facts.num_windows = corpora.train->num_windows();
  corpora.text = opened.text;
  return corpora;
}

}  // namespace

SplitBy SplitOfRun(const RunConfig& config) {
  if (config.data().conversations().validation_fraction() <= 0 || config.run_dir().empty() ||
      config.resume() == RunConfig::NEVER)
    return SplitBy::kContent;
  // What is wrong with the checkpoints is said when they are read.
  const absl::StatusOr<std::string> newest = CheckpointOf(config.run_dir());
  if (!newest.ok() || newest->empty()) return SplitBy::kContent;
  const absl::StatusOr<CheckpointManifest> manifest = ReadCheckpointManifest(*newest, /*verify=*/false, 0, 1);
  if (!manifest.ok() || manifest->text().split_by_content()) return SplitBy::kContent;
  Info("data.conversations.validation_fraction: the run in ", config.run_dir(),
       " chose its samples by the bytes of their lines; it goes on so");
  return SplitBy::kLine;
}

absl::StatusOr<OpenedConversations> OpenConversationData(const RunConfig& config, SplitBy split_by) {
  const ConversationData& data = config.data().conversations();
  const std::string model = data.has_tokenizer() ? data.tokenizer() : config.model().from();
  if (model.empty()) {
    return Error(ExitCode::kConfig,
                 "data.conversations.tokenizer: not set, and there is no model.from; name a folder "
                 "with tokenizer.json");
  }
  ASSIGN_OR_RETURN(const ModelText text, OpenModelText(model, data.chat_template(), TemplateDate::kOneDay));
  SampleTokenizerOptions options;
  options.tokenizer = text.tokenizer;
  if (text.chat_template.ok()) {
    options.chat_template = *text.chat_template;
  } else {
    options.no_template_reason = text.chat_template.status();
  }
  options.prefix_ids = text.prefix_ids;
  options.end_id = text.end_id;
  options.train_on = data.train_on();
  ASSIGN_OR_RETURN(ConversationSet set, OpenConversations(data, config.data().sequence_length(),
                                                          SampleTokenizer(std::move(options)), split_by));
  ASSIGN_OR_RETURN(auto contents, TextContents(text, data.chat_template()));
  RunText run;
  run.tokenizer = data.tokenizer();
  run.tokenizer_digest = text.tokenizer->digest();
  run.chat_template = text.given_template;
  run.ends.assign(set.train.ends.begin(), set.train.ends.end());
  run.split_by_content = split_by == SplitBy::kContent;
  return OpenedConversations{text.tokenizer, std::move(set), std::move(contents), std::move(run)};
}

absl::Status KeepTokenizer(const RunConfig& config) {
  for (const DataSource& source : config.data().source()) {
    const std::string path = FindTokenizer(source.path());
    if (path.empty()) continue;
    const std::string folder = absl::StrCat(config.run_dir(), "/", kKeptTokenizer);
    ASSIGN_OR_RETURN(const std::string contents, ReadFile(path));
    RETURN_IF_ERROR(MakeDirectories(folder));
    // Another start may have had the other kind of file.
    const std::string name = std::filesystem::path(path).filename().string();
    if (const std::string other = FindTokenizer(folder);
        !other.empty() && std::filesystem::path(other).filename().string() != name)
      RETURN_IF_ERROR(RemoveAll(other));
    return WriteFileAtomically(absl::StrCat(folder, "/", name), contents);
  }
  return absl::OkStatus();
}

absl::Status CheckEvaluation(const RunConfig& config, const Corpora& corpora) {
  if (config.evaluation().every_steps() <= 0 || corpora.validation != nullptr) return absl::OkStatus();
  const std::string why = absl::StrCat("evaluation.every_steps: ", config.evaluation().every_steps(),
                                       ", but the data has no validation split of more than one sequence");
  if (config.checkpoint().keep_best())
    return Error(ExitCode::kConfig, why,
                 ", so nothing says which checkpoint is best; prepare the data with one, or "
                 "leave checkpoint.keep_best out");
  Warning(why, "; nothing will be evaluated");
  return absl::OkStatus();
}

absl::StatusOr<Corpora> OpenCorpora(const RunConfig& config, SplitBy split_by) {
  const DataConfig& data = config.data();
  if (data.source_size() > 0 && data.has_conversations())
    return Error(ExitCode::kConfig, "data: source and conversations are both set; a run trains on one of them");
  if (data.source_size() == 0 && !data.has_conversations())
    return Error(
        ExitCode::kConfig,
        "data.source: none given; write data { source { path: \"DIR\" } } with a folder from `trireme prepare`, or "
        "data { conversations { path: \"FILE.jsonl\" } }");
  if (data.sequence_length() < 1)
    return Error(ExitCode::kConfig, "data.sequence_length: not set; give tokens per sequence");
  if (data.has_conversations()) return CorporaOfConversations(config, split_by);
  Corpora corpora;
  std::vector<std::shared_ptr<const TokenStream>> train, validation;
  std::vector<double> train_weights, validation_weights;
  std::string tokenizer_digest, first_path;
  std::vector<Corpus> opened;
  std::vector<std::string> problems;  // all at once
  for (const DataSource& source : data.source()) {
    CorpusOptions options;
    options.verify_checksums = data.verify_checksums();
    options.vocab_size = config.model().vocab_size();
    absl::StatusOr<Corpus> corpus = OpenCorpus(source.path(), options);
    if (corpus.ok()) {
      opened.push_back(*std::move(corpus));
    } else {
      problems.emplace_back(corpus.status().message());
    }
  }
  if (!problems.empty()) return Error(ExitCode::kData, absl::StrJoin(problems, "\n  "));
  for (int i = 0; i < data.source_size(); ++i) {
    const DataSource& source = data.source(i);
    const Corpus& corpus = opened[static_cast<size_t>(i)];
    if (corpus.manifest.has_value()) {
      const CorpusManifest& manifest = *corpus.manifest;
      if (first_path.empty()) {
        first_path = source.path();
        tokenizer_digest = manifest.tokenizer_digest();
      } else if (manifest.tokenizer_digest() != tokenizer_digest) {
        return Error(ExitCode::kData, "data.source: ", first_path, " and ", source.path(),
                     " were made with different tokenizers; prepare them with the same one");
      }
      corpora.facts.vocab_size = std::max<int64_t>(corpora.facts.vocab_size, manifest.vocab_size());
      if (data.source_size() == 1) corpora.unigram_entropy = manifest.unigram_entropy();
      // One tokenizer made all sources, so they have one end.
      if (manifest.has_end_of_document()) {
        corpora.text.emplace();
        corpora.text->ends = {manifest.end_of_document()};
      }
    }
    corpora.digests.push_back(corpus.digest);
    const std::string name = data.source_size() == 1 ? "data.source" : absl::StrCat("data.source[", i, "]");
    if (corpus.manifest.has_value())
      corpora.contents.emplace_back(absl::StrCat("the tokenizer of ", name), corpus.manifest->tokenizer_digest());
    corpora.contents.emplace_back(name, corpus.digest);
    train.push_back(corpus.train);
    train_weights.push_back(source.weight());
    // A validation split shorter than one window has nothing to evaluate.
    if (corpus.validation != nullptr && corpus.validation->num_tokens() > data.sequence_length()) {
      validation.push_back(corpus.validation);
      validation_weights.push_back(source.weight());
    }
  }
  ASSIGN_OR_RETURN(corpora.train,
                   Sampler::Create(train, train_weights, data.sequence_length(), config.seed(), /*shuffle=*/true));
  if (!validation.empty()) {
    ASSIGN_OR_RETURN(corpora.validation, Sampler::Create(validation, validation_weights, data.sequence_length(),
                                                         config.seed(), /*shuffle=*/false));
  }
  corpora.facts.num_windows = corpora.train->num_windows();
  return corpora;
}

}  // namespace trireme
