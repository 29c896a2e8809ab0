// data/corpus/corpus.h
// Tokenized text on disk: Megatron's indexed format with our manifest beside it, the same without manifest, or llm.c's
// .bin.
#ifndef TRIREME_DATA_CORPUS_CORPUS_H_
#define TRIREME_DATA_CORPUS_CORPUS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/corpus/manifest.pb.h"
#include "launch/base/status.h"

namespace trireme {

// One split's tokens as one long array over its shards, read from disk piece by piece. Thread-safe.
class TokenStream {
 public:
  virtual ~TokenStream() = default;
  virtual int64_t num_tokens() const = 0;
  virtual int64_t num_documents() const = 0;  // 0 where the format does not record it (llm.c)
  // Copies tokens [begin, begin + count). Fails, naming file and offset, on a token >= vocab_size() where that is
  // known.
  virtual absl::Status Read(int64_t begin, int64_t count, int64_t* out) const = 0;
  // Offsets o in (0, count) such that a document starts at begin + o; ascending.
  virtual absl::Status DocumentStarts(int64_t begin, int64_t count, std::vector<int32_t>* out) const = 0;
  // Read() and DocumentStarts() of the same range, in one pass where the tokens themselves tell the documents.
  virtual absl::Status ReadWithStarts(int64_t begin, int64_t count, int64_t* out, std::vector<int32_t>* starts) const {
    RETURN_IF_ERROR(Read(begin, count, out));
    return DocumentStarts(begin, count, starts);
  }
  virtual std::string description() const = 0;  // For messages.
};

struct CorpusOptions {
  bool verify_checksums = false;  // read and hash every shard first
  int64_t vocab_size = 0;         // tokens must be below; 0: the manifest's, else unchecked
};

struct Corpus {
  std::shared_ptr<const TokenStream> train;
  std::shared_ptr<const TokenStream> validation;  // null when there is none
  std::optional<CorpusManifest> manifest;         // absent for foreign files: accepted with a warning
  std::string tokenizer_path;                     // tokenizer file beside the manifest; empty when there is none
  std::string digest;                             // identifies the content; part of what a resumed run must match
};

// `path`: a directory written by `trireme prepare`, a directory of Megatron files without manifest (all are train, in
// the order of their names, but those named validation*), a Megatron prefix (PATH.idx, PATH.bin; alone, even where a
// manifest beside lists it among others), or an llm.c .bin file. Checks structure, sizes against the manifest, and that
// tokenizer.json beside it is the one the manifest names. Without manifest: one warning. Errors are ExitCode::kData.
absl::StatusOr<Corpus> OpenCorpus(const std::string& path, const CorpusOptions& options);

}  // namespace trireme

#endif  // TRIREME_DATA_CORPUS_CORPUS_H_
