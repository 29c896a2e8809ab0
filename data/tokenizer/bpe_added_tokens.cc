#include "data/tokenizer/bpe_added_tokens.h"

#include <algorithm>
#include <utility>

#include "data/unicode/unicode.h"

namespace trireme {
namespace {

const char* CharacterBefore(const char* p) {
  do {
    --p;
  } while ((*p & 0xC0) == 0x80);
  return p;
}

bool IsSpace(const char* p) {
  const char* next;
  return CharClasses::Get()[DecodeUtf8(p, &next)] == CharClass::kSpace;
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const std::string& content = tokens_[i].content;
    index_[content] = static_cast<int>(i);
    const auto first = static_cast<uint8_t>(content[0]);
    is_first_[first] = true;
    lengths_by_first_[first].push_back(content.size());
  }
  for (std::vector<size_t>& lengths : lengths_by_first_) {
    std::sort(lengths.rbegin(), lengths.rend());
    lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  }
}

const AddedToken* AddedTokenFinder::LongestAt(absl::string_view rest) const {
  for (const size_t length : lengths_by_first_[static_cast<uint8_t>(rest[0])]) {
    if (length > rest.size()) continue;
    const auto found = index_.find(rest.substr(0, length));
    if (found != index_.end()) return &tokens_[found->second];
  }
  return nullptr;
}

void AddedTokenFinder::Split(absl::string_view text, const std::function<void(absl::string_view)>& on_text,
                             const std::function<void(int32_t)>& on_token) const {
  size_t done = 0;  // everything before is handed out
  size_t position = 0;
  while (position < text.size()) {
    if (!is_first_[static_cast<uint8_t>(text[position])]) {
      ++position;
      continue;
    }
    const AddedToken* token = LongestAt(text.substr(position));
    if (token == nullptr) {
      ++position;
      continue;
    }
    size_t begin = position;
    size_t end = begin + token->content.size();
    position = end;
    if (token->lstrip) {
      const char* p = text.data() + begin;
      while (p > text.data() && IsSpace(CharacterBefore(p))) p = CharacterBefore(p);
      begin = std::max<size_t>(p - text.data(), done);
    }
    if (token->rstrip) {
      const char* p = text.data() + end;
      const char* next;
      while (p < text.data() + text.size() && CharClasses::Get()[DecodeUtf8(p, &next)] == CharClass::kSpace) p = next;
      end = p - text.data();
    }
    if (done < begin) on_text(text.substr(done, begin - done));
    on_token(token->id);
    done = end;
  }
  if (done < text.size()) on_text(text.substr(done));
}

}  // namespace trireme
