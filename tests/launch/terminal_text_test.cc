#include "launch/base/terminal_text.h"

#include <gtest/gtest.h>

#include "launch/base/log.h"

namespace trireme {
namespace {

TEST(TerminalText, ShowsWhatCouldSteer) {
  EXPECT_EQ(TerminalSafe("a\x1b[31mb\x07"), "a\\x1B[31mb\\x07");
  EXPECT_EQ(TerminalSafe(absl::string_view("\0\r\b\x7f", 4)), "\\x00\\x0D\\x08\\x7F");
  EXPECT_EQ(TerminalSafe("\xC2\x9B\x33m\xC2\x80"), "\\x9B3m\\x80") << "C1, which is an escape sequence of two bytes";
  EXPECT_EQ(TerminalSafe("\x9B\x31m \xC2 \xE6\x97 \xF0\x9F\x98"), "\\x9B1m \\xC2 \\xE6\\x97 \\xF0\\x9F\\x98");
  EXPECT_EQ(TerminalSafe("\xC0\x9B \xE0\x82\x9B \xED\xA0\x80 \xF4\x90\x80\x80"),
            "\\xC0\\x9B \\xE0\\x82\\x9B \\xED\\xA0\\x80 \\xF4\\x90\\x80\\x80")
      << "overlong, surrogate, beyond Unicode";
}

TEST(TerminalText, LeavesTextAlone) {
  const std::string text = "a\tb\nc \u00a0\u00e9 \u65e5\u672c \U0001f600 \\x1B";
  EXPECT_EQ(TerminalSafe(text), text);
  EXPECT_EQ(TerminalSafe(""), "");
}

TEST(TerminalText, LogLinesNeverSteer) {
  testing::internal::CaptureStderr();
  Info("model \x1b]0;title\x07 of ", "\xC2\x9B");
  Warning("\x1b[2J");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "model \\x1B]0;title\\x07 of \\x9B\nwarning: \\x1B[2J\n");
}

TEST(TerminalText, FilesAndPipesGetItAsItIs) {
  // ctest's output is no terminal.
  EXPECT_EQ(ForOutput("\x1b[31m"), "\x1b[31m");
}

}  // namespace
}  // namespace trireme
