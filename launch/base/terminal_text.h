// launch/base/terminal_text.h
// Foreign text that a terminal will show: names of tokens, contents of files, what a model says.
#ifndef TRIREME_LAUNCH_BASE_TERMINAL_TEXT_H_
#define TRIREME_LAUNCH_BASE_TERMINAL_TEXT_H_

#include <absl/strings/string_view.h>

#include <string>

namespace trireme {

// `text` with what could steer a terminal made visible: the control characters of ASCII but for \n and \t (so ESC and
// \r), DEL, and U+0080 to U+009F become \x1B and the like, and so do bytes that are no UTF-8. Everything else stays.
std::string TerminalSafe(absl::string_view text);

// `text` for standard output: TerminalSafe() where that is a terminal, as it is where it is a file or a pipe.
std::string ForOutput(absl::string_view text);

}  // namespace trireme

#endif  // TRIREME_LAUNCH_BASE_TERMINAL_TEXT_H_
