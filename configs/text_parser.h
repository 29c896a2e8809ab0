// configs/text_parser.h
// Reads a textproto and finds all of its mistakes, not only the first.
#ifndef TRIREME_CONFIGS_TEXT_PARSER_H_
#define TRIREME_CONFIGS_TEXT_PARSER_H_

#include <google/protobuf/message.h>

#include <string>
#include <vector>

namespace trireme {

struct TextSource {
  std::string label;     // What errors name: a file, or the override as it was given.
  std::string text;      // The textproto.
  std::string context;   // Path of the message that `text` fills, as "optimizer.adamw"; empty for the whole config.
  int first_column = 0;  // Added to the columns of the first line, when `text` stands inside a longer line.
};

// Replaces `message` by what the text says and appends each mistake to `problems` as LABEL:LINE:COLUMN: what (counted
// from 1, in bytes). With problems, `message` holds what could be read.
void ParseConfigText(const TextSource& source, google::protobuf::Message* message, std::vector<std::string>* problems);

}  // namespace trireme

#endif  // TRIREME_CONFIGS_TEXT_PARSER_H_
