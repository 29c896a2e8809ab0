// SentencePiece's tokenizer.model.
#include "data/tokenizer/sentencepiece.pb.h"
#include "data/tokenizer/tokenizer.h"
#include "tests/fuzz/fuzz_files.h"
#include "tests/fuzz/fuzz_target.h"

namespace trireme {
namespace {

std::string Seed(bool byte_fallback, bool collapse) {
  SentencePieceModel model;
  const auto add = [&model](const std::string& piece, float score, int type) {
    auto& added = *model.add_pieces();
    added.set_piece(piece);
    added.set_score(score);
    added.set_type(type);
  };
  add("<unk>", 0, 2);
  add("</s>", 0, 3);
  add("<mark>", 0, 4);
  char name[8];
  for (int byte = 0; byte_fallback && byte < 256; ++byte) {
    std::snprintf(name, sizeof(name), "<0x%02X>", byte);
    add(name, 0, 6);
  }
  float score = 0;
  for (const char* piece : {"▁a", "ab", "▁▁", "▁ab", "▁", "a", "b", "é", "c"}) add(piece, score -= 1, 1);
  model.mutable_trainer_spec()->set_model_type(2);
  model.mutable_trainer_spec()->set_byte_fallback(byte_fallback);
  model.mutable_normalizer_spec()->set_remove_extra_whitespaces(collapse);
  return model.SerializeAsString();
}

}  // namespace

bool FuzzOne(const std::string& input) {
  static MemoryFile file;
  file.Write(input);
  const auto tokenizer = Tokenizer::Load(file.path());
  if (!tokenizer.ok()) return false;
  std::vector<int32_t> ids;
  (void)(*tokenizer)->Encode(" ab  ba abc<mark></s>\xC3\xA9\xFF\xE6\x97\xA5 \xE2\x96\x81\n\n ", &ids);
  (void)(*tokenizer)->Encode(absl::string_view(input).substr(0, 200), &ids);
  for (const int32_t id : ids) TRIREME_CHECK(id >= 0 && id < (*tokenizer)->vocab_size(), "id ", id);
  (void)(*tokenizer)->Decode(ids);
  return true;
}

std::vector<std::string> FuzzSeeds() { return {Seed(true, false), Seed(false, true)}; }

}  // namespace trireme
