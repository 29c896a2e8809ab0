#include "data/tokenizer/sentencepiece_file.h"

#include <absl/strings/str_replace.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "data/pretokenizer/pretokenizer_metaspace.h"
#include "data/tokenizer/sentencepiece.pb.h"
#include "data/unicode/unicode.h"

namespace trireme {
namespace {

enum Type { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

constexpr int kMaxPieces = 1 << 24;
constexpr size_t kMaxPieceBytes = 512;  // all ways of cutting a piece are looked at

template <typename... Args>
absl::Status BadModel(const Args&... args) {
  return Error(ExitCode::kData, args...);
}

std::string ShownPiece(absl::string_view piece) { return absl::StrCat("\"", piece.substr(0, 60), "\""); }

absl::Status CheckSpecs(const SentencePieceModel& model) {
  const auto& trainer = model.trainer_spec();
  const auto& normalizer = model.normalizer_spec();
  if (trainer.model_type() != 2)
    return BadModel("the model is ",
                    trainer.model_type() == 1   ? "a unigram model"
                    : trainer.model_type() == 3 ? "a word model"
                    : trainer.model_type() == 4 ? "a character model"
                                                : "of an unknown kind",
                    "; only BPE is supported; take tokenizer.json if the model has one");
  if (!normalizer.precompiled_charsmap().empty() || !model.denormalizer_spec().precompiled_charsmap().empty())
    return BadModel("the model maps characters (precompiled_charsmap), which is not supported");
  if (!normalizer.escape_whitespaces()) return BadModel("escape_whitespaces is off, which is not supported");
  if (trainer.treat_whitespace_as_suffix())
    return BadModel("treat_whitespace_as_suffix is set, which is not supported");
  if (!trainer.pretokenization_delimiter().empty())
    return BadModel("pretokenization_delimiter is set, which is not supported");
  return absl::OkStatus();
}

bool IsOneCharacter(const std::string& piece) {
  const char* next;
  DecodeUtf8(piece.data(), &next);
  return next == piece.data() + piece.size();
}

absl::Status CheckPiece(const SentencePieceModel::Piece& piece, bool byte_fallback) {
  const std::string& text = piece.piece();
  if (text.empty()) return BadModel("a piece is empty");
  if (text.size() > kMaxPieceBytes)
    return BadModel("piece ", ShownPiece(text), "... has ", text.size(), " bytes; at most ", kMaxPieceBytes,
                    " are supported");
  if (!IsValidUtf8(text)) return BadModel("a piece is not valid UTF-8");
  if (piece.type() < kNormal || piece.type() > kByte)
    return BadModel("piece ", ShownPiece(text), " is of the unknown type ", piece.type());
  if (!std::isfinite(piece.score())) return BadModel("piece ", ShownPiece(text), " has the score ", piece.score());
  char byte;
  if (piece.type() == kByte && (!byte_fallback || !ParseByteToken(text, &byte) || ByteToken(uint8_t(byte)) != text))
    return BadModel("piece ", ShownPiece(text),
                    byte_fallback ? " stands for no byte" : " is a byte's, without byte_fallback");
  // SentencePiece finds reserved pieces first when it looks a character up.
  if ((piece.type() == kControl || piece.type() == kUnknown) && IsOneCharacter(text))
    return BadModel("piece ", ShownPiece(text), " is a control token of one character, which is not supported");
  if (piece.type() == kUserDefined && text.find(' ') != std::string::npos)
    return BadModel("the user-defined piece ", ShownPiece(text), " holds a space, which is not supported");
  return absl::OkStatus();
}

std::string Surface(const SentencePieceModel::Piece& piece, const std::string& unknown) {
  char byte;
  if (piece.type() == kUnknown) return unknown;
  if (piece.type() == kControl) return piece.piece();
  if (piece.type() == kByte && ParseByteToken(piece.piece(), &byte)) return std::string(1, byte);
  return absl::StrReplaceAll(piece.piece(), {{kMetaspace, " "}});
}

absl::Status ReadPieces(const SentencePieceModel& model, BpeFile* file, BpeModel::Alphabet* alphabet) {
  if (model.pieces_size() == 0 || model.pieces_size() > kMaxPieces) return BadModel(model.pieces_size(), " pieces");
  std::fill(alphabet->byte_ids.begin(), alphabet->byte_ids.end(), -1);
  alphabet->fuse_unknown = true;
  const bool byte_fallback = model.trainer_spec().byte_fallback();
  for (int32_t id = 0; id < model.pieces_size(); ++id) {
    const SentencePieceModel::Piece& piece = model.pieces(id);
    RETURN_IF_ERROR(CheckPiece(piece, byte_fallback));
    const std::string& text = piece.piece();
    if (!file->id_of_token.emplace(text, id).second) return BadModel("piece ", ShownPiece(text), " stands twice");
    file->bytes_of_id.push_back(Surface(piece, model.trainer_spec().unk_surface()));
    char byte;
    const char* next;
    if (piece.type() == kByte && ParseByteToken(text, &byte)) alphabet->byte_ids[static_cast<uint8_t>(byte)] = id;
    if (piece.type() == kUnknown && alphabet->unknown_id >= 0) return BadModel("two pieces are of the type unknown");
    if (piece.type() == kUnknown) alphabet->unknown_id = id;
    if (piece.type() == kControl || piece.type() == kUnknown) file->special_ids.insert(id);
    if (piece.type() == kNormal && IsOneCharacter(text)) alphabet->character_ids[DecodeUtf8(text.data(), &next)] = id;
    if (piece.type() == kUserDefined) {
      AddedToken token;
      token.id = id;
      token.content = text;
      token.normalized = true;
      file->added_tokens.push_back(std::move(token));
    }
  }
  if (alphabet->unknown_id < 0) return BadModel("no piece is of the type unknown");
  if (byte_fallback && *std::min_element(alphabet->byte_ids.begin(), alphabet->byte_ids.end()) < 0)
    return BadModel("byte_fallback is set, but not all bytes have a piece");
  return absl::OkStatus();
}

// Two neighbours are joined when both together are a piece, the piece of the highest score first.
absl::StatusOr<std::vector<BpeModel::Merge>> MergesOf(const SentencePieceModel& model, const BpeFile& file) {
  std::vector<float> scores;
  for (const auto& piece : model.pieces()) scores.push_back(-piece.score());
  std::sort(scores.begin(), scores.end());
  scores.erase(std::unique(scores.begin(), scores.end()), scores.end());

  // What text may be made of while it is merged: pieces, and characters that are none.
  const auto part = [&](absl::string_view text) -> const int32_t* {
    const auto found = file.id_of_token.find(text);
    if (found == file.id_of_token.end()) return nullptr;
    const int type = model.pieces(found->second).type();
    return type == kNormal || type == kUnused ? &found->second : nullptr;
  };
  std::vector<BpeModel::Merge> merges;
  for (int32_t id = 0; id < model.pieces_size(); ++id) {
    const SentencePieceModel::Piece& piece = model.pieces(id);
    if (piece.type() != kNormal && piece.type() != kUnused) continue;
    const std::string& text = piece.piece();
    const char *const end = text.data() + text.size(), *next;
    const auto rank = std::lower_bound(scores.begin(), scores.end(), -piece.score()) - scores.begin();
    DecodeUtf8(text.data(), &next);
    const char* const second = next;
    bool reachable = second == end;
    for (const char* cut = second; cut < end; cut = next) {
      DecodeUtf8(cut, &next);
      const absl::string_view left(text.data(), cut - text.data()), right(cut, end - cut);
      const int32_t *left_id = part(left), *right_id = part(right);
      const bool left_missing = cut == second && !file.id_of_token.contains(left);
      const bool right_missing = next == end && !file.id_of_token.contains(right);
      if ((left_missing || right_missing) && (left_missing || left_id != nullptr) &&
          (right_missing || right_id != nullptr))
        return BadModel("piece ", ShownPiece(text), " is made of a character that is no piece, which is not supported");
      if (left_id == nullptr || right_id == nullptr) continue;
      merges.push_back({*left_id, *right_id, id, static_cast<int32_t>(rank)});
      reachable = true;
    }
    if (piece.type() == kUnused && reachable)
      return BadModel("piece ", ShownPiece(text), " is marked unused, which is not supported");
  }
  return merges;
}

// Whether the folder has a token that the model does not.
bool AddsTokens(const TokenizerFolder& folder, const BpeFile& file) {
  return std::any_of(folder.added.begin(), folder.added.end(),
                     [&](const AddedToken& token) { return !file.id_of_token.contains(token.content); });
}

// Tokens that Transformers finds in the text although the model's own program does not.
void FindSpecialTokens(const TokenizerFolder& folder, BpeFile* file) {
  std::set<std::string> names = folder.special;
  names.insert({"<unk>", "<s>", "</s>"});  // LlamaTokenizer's own
  for (const std::string& name : names) {
    const auto known = file->id_of_token.find(name);
    if (known == file->id_of_token.end()) continue;
    AddedToken token;
    token.id = known->second;
    token.content = name;
    token.special = true;
    file->special_ids.insert(token.id);
    file->added_tokens.push_back(std::move(token));
  }
}

absl::Status FollowTransformers(const SentencePieceModel& model, const TokenizerFolder& folder, BpeFile* file) {
  const auto& normalizer = model.normalizer_spec();
  const bool adds = AddsTokens(folder, *file);
  const bool has_spaces =
      std::any_of(file->added_tokens.begin(), file->added_tokens.end(),
                  [](const AddedToken& token) { return token.content.find(kMetaspace) != std::string::npos; });
  const bool is_llama = folder.tokenizer_class.empty() || folder.tokenizer_class == "LlamaTokenizer" ||
                        folder.tokenizer_class == "LlamaTokenizerFast";
  if (!is_llama || !normalizer.add_dummy_prefix() || normalizer.remove_extra_whitespaces() || has_spaces) {
    if (!adds) return absl::OkStatus();
    return BadModel(folder.path, " adds tokens to a SentencePiece model, which is read for LlamaTokenizer only",
                    is_llama ? " and not with this model's rules for white space"
                             : absl::StrCat(" (it is ", folder.tokenizer_class, ")"),
                    "; save the tokenizer with Transformers (save_pretrained), which writes a whole tokenizer.json");
  }
  const char* scheme = !folder.add_prefix_space ? "never" : folder.legacy ? "always" : "first";
  file->normalizer = Normalizer();
  ASSIGN_OR_RETURN(
      file->pre_tokenizer,
      PreTokenizer::FromJson(
          {{"type", "Metaspace"}, {"replacement", kMetaspace}, {"prepend_scheme", scheme}, {"split", false}}));
  FindSpecialTokens(folder, file);
  return AddTokensOfFolder(folder, file);
}

}  // namespace

bool IsSentencePieceFile(absl::string_view contents) {
  // The first field is a piece. Its tag is JSON's line feed, too.
  const size_t first = contents.find_first_not_of(" \t\r\n");
  return !contents.empty() && contents[0] == '\n' && first != absl::string_view::npos && contents[first] != '{';
}

absl::StatusOr<BpeFile> ParseSentencePieceFile(absl::string_view contents) {
  return ParseSentencePieceFile(contents, TokenizerFolder());
}

absl::StatusOr<BpeFile> ParseSentencePieceFile(absl::string_view contents, const TokenizerFolder& folder) {
  SentencePieceModel model;
  if (!model.ParseFromArray(contents.data(), static_cast<int>(contents.size())))
    return BadModel("not a SentencePiece model file");
  RETURN_IF_ERROR(CheckSpecs(model));
  BpeFile file;
  BpeModel::Alphabet alphabet;
  RETURN_IF_ERROR(ReadPieces(model, &file, &alphabet));
  file.added_tokens_are_normalized = true;
  const auto& normalizer = model.normalizer_spec();
  file.normalizer = Normalizer::SentencePiece(normalizer.add_dummy_prefix(), normalizer.remove_extra_whitespaces());
  file.decoder = BpeDecoder::SentencePiece(normalizer.add_dummy_prefix());
  ASSIGN_OR_RETURN(const std::vector<BpeModel::Merge> merges, MergesOf(model, file));
  if (folder.exists) RETURN_IF_ERROR(FollowTransformers(model, folder, &file));
  if (MergesStayWithinWords(merges, file)) file.pre_tokenizer.CutBeforeMetaspaces();
  file.model = std::make_unique<BpeModel>(std::move(alphabet), merges, absl::flat_hash_map<std::string, int32_t>());
  return file;
}

}  // namespace trireme
