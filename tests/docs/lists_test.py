"""Checks that lists on pages are complete: fuzzed readers in SECURITY.md, verbs in docs/verbs.md, fields of manifests in
docs/file_formats.md, presets and options of the build in docs/building.md."""

import json
import re
import sys

from pages import CODE_SPAN, ROOT, page, source_files


def in_code(name):
    """All words in `code` on a page."""
    return {word for span in CODE_SPAN.findall(page(name).text) for word in re.findall(r"[\w-]+", span)}


def fields(proto):
    path = next(path for path in source_files(proto))
    return set(re.findall(r"^  (?:optional|repeated) \S+ (\w+) = \d+", path.read_text(encoding="utf-8"), re.MULTILINE))


def main():
    readers = {path.name[: -len("_fuzz.cc")] for path in (ROOT / "tests" / "fuzz").glob("*_fuzz.cc")}
    verbs = set()
    for path in source_files(".cc"):
        if "commands" in path.parts:
            verbs |= set(re.findall(r'add_subcommand\(\s*"(\w+)"', path.read_text(encoding="utf-8")))
    checkpoint = fields("checkpoint.proto")
    corpus = fields("manifest.proto") - {"name", "shard", "num_documents", "num_tokens", "bin_bytes", "bin_digest", "idx_digest"}  # described in words
    presets = {preset["name"] for preset in json.loads((ROOT / "CMakePresets.json").read_text(encoding="utf-8"))["configurePresets"]}
    options = set(re.findall(r"^(?:option\((TRIREME_\w+) |set\((TRIREME_\w+) .* CACHE )", (ROOT / "CMakeLists.txt").read_text(encoding="utf-8"), re.MULTILINE))
    options = {name for pair in options for name in pair if name}
    assert len(presets) > 3 and len(options) > 4, options
    assert len(readers) > 10 and len(verbs) > 10 and len(checkpoint) > 10 and len(corpus) > 5
    problems = []
    for what, names, where in (("the fuzzed reader", readers, "SECURITY.md"), ("the verb", verbs, "docs/verbs.md"), ("the field of the checkpoint's manifest", checkpoint, "docs/file_formats.md"),
                               ("the field of the corpus's manifest", corpus, "docs/file_formats.md"), ("the preset", presets, "docs/building.md"), ("the option", options, "docs/building.md")):
        problems += [f"{where} lacks {what} {name}" for name in sorted(names - in_code(where))]
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(readers)} fuzzed readers, {len(verbs)} verbs, {len(checkpoint) + len(corpus)} fields of manifests, {len(presets)} presets, {len(options)} options are on their pages")


if __name__ == "__main__":
    main()
