// data/pretokenizer/pretokenizer_metaspace.h
// Spaces spelled as U+2581, as SentencePiece does.
#ifndef TRIREME_DATA_PRETOKENIZER_PRETOKENIZER_METASPACE_H_
#define TRIREME_DATA_PRETOKENIZER_PRETOKENIZER_METASPACE_H_

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "data/pretokenizer/pretokenizer.h"

namespace trireme {

inline constexpr char kMetaspace[] = "\xE2\x96\x81";

// Cuts before every U+2581, or (`runs`) only before those that follow another character.
class MetaspaceSplitter : public Splitter {
 public:
  explicit MetaspaceSplitter(bool runs) : runs_(runs) {}
  absl::Status Split(absl::string_view text, PieceSink* sink) const override;

 private:
  bool runs_;
};

// The pre-tokenizer "Metaspace".
struct Metaspace {
  enum class Prepend { kNever, kFirst, kAlways };

  static absl::StatusOr<Metaspace> FromJson(const nlohmann::json& json);

  // `text` with its spaces spelled and, as `prepend` says, one before it. `at_start`: it begins the whole text.
  std::string Spell(absl::string_view text, bool at_start) const;

  Prepend prepend = Prepend::kAlways;
  bool split = true;  // every space begins a piece
};

}  // namespace trireme

#endif  // TRIREME_DATA_PRETOKENIZER_PRETOKENIZER_METASPACE_H_
