"""Checks that docs/troubleshooting.md says what the program says: its table of exit codes is that of launch/base/exit_code.h, and every message that it
quotes stands in the sources.

A message is the first cell, in `code`, of a row of a table whose header begins with "message"; "..." stands for anything.
"""

import re
import sys

from pages import ROOT, page, source_files

CODES = re.compile(r"^\s*k(\w+) = (\d+),", re.MULTILINE)
TABLE_ROW = re.compile(r"^\| (\d+) \| `k(\w+)` \|", re.MULTILINE)
JOINED_LITERALS = re.compile(r'"\s*\n?\s*"')


def table_problems(header, text):
    declared = [(int(code), name) for name, code in CODES.findall(header)]
    written = [(int(code), name) for code, name in TABLE_ROW.findall(text)]
    found = [f"exit code {code} (k{name}) is missing from the table" for code, name in declared if (code, name) not in written]
    found += [f"the table has exit code {code} (k{name}), which launch/base/exit_code.h does not" for code, name in written if (code, name) not in declared]
    return declared, found


def messages(text):
    """The quoted messages, with the lines they stand in."""
    found, in_table = [], False
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("|"):
            in_table = False
        elif line.startswith("| message"):
            in_table = True
        elif in_table and (match := re.match(r"^\| `([^`]+)` \|", line)):
            found.append((number, match[1]))
    return found


def is_said(message, sources):
    """Whether each part of it that has more than a word of punctuation stands in a source."""
    return all(part.strip() in sources for part in message.split("...") if len(part.strip()) > 3)


def self_test():
    header = "enum {\n  kOk = 0,\n  kData = 3,  // x\n};\n"
    assert table_problems(header, "| 0 | `kOk` | fine |\n| 3 | `kData` | bad |\n")[1] == []
    assert len(table_problems(header, "| 0 | `kOk` | fine |\n| 4 | `kData` | bad |\n")[1]) == 2
    text = "| message | do |\n|---|---|\n| `one ... two words` | x |\n\n| other |\n| `not a message` | x |\n"
    assert messages(text) == [(3, "one ... two words")]
    assert is_said("said ... so", "he said it\nand so on") and not is_said("said ... never this", "he said it")


def main():
    self_test()
    text = page("docs/troubleshooting.md").text
    header = next(path for path in source_files("exit_code.h"))
    declared, found = table_problems(header.read_text(encoding="utf-8"), text)
    assert len(declared) > 10, f"only {len(declared)} codes found in {header}"
    sources = "\n".join(path.read_text(encoding="utf-8") for path in source_files(".cc", ".cu", ".h", ".sh", ".proto") if "tests" not in path.parts)
    sources = JOINED_LITERALS.sub("", sources).replace('\\"', '"')
    quoted = messages(text)
    assert len(quoted) > 10, f"only {len(quoted)} messages found"
    found += [f"docs/troubleshooting.md:{line}: no source says: {message}" for line, message in quoted if not is_said(message, sources)]
    if found:
        sys.exit("\n".join(found))
    print(f"{len(declared)} exit codes and {len(quoted)} messages are those of the sources")


if __name__ == "__main__":
    main()
