#include "data/prepare/inspect_conversations.h"

#include <absl/strings/str_format.h>

#include "data/unicode/unicode.h"

namespace trireme {
namespace {

constexpr char kGreen[] = "\x1b[32m", kPlain[] = "\x1b[0m";

// Text from elsewhere must not steer the terminal: control characters are written out, line breaks indented.
std::string Printable(const std::string& bytes) {
  const std::string text = RepairUtf8(bytes);
  std::string out;
  for (const char* p = text.data(); p < text.data() + text.size();) {
    const char* begin = p;
    const uint32_t code = DecodeUtf8(p, &p);
    const bool control = code < 0x20 || (code >= 0x7f && code < 0xa0) || (code >= 0x202a && code <= 0x202e);
    if (code == '\n') {
      out += "\n  ";
    } else if (control && code < 0x100) {
      absl::StrAppendFormat(&out, "\\x%02x", code);
    } else if (control) {
      absl::StrAppendFormat(&out, "\\u%04x", code);
    } else {
      out.append(begin, p);
    }
  }
  return out;
}

void PrintDocument(const PackedSequences& packed, const PackedDocument& document, const Tokenizer& tokenizer,
                   bool color, std::ostream& out) {
  out << "  ";
  const int64_t end = document.begin + document.length;
  for (int64_t i = document.begin; i < end;) {
    const bool learned = packed.learned(i);
    std::string bytes;
    for (; i < end && packed.learned(i) == learned; ++i) absl::StrAppend(&bytes, tokenizer.TokenBytes(packed.id(i)));
    if (learned) out << (color ? kGreen : kTrainedBegin);
    out << Printable(bytes);
    if (learned) out << (color ? kPlain : kTrainedEnd);
  }
  out << "\n";
}

void PrintCounts(const char* name, const ConversationSplit& split, std::ostream& out) {
  const SampleCounts& counts = split.counts;
  if (counts.read == 0) return;
  out << name << ": " << Describe(split) << "\n  samples: " << counts.read << " read, " << counts.kept << " kept, "
      << counts.read - counts.kept << " dropped (" << counts.dropped_over_long << " too long, " << counts.empty
      << " empty, " << counts.unlearned << " without a trained token)\n  longer than a sequence: " << counts.over_long
      << "\n";
  if (counts.without_end > 0)
    out << "  without a trained end of turn: " << counts.without_end << " (nothing in them teaches to stop)\n";
  if (split.sequences == nullptr) return;
  const PackedSequences& packed = *split.sequences;
  const int64_t room = packed.size() * packed.sequence_length();
  out << "  tokens: " << packed.num_targets() << " trained, " << packed.num_tokens() - packed.num_targets()
      << " masked, " << counts.dropped_tokens << " dropped, " << room - packed.num_tokens() << " padding\n"
      << absl::StrFormat("  sequences: %d of %d tokens, %d documents, %.2f %% full\n", packed.size(),
                         packed.sequence_length(), packed.num_documents(),
                         100.0 * static_cast<double>(packed.num_tokens()) / static_cast<double>(room));
}

}  // namespace

void InspectConversations(const ConversationSet& set, const Tokenizer& tokenizer,
                          const InspectConversationsOptions& options, std::ostream& out) {
  PrintCounts("train", set.train, out);
  PrintCounts("validation", set.validation, out);
  const PackedSequences& packed = *set.train.sequences;
  const auto sampler = MakePackedSampler(set.train.sequences, options.seed, /*shuffle=*/true);
  int64_t shown = 0;
  for (int64_t i = 0; i < packed.size() && shown < options.samples; ++i) {
    const int64_t sequence = sampler->Get(i)->window;
    for (const PackedDocument& document : packed.Documents(sequence)) {
      if (shown++ == options.samples) break;
      int64_t learned = 0;
      for (int64_t token = 0; token < document.length; ++token) learned += packed.learned(document.begin + token);
      out << "sample " << document.sample << " (sequence " << sequence << ", " << document.length << " tokens, "
          << learned << " trained):\n";
      PrintDocument(packed, document, tokenizer, options.color, out);
    }
  }
}

}  // namespace trireme
