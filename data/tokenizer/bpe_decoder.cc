#include "data/tokenizer/bpe_decoder.h"

#include <absl/strings/ascii.h>
#include <absl/strings/str_replace.h>

#include <nlohmann/json.hpp>

#include "data/unicode/bpe_bytes.h"
#include "launch/base/json.h"

namespace trireme {
namespace {

using nlohmann::json;

constexpr char kDigits[] = "0123456789ABCDEF";
constexpr size_t kMaxReplacements = 16;
constexpr size_t kMaxContentBytes = 64;

int HexDigit(char c) {
  const size_t found = absl::string_view(kDigits).find(absl::ascii_toupper(c));
  return found == absl::string_view::npos ? -1 : static_cast<int>(found);
}

std::string TypeOf(const json& object) { return JsonTextOr(JsonMember(object, "type"), "without type"); }

}  // namespace

bool ParseByteToken(absl::string_view token, char* byte) {
  if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return false;
  const int high = HexDigit(token[3]), low = HexDigit(token[4]);
  if (high < 0 || low < 0) return false;
  *byte = static_cast<char>(high * 16 + low);
  return true;
}

std::string ByteToken(int byte) { return {'<', '0', 'x', kDigits[byte >> 4], kDigits[byte & 15], '>'}; }

absl::StatusOr<BpeDecoder> BpeDecoder::FromJson(const json& json) {
  BpeDecoder decoder;
  const std::string type = TypeOf(json);
  if (type == "ByteLevel") {
    decoder.byte_level_ = true;
  } else if (type == "Sequence" && JsonMember(json, "decoders").is_array()) {
    for (const auto& member : JsonMember(json, "decoders")) RETURN_IF_ERROR(decoder.Add(member));
  } else {
    return Error(ExitCode::kData, "the decoder ", type.substr(0, 60),
                 " is not supported (ByteLevel and a Sequence for byte_fallback are)");
  }
  return decoder;
}

BpeDecoder BpeDecoder::SentencePiece(bool strips_leading_space) {
  BpeDecoder decoder;
  decoder.strips_leading_space_ = strips_leading_space;
  return decoder;
}

absl::Status BpeDecoder::Add(const json& json) {
  const std::string type = TypeOf(json);
  const auto is = [&json](const char* name, const nlohmann::json& value) {
    return json.is_object() && json.contains(name) && JsonMember(json, name) == value;
  };
  if (type == "Replace" && !byte_fallback_ && !fuse_ && replacements_.size() < kMaxReplacements) {
    const std::string* pattern = JsonText(JsonMember(JsonMember(json, "pattern"), "String"));
    const std::string* content = JsonText(JsonMember(json, "content"));
    if (pattern != nullptr && content != nullptr) {
      replacements_.emplace_back(*pattern, *content);
      const auto& [from, to] = replacements_.back();
      if (!from.empty() && from.size() <= kMaxContentBytes && to.size() <= kMaxContentBytes) return absl::OkStatus();
    }
  } else if (type == "ByteFallback" && !fuse_) {
    byte_fallback_ = true;
    return absl::OkStatus();
  } else if (type == "Fuse") {
    fuse_ = true;
    return absl::OkStatus();
  } else if (type == "Strip" && fuse_ && !strips_leading_space_ && is("content", " ") && is("stop", 0) &&
             (is("start", 0) || is("start", 1))) {
    strips_leading_space_ = is("start", 1);
    return absl::OkStatus();
  }
  return Error(
      ExitCode::kData, "the decoder's step ", type.substr(0, 60),
      " is not supported as it stands (literal Replace, ByteFallback, Fuse and Strip of one leading space are, "
      "in this order)");
}

std::string BpeDecoder::Bytes(absl::string_view token) const {
  std::string bytes;
  if (byte_level_) return UnspellBytes(token, &bytes) ? bytes : std::string(token);
  bytes = std::string(token);
  for (const auto& replacement : replacements_) bytes = absl::StrReplaceAll(bytes, {replacement});
  char byte;
  return byte_fallback_ && ParseByteToken(bytes, &byte) ? std::string(1, byte) : bytes;
}

}  // namespace trireme
