"""Checks that what the pages point to is there.

    links_test.py              every relative link with its anchor, every source path in `code` and every file name in `code`
    links_test.py --fix        writes the new paths of files that were moved into the pages, where git or the name tells which it is
    links_test.py --self-test  the same rules on made-up pages, some of them wrong
"""

import re
import subprocess
import sys

from pages import CODE_SPAN, LINK, ROOT, Page, pages, source_files

FOLDERS = ("launch", "configs", "data", "kernels", "models", "parallel", "serving", "trainer", "tests", "docs", "cmake", ".ci", ".github")
# A path in `code`, alone or at the start of a command; * and NAME stand for anything.
SOURCE_PATH = re.compile(rf"^((?:{'|'.join(map(re.escape, FOLDERS))})/[\w.*/-]*)(?::\d+)?(?: .*)?$")
# Names of the code that pages lead contributors to: `CheckRest`, `Recipe::LearningRate`, `Weight::full()`.
IDENTIFIER = re.compile(r"^(?:\w+::)*(\w+)(?:\(\))?$")
STEPS = re.compile(r"^(docs/(add_a_\w+|index)|CONTRIBUTING)\.md$")
FILE_NAME = re.compile(r"^[\w*]+\.(?:h|cc|cu|cuh|proto|py|sh|cmake|sbatch)$")


def exists(path):
    pattern = path.replace("NAME", "*").rstrip("/")
    return any(True for _ in ROOT.glob(pattern)) if "*" in pattern else (ROOT / pattern).exists()


def problems_of(page, names, words=()):
    """[(line, what is wrong, path that is missing or None)]; words: all that stand in sources."""
    found = []
    for line, target in page.found(LINK):
        if re.match(r"^[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.path.parent / path).resolve() if path else page.path
        if path and not file.exists():
            found.append((line, f"a link leads to {path}, which does not exist", None))
        elif anchor and file.suffix == ".md" and anchor not in (page if file == page.path else Page(file)).anchors():
            found.append((line, f"a link leads to {target}, but no heading of {file.name} is called so", None))
    for line, code in page.found(CODE_SPAN):
        if match := SOURCE_PATH.match(code):
            if not exists(match[1]):
                found.append((line, f"names `{match[1]}`, which does not exist", match[1]))
        elif FILE_NAME.match(code) and "*" not in code and code.replace("NAME", "") == code and code not in names:
            found.append((line, f"names `{code}`, and no file is called so", None))
        elif STEPS.match(page.name) and (match := IDENTIFIER.match(code)) and re.search("[A-Z].*[A-Z]|::|\\(", code) and match[1] not in words:
            if code not in {"NAME", "SOURCE", "PascalCase"}:
                found.append((line, f"names `{code}`, and no source does", None))
    return found


def renames(log):
    """{old path: new path} of what `git log --name-status` prints, newest first."""
    found = {}
    for old, new in re.findall(r"^R\d*\t([^\t\n]+)\t([^\t\n]+)$", log, re.MULTILINE):
        found.setdefault(old, found.get(new, new))
    return found


def renames_of_this_tree():
    done = subprocess.run(["git", "log", "-m", "-M", "--diff-filter=R", "--name-status", "--format="], cwd=ROOT, capture_output=True, text=True)
    return renames(done.stdout) if done.returncode == 0 else {}


def moved(path, names, renamed):
    """Where the file of this path is now, if that is certain: git says so, or one file alone has the name."""
    if path in renamed and (ROOT / renamed[path]).exists():
        return renamed[path]
    now = names.get(path.rsplit("/", 1)[-1], [])
    return now[0] if len(now) == 1 else None


def self_test():
    names = {"exit_code.h": ["launch/exit_code.h"], "links_test.py": ["tests/docs/links_test.py"]}
    text = """# A page
## What `it` says: twice
## What it says, twice
[good](#what-it-says-twice) [second](#what-it-says-twice-1) [page](README.md) [outside](https://example.org/x#y)
`README.md` `tests/docs/links_test.py` `tests/docs/*_test.py --fix` `exit_code.h` `a / b`
```
[not looked at](nowhere.md) `tests/nowhere.py`
```
[bad](#nowhere)
[bad](docs/nowhere.md)
`tests/docs/nowhere.py`
`nowhere.cc`
`trainer/elsewhere/exit_code.h`
"""
    found = problems_of(Page(ROOT / "made_up.md", text), names)
    assert [line for line, _, _ in found] == [9, 10, 11, 12, 13], found
    steps = Page(ROOT / "docs" / "add_a_thing.md", "`KnownName` `Known::Name()` `plain`\n`UnknownName`\n")
    assert [line for line, _, _ in problems_of(steps, names, {"KnownName", "Name"})] == [2]
    assert moved("trainer/elsewhere/exit_code.h", names, {}) == "launch/exit_code.h"
    assert moved("tests/docs/nowhere.py", names, {}) is None
    renamed = renames("R100\tlaunch/b.h\tREADME.md\nM\tother\nR090\tlaunch/a.h\tlaunch/b.h\n")
    assert renamed == {"launch/b.h": "README.md", "launch/a.h": "README.md"} and moved("launch/a.h", names, renamed) == "README.md"
    print("the rules find what is wrong in made-up pages")


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    names = {}
    for path in source_files():
        names.setdefault(path.name, []).append(str(path.relative_to(ROOT)))
    words = set()
    for path in source_files(".h", ".cc", ".cu", ".proto", ".py", ".cmake", ".txt", ".sh"):
        words |= set(re.findall(r"\w+", path.read_text(encoding="utf-8", errors="replace")))
    renamed, count, wrong = None, 0, 0
    for page in pages():
        text = page.text
        for line, what, missing in problems_of(page, names, words):
            if missing and renamed is None:
                renamed = renames_of_this_tree()
            now = moved(missing, names, renamed) if missing else None
            if now and "--fix" in sys.argv:
                text = text.replace(f"`{missing}", f"`{now}")
                print(f"{page.name}:{line}: `{missing}` is now `{now}`")
                continue
            wrong += 1
            print(f"{page.name}:{line}: {what}" + (f"; it is `{now}` now (links_test.py --fix)" if now else ""))
        if text != page.text:
            page.path.write_text(text, encoding="utf-8")
        count += 1
    if wrong:
        sys.exit(f"{wrong} things that the pages point to are not there")
    print(f"{count} pages: every link and path leads somewhere")


if __name__ == "__main__":
    main()
