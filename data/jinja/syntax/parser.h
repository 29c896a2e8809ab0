// data/jinja/syntax/parser.h
#ifndef TRIREME_DATA_JINJA_SYNTAX_PARSER_H_
#define TRIREME_DATA_JINJA_SYNTAX_PARSER_H_

#include <absl/strings/string_view.h>

#include <memory>
#include <string>

#include "data/jinja/syntax/ast.h"
#include "launch/base/status.h"

namespace trireme::jinja {

// The grammar of Jinja 3.1, with break, continue and generation. Errors (kData) name NAME:line: what Jinja refuses, and
// statements that are not supported here. Names are not resolved yet.
absl::StatusOr<std::unique_ptr<Program>> ParseTemplate(absl::string_view source, const std::string& name,
                                                       int max_depth);

}  // namespace trireme::jinja

#endif  // TRIREME_DATA_JINJA_SYNTAX_PARSER_H_
