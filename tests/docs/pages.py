"""What the tests of the documentation share: the pages, and the parts of one page."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# A fenced block: ```INFO, lines, ```.
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.*?) *$", re.MULTILINE)


class Block:
    def __init__(self, page, line, info, text):
        self.page, self.line, self.text = page, line, text
        words = info.split()
        self.language, self.tags = (words[0], words[1:]) if words else ("", [])

    def where(self):
        return f"{self.page.name}:{self.line}"


class Page:
    def __init__(self, path, text=None):
        self.path = pathlib.Path(path)
        self.name = str(self.path.relative_to(ROOT)) if self.path.is_relative_to(ROOT) else str(path)
        self.text = self.path.read_text(encoding="utf-8") if text is None else text
        # Blocks become empty lines, so that line numbers stay.
        self.prose = FENCE.sub(lambda match: "\n" * match[0].count("\n"), self.text)

    def blocks(self, language):
        made = (Block(self, self.line_of(match.start()), match[1], match[2]) for match in FENCE.finditer(self.text))
        return [block for block in made if block.language == language]

    def line_of(self, position):
        return self.text.count("\n", 0, position) + 1

    def found(self, expression):
        """(line, first group) of each match outside fenced blocks."""
        return [(self.prose.count("\n", 0, match.start()) + 1, match[1]) for match in expression.finditer(self.prose)]

    def anchors(self):
        """The names that headings get on the usual hosting platforms."""
        seen, names = {}, set()
        for heading in HEADING.findall(self.prose):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
            name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
            count = seen.get(name, 0)
            seen[name] = count + 1
            names.add(name if count == 0 else f"{name}-{count}")
        return names


def pages():
    """Every page that a reader is led to, README.md first."""
    paths = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").rglob("*.md")]
    return [Page(path) for path in sorted(paths, key=lambda path: (path.name != "README.md" or path.parent != ROOT, str(path)))]


def page(name):
    return Page(ROOT / name)


def source_files(*suffixes):
    """Files of the tree itself: no build folders, nothing hidden but .ci and .github."""
    skipped = {".git", ".venv", "runs", "__pycache__"}
    found = []
    folders = [ROOT]
    while folders:
        for path in sorted(folders.pop().iterdir()):
            if path.is_symlink() or path.name in skipped or path.name.startswith("build"):
                continue
            if path.is_dir():
                folders.append(path)
            elif not suffixes or path.name.endswith(suffixes):
                found.append(path)
    return found
