#include "data/chat/masked_tokens.h"

#include <absl/strings/escaping.h>

#include <algorithm>
#include <string>

#include "data/unicode/unicode_nfc.h"

namespace trireme {
namespace {

constexpr absl::string_view kSpaces = " \t\n\v\f\r";

// The bytes of `text` from `from` that `token` stands for, if it stands there: whole, or less the space that tokenizers
// in SentencePiece's manner put before a text.
bool MatchAt(absl::string_view text, size_t from, absl::string_view token, ByteRange* range) {
  for (const size_t dropped : {0, 1}) {
    if (token.size() < dropped || (dropped == 1 && token[0] != ' ')) return false;
    const size_t size = token.size() - dropped;
    if (text.substr(from, size) != token.substr(dropped)) continue;
    *range = {from, from + size};
    return true;
  }
  return false;
}

// Where each token stands in `text`. Added tokens may have swallowed the spaces around them.
absl::StatusOr<std::vector<ByteRange>> Locate(const Tokenizer& tokenizer, absl::string_view text,
                                              const std::vector<int32_t>& ids) {
  std::vector<ByteRange> ranges(ids.size());
  size_t at = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    const absl::string_view token = tokenizer.TokenBytes(ids[i]);
    const size_t behind_spaces = std::min(text.find_first_not_of(kSpaces, at), text.size());
    if (token.empty() || (!MatchAt(text, at, token, &ranges[i]) && !MatchAt(text, behind_spaces, token, &ranges[i]))) {
      return Error(ExitCode::kData, "the tokenizer gives \"", absl::Utf8SafeCEscape(token), "\" (id ", ids[i],
                   ") where the text goes on \"", absl::Utf8SafeCEscape(text.substr(at, 20)),
                   "\": it rewrites text in a way that hides which tokens are the assistant's");
    }
    at = ranges[i].end;
  }
  if (text.find_first_not_of(kSpaces, at) == absl::string_view::npos) return ranges;
  return Error(ExitCode::kData, "the tokenizer gives no token for \"", absl::Utf8SafeCEscape(text.substr(at, 20)),
               "\"");
}

// The text with each part (in and between the ranges) in Unicode's composed form, as several models' tokenizers see it.
std::string Composed(absl::string_view text, const std::vector<ByteRange>& ranges, std::vector<ByteRange>* moved) {
  std::string result;
  const auto append = [&](size_t begin, size_t end) {
    std::string storage;
    absl::StrAppend(&result, NormalizeNfc(text.substr(begin, end - begin), &storage));
  };
  size_t done = 0;
  for (const ByteRange& range : ranges) {
    append(done, range.begin);
    ByteRange& now = moved->emplace_back();
    now.begin = result.size();
    append(range.begin, range.end);
    now.end = result.size();
    done = range.end;
  }
  append(done, text.size());
  return result;
}

}  // namespace

int32_t LearnedEnd(const Tokenizer& tokenizer, const MaskedTokens& tokens, int64_t end, int32_t end_id) {
  while (end > 0 && tokens.learned[end - 1] != 0) {
    const int32_t id = tokens.ids[--end];
    if (tokenizer.IsSpecial(id) || id == end_id) return id;
    if (tokenizer.TokenBytes(id).find_first_not_of(kSpaces) != absl::string_view::npos) return -1;
  }
  return -1;
}

absl::StatusOr<MaskedTokens> EncodeMasked(const Tokenizer& tokenizer, absl::string_view text,
                                          const std::vector<ByteRange>& ranges) {
  MaskedTokens tokens;
  RETURN_IF_ERROR(tokenizer.Encode(text, &tokens.ids));
  tokens.learned.resize(tokens.ids.size());
  absl::StatusOr<std::vector<ByteRange>> places = Locate(tokenizer, text, tokens.ids);
  std::vector<ByteRange> wanted = ranges;
  if (!places.ok()) {
    wanted.clear();
    const std::string composed = Composed(text, ranges, &wanted);
    std::vector<int32_t> same;
    RETURN_IF_ERROR(tokenizer.Encode(composed, &same));
    if (composed == text || same != tokens.ids) return places.status();
    ASSIGN_OR_RETURN(places, Locate(tokenizer, composed, tokens.ids));
  }
  size_t i = 0;
  for (const ByteRange& range : wanted) {
    // A token of no bytes stands for the space before the text at its place.
    while (i < tokens.ids.size() && std::max((*places)[i].end, (*places)[i].begin + 1) <= range.begin) ++i;
    for (; i < tokens.ids.size() && (*places)[i].begin < range.end; ++i) tokens.learned[i] = 1;
    if (i < tokens.ids.size() && tokenizer.IsSpecial(tokens.ids[i]) &&
        LearnedEnd(tokenizer, tokens, static_cast<int64_t>(i), /*end_id=*/-1) < 0)
      tokens.learned[i++] = 1;
  }
  return tokens;
}

}  // namespace trireme
