#include "data/prepare/inspect.h"

#include <absl/strings/escaping.h>
#include <absl/strings/match.h>
#include <absl/strings/str_format.h>
#include <absl/strings/str_join.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <numeric>
#include <system_error>
#include <vector>

#include "data/corpus/corpus.h"
#include "data/corpus/manifest.h"
#include "data/sampling/sampler.h"
#include "data/tokenizer/tokenizer.h"
#include "launch/base/log.h"

namespace trireme {
namespace {

namespace fs = std::filesystem;

void PrintManifest(const CorpusManifest& manifest, std::ostream& out) {
  out << "manifest version " << manifest.version() << ", written by: " << manifest.created_by() << "\n";
  out << "tokenizer: digest " << manifest.tokenizer_digest() << ", " << manifest.vocab_size() << " ids";
  if (manifest.has_end_of_document()) out << ", end of document " << manifest.end_of_document();
  out << "\n";
  if (manifest.has_unigram_entropy()) {
    out << absl::StrFormat("unigram entropy of train: %.4f nat per token (perplexity %.1f)\n",
                           manifest.unigram_entropy(), std::exp(manifest.unigram_entropy()));
  }
  int64_t tokens = 0;
  for (const CorpusSplit& split : manifest.split()) tokens += split.num_tokens();
  if (manifest.text_bytes() > 0 && tokens > 0) {
    out << absl::StrFormat("text: %s, %.3f bytes per token\n", HumanBytes(static_cast<double>(manifest.text_bytes())),
                           static_cast<double>(manifest.text_bytes()) / static_cast<double>(tokens));
  }
  for (const CorpusSplit& split : manifest.split()) {
    for (const CorpusShard& shard : split.shard()) {
      out << "shard " << shard.name() << ": " << shard.num_documents() << " documents, " << shard.num_tokens()
          << " tokens, " << HumanBytes(static_cast<double>(shard.bin_bytes())) << ", digest " << shard.bin_digest()
          << "\n";
    }
  }
}

// Lengths, in tokens, of the documents that lie wholly in the first `limit` tokens.
absl::StatusOr<std::vector<int64_t>> DocumentLengths(const TokenStream& stream, int64_t limit) {
  constexpr int64_t kChunk = 1 << 20;
  const int64_t end = std::min(stream.num_tokens(), limit);
  std::vector<int64_t> lengths;
  std::vector<int32_t> starts;
  int64_t document_begin = 0;
  // Chunks overlap by one token: a start is found only behind the first token of what is looked at.
  for (int64_t begin = 0; begin + 1 < end; begin += kChunk) {
    RETURN_IF_ERROR(stream.DocumentStarts(begin, std::min(kChunk + 1, end - begin), &starts));
    for (const int32_t start : starts) {
      lengths.push_back(begin + start - document_begin);
      document_begin = begin + start;
    }
  }
  if (end == stream.num_tokens() && end > document_begin) lengths.push_back(end - document_begin);
  return lengths;
}

absl::Status PrintSplit(const std::string& name, const TokenStream& stream, std::ostream& out) {
  constexpr int64_t kLimit = int64_t{1} << 30;
  out << name << ": " << stream.num_tokens() << " tokens";
  if (stream.num_documents() > 0) out << ", " << stream.num_documents() << " documents";
  out << "\n";
  ASSIGN_OR_RETURN(std::vector<int64_t> lengths, DocumentLengths(stream, kLimit));
  if (lengths.empty()) return absl::OkStatus();
  std::sort(lengths.begin(), lengths.end());
  const auto quantile = [&lengths](double q) {
    return lengths[static_cast<size_t>(q * static_cast<double>(lengths.size() - 1))];
  };
  const double mean = static_cast<double>(std::accumulate(lengths.begin(), lengths.end(), int64_t{0})) /
                      static_cast<double>(lengths.size());
  out << absl::StrFormat(
      "  document length in tokens: mean %.1f, shortest %d, 10 %% %d, median %d, 90 %% %d, longest %d", mean,
      lengths.front(), quantile(0.1), quantile(0.5), quantile(0.9), lengths.back());
  if (stream.num_tokens() > kLimit) out << " (of the first " << lengths.size() << " documents)";
  out << "\n";
  return absl::OkStatus();
}

absl::Status PrintSamples(const Corpus& corpus, const InspectCorpusOptions& options, std::ostream& out) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const Sampler> sampler,
                   Sampler::Create({corpus.train}, {1.0}, options.sequence_length, options.seed, /*shuffle=*/true));
  std::unique_ptr<Tokenizer> tokenizer;
  if (!corpus.tokenizer_path.empty()) {
    ASSIGN_OR_RETURN(tokenizer, Tokenizer::Load(corpus.tokenizer_path));
  }
  for (int64_t i = 0; i < options.samples; ++i) {
    ASSIGN_OR_RETURN(const Sample sample, sampler->Get(i));
    out << "sample " << i << " (window " << sample.window << ", " << sample.document_starts.size()
        << " document boundaries):\n  ";
    const std::vector<int32_t> ids(sample.tokens.begin(), sample.tokens.end() - 1);
    // Escaped: text from elsewhere must not steer the terminal.
    out << (tokenizer != nullptr ? absl::Utf8SafeCEscape(tokenizer->Decode(ids)) : absl::StrJoin(ids, " ")) << "\n";
  }
  return absl::OkStatus();
}

}  // namespace

bool LooksLikeCorpus(const std::string& path) {
  std::error_code error;
  if (fs::exists(path + ".idx", error) || absl::EndsWith(path, ".idx") || absl::EndsWith(path, ".bin")) return true;
  if (!fs::is_directory(path, error)) return false;
  if (fs::exists(fs::path(path) / kManifestName, error)) return true;
  for (fs::directory_iterator it(path, error); !error && it != fs::directory_iterator(); it.increment(error)) {
    if (it->path().extension() == ".idx") return true;
  }
  return false;
}

absl::Status InspectCorpus(const InspectCorpusOptions& options, std::ostream& out) {
  CorpusOptions open_options;
  open_options.verify_checksums = options.verify_checksums;
  ASSIGN_OR_RETURN(const Corpus corpus, OpenCorpus(options.path, open_options));
  out << "corpus " << options.path << "\ncontent digest " << corpus.digest << "\n";
  if (corpus.manifest.has_value()) PrintManifest(*corpus.manifest, out);
  RETURN_IF_ERROR(PrintSplit("train", *corpus.train, out));
  if (corpus.validation != nullptr) RETURN_IF_ERROR(PrintSplit("validation", *corpus.validation, out));
  if (options.verify_checksums && corpus.manifest.has_value()) out << "all checksums match\n";
  if (options.samples > 0) RETURN_IF_ERROR(PrintSamples(corpus, options, out));
  return absl::OkStatus();
}

}  // namespace trireme
