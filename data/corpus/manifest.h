// data/corpus/manifest.h
// manifest.textproto beside a corpus: reading, checking, writing.
#ifndef TRIREME_DATA_CORPUS_MANIFEST_H_
#define TRIREME_DATA_CORPUS_MANIFEST_H_

#include <string>

#include "data/corpus/manifest.pb.h"
#include "launch/base/file.h"
#include "launch/base/status.h"

namespace trireme {

inline constexpr char kManifestName[] = "manifest.textproto";
inline constexpr char kTokenizerName[] = "tokenizer.json";
inline constexpr char kTrainSplit[] = "train";
inline constexpr char kValidationSplit[] = "validation";

// Parses and checks what can be checked without the other files: version, split names, shard names that are plain file
// names, counts that are not negative and add up. Errors name file, line and column.
absl::StatusOr<CorpusManifest> ReadManifest(const std::string& path);

std::string FormatManifest(const CorpusManifest& manifest);

// Identifies the tokens and their order: digests and counts of all shards of all splits.
Digest ContentDigest(const CorpusManifest& manifest);

}  // namespace trireme

#endif  // TRIREME_DATA_CORPUS_MANIFEST_H_
