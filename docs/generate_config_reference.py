#!/usr/bin/env python3
"""Writes docs/config_reference.md out of configs/run_config.proto.

    docs/generate_config_reference.py            writes the page
    docs/generate_config_reference.py --check    says whether the page is current: exit code 0 or 1

The page is a function of the .proto file alone. The file is read line by line; a line of a form that this script does not know is an
error, so nothing is left out silently. Needs Python 3 only.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROTO = ROOT / "configs" / "run_config.proto"
PAGE = ROOT / "docs" / "config_reference.md"

INTRODUCTION = """\
# Reference of the configuration

<!-- Made by docs/generate_config_reference.py out of configs/run_config.proto. Do not edit it: change the .proto file and run the script. -->

Every field of a run's configuration, with its type, its default and its meaning. [configuration.md](configuration.md) explains how configuration files are written, merged and
overridden. `trireme config FIELD` prints the same text for one field, for example `trireme config parallel.shard`. A type that begins with a capital letter is a message or an
enumeration with a section or a list of values on this page.
"""

OPENING = re.compile(r"^(message|enum|oneof) (\w+) \{(\})?$")
FIELD = re.compile(r"^(?:(optional|repeated) )?(map<[\w, ]+>|[\w.]+) (\w+) = \d+(?: \[default = (.+)\])?;$")
VALUE = re.compile(r"^([A-Z][A-Z0-9_]*) = \d+;$")
IGNORED = re.compile(r"^(syntax|package|import) ")
NEXT_ID = re.compile(r"\s*\bNext id: \d+")


class Entry:
    """A message, an enumeration, a oneof, a field or a value, with the comment that belongs to it."""

    def __init__(self, kind, name, comment, type="", label="", default=None):
        self.kind, self.name, self.comment, self.type, self.label, self.default = kind, name, comment, type, label, default
        self.members = []


def parse(text):
    """The entries at the top of the file, in its order."""
    root = Entry("file", "", "")
    open_entries, comment = [root], []
    for number, line in enumerate(text.splitlines(), 1):
        code, slashes, trailing = line.partition("//")
        code, trailing = code.strip(), trailing.strip()
        if not code:
            comment = [*comment, trailing] if slashes else []
            continue
        words = NEXT_ID.sub("", " ".join([*comment, trailing] if trailing else comment)).strip()
        comment = []
        if IGNORED.match(code):
            continue
        if code == "}":
            open_entries.pop()
            continue
        if match := OPENING.match(code):
            entry = Entry(match[1], match[2], words)
            open_entries[-1].members.append(entry)
            if not match[3]:
                open_entries.append(entry)
        elif match := FIELD.match(code):
            open_entries[-1].members.append(Entry("field", match[3], words, type=match[2], label=match[1] or "", default=match[4]))
        elif match := VALUE.match(code):
            open_entries[-1].members.append(Entry("value", match[1], words))
        else:
            sys.exit(f"{PROTO}:{number}: this script does not understand: {line.strip()}")
    if len(open_entries) != 1:
        sys.exit(f"{PROTO}: a brace is missing")
    return root.members


def cell(text):
    return text.replace("|", "\\|").replace("<", "&lt;")


def default_of(field):
    if field.label == "repeated":
        return "empty list"
    if field.type.startswith("map"):
        return "empty"
    return f"`{field.default}`" if field.default is not None else "none"


def row(field, messages, enums, of=""):
    type_name = field.type
    if field.type in messages:
        type_name = f"[{field.type}](#{field.type.lower()})"
    meaning = cell(field.comment)
    if field.type in enums:
        values = "; ".join(f"`{value.name}`" + (f": {cell(value.comment).rstrip('.')}" if value.comment else "") for value in enums[field.type].members)
        meaning = f"{meaning} Values: {values}.".strip()
    shown = cell(type_name) if field.type not in messages else type_name
    if field.label == "repeated":
        shown = f"list of {shown}"
    if of:
        meaning = f"(One of `{of}`.) {meaning}".strip()
    return f"| `{field.name}` | {shown} | {default_of(field)} | {meaning} |"


def sections(messages, order):
    for message in order:
        enums = {member.name: member for member in message.members if member.kind == "enum"}
        lines = [f"## {message.name}", ""]
        if message.comment:
            lines += [message.comment, ""]
        oneofs = [member for member in message.members if member.kind == "oneof"]
        for oneof in oneofs:
            names = ", ".join(f"`{field.name}`" for field in oneof.members)
            lines += [f"At most one of {names} can be set.{' ' + oneof.comment if oneof.comment else ''}", ""]
        rows = []
        for member in message.members:
            if member.kind == "field":
                rows.append(row(member, messages, enums))
            elif member.kind == "oneof":
                rows += [row(field, messages, enums, of=member.name) for field in member.members]
        if rows:
            lines += ["| field | type | default | meaning |", "|---|---|---|---|", *rows, ""]
        else:
            lines += ["It has no fields.", ""]
        yield "\n".join(lines)


def page(text):
    entries = parse(text)
    messages = {entry.name: entry for entry in entries if entry.kind == "message"}
    # RunConfig first, then the messages in the order of the file: the order in which a reader of the .proto meets them.
    contents = " · ".join(f"[{name}](#{name.lower()})" for name in messages)
    return INTRODUCTION + "\n" + contents + "\n\n" + "\n".join(sections(messages, messages.values())).rstrip() + "\n"


def main():
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit(__doc__)
    made = page(PROTO.read_text(encoding="utf-8"))
    if not sys.argv[1:]:
        PAGE.write_text(made, encoding="utf-8")
        return
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != made:
        sys.exit(f"{PAGE.relative_to(ROOT)} is not what configs/run_config.proto says; run docs/generate_config_reference.py")
    print(f"{PAGE.relative_to(ROOT)} is current")


if __name__ == "__main__":
    main()
