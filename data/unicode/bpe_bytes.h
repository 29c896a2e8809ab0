// data/unicode/bpe_bytes.h
// GPT-2's spelling of bytes: each byte is one printable character in a vocabulary's token strings.
#ifndef TRIREME_DATA_UNICODE_BPE_BYTES_H_
#define TRIREME_DATA_UNICODE_BPE_BYTES_H_

#include <absl/strings/string_view.h>

#include <array>
#include <cstdint>
#include <string>

namespace trireme {

// The code point that stands for each byte: printable Latin-1 bytes for themselves, the others U+0100 and up in byte
// order.
const std::array<uint16_t, 256>& ByteCharacters();

// The token string for `bytes`.
std::string SpellBytes(absl::string_view bytes);

// The bytes a token string stands for; false, leaving `*bytes` unspecified, when a character stands for no byte.
// `token` must be valid UTF-8.
bool UnspellBytes(absl::string_view token, std::string* bytes);

}  // namespace trireme

#endif  // TRIREME_DATA_UNICODE_BPE_BYTES_H_
