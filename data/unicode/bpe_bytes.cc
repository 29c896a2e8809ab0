#include "data/unicode/bpe_bytes.h"

#include "data/unicode/unicode.h"

namespace trireme {
namespace {

constexpr int kNumCharacters = 0x144;  // 0x100 + the 68 bytes that are not printable

struct ByteTables {
  std::array<uint16_t, 256> character_of_byte;
  std::array<int16_t, kNumCharacters> byte_of_character;  // -1: none
};

constexpr ByteTables MakeByteTables() {
  ByteTables tables{};
  for (int16_t& byte : tables.byte_of_character) byte = -1;
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    const int character = printable ? byte : next++;
    tables.character_of_byte[byte] = static_cast<uint16_t>(character);
    tables.byte_of_character[character] = static_cast<int16_t>(byte);
  }
  return tables;
}

constexpr ByteTables kByteTables = MakeByteTables();

}  // namespace

const std::array<uint16_t, 256>& ByteCharacters() { return kByteTables.character_of_byte; }

std::string SpellBytes(absl::string_view bytes) {
  std::string token;
  for (const char byte : bytes) AppendUtf8(kByteTables.character_of_byte[static_cast<uint8_t>(byte)], &token);
  return token;
}

bool UnspellBytes(absl::string_view token, std::string* bytes) {
  bytes->clear();
  const char* p = token.data();
  const char* end = p + token.size();
  while (p < end) {
    const uint32_t character = DecodeUtf8(p, &p);
    if (character >= kNumCharacters || kByteTables.byte_of_character[character] < 0) return false;
    bytes->push_back(static_cast<char>(kByteTables.byte_of_character[character]));
  }
  return true;
}

}  // namespace trireme
