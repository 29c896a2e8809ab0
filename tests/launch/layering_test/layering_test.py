"""Checks the picture of folders in docs/architecture.md against the sources: includes only go down it.

    layering_test.py ROOT          parses every source file below ROOT; prints what breaks the picture and exits 1 if anything does
    layering_test.py --self-test   runs the same rules on a made-up picture and files, some of them wrong
"""

import os
import pathlib
import re
import sys

TOPS = ["launch", "configs", "data", "kernels", "parallel", "models", "serving", "trainer"]
SOURCE_SUFFIXES = {".h", ".cc", ".cu", ".cuh"}
MOST_SOURCES = 15
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^">]+)[">]', re.MULTILINE)
# The code of parallel/ never names a model family; its comments may, as an example.
FAMILY = re.compile(r"llama|qwen|mistral|gemma", re.IGNORECASE)
COMMENT = re.compile(r"//.*")
# Of kernels, formats may use the records that need no tensors.
PLAIN_KERNELS = {"kernels/matrix/quantized_matrix.h", "kernels/base/nf4_math.h"}


def read_picture(text):
    """[(folder, sentence)], the highest first, of the first code block after "## Rooms"."""
    block = text.split("## Rooms", 1)[1].split("```")[1]
    return [tuple(line.split(None, 1)) for line in block.strip().splitlines()]


def problems_of_picture(picture):
    found = []
    for folder, sentence in picture:
        if "and also" in sentence:
            found.append(f'docs/architecture.md: {folder}: its sentence says "and also": it is two folders')
    folders = [folder for folder, _ in picture]
    found += [f"docs/architecture.md: {folder} stands twice" for folder in set(folders) if folders.count(folder) > 1]
    return found


def forbidden(folder, included):
    """Why a file of `folder` may not include the file, besides the order; or None."""
    top, target = folder.split("/")[0], included.split("/")[0]
    if {top, target} == {"kernels", "data"}:
        return "kernels and data do not know each other"
    if folder.startswith("models/formats") and (target == "parallel" or target == "kernels" and included not in PLAIN_KERNELS):
        return "models/formats knows no tensors and no ranks"
    return None


def problems_of(path, text, picture):
    """What is wrong in one file, as lines for a person."""
    floor = {folder: -i for i, (folder, _) in enumerate(picture)}
    folder, found = os.path.dirname(path), []
    for match in INCLUDE.finditer(text):
        quote, included = match.groups()
        line = text.count("\n", 0, match.start()) + 1
        ours = included.split("/")[0] in TOPS and "/" in included
        target = os.path.dirname(included)
        if not ours:
            if quote == '"':
                found.append(f'{path}:{line}: #include "{included}" names no folder; includes are relative to the root, others take <>')
        elif quote == "<":
            found.append(f"{path}:{line}: #include <{included}> is ours; write it with quotes, so that this test sees its folder")
        elif target not in floor:
            found.append(f"{path}:{line}: {target}/ is not in the picture of docs/architecture.md")
        elif floor[target] > floor[folder]:
            found.append(f"{path}:{line}: {folder}/ must not include {included}, which stands above it")
        elif reason := forbidden(folder, included):
            found.append(f"{path}:{line}: {folder}/ must not include {included}: {reason}")
    if folder.startswith("parallel"):
        for match in FAMILY.finditer(code := COMMENT.sub("", text)):
            line = code.count("\n", 0, match.start()) + 1
            found.append(f"{path}:{line}: parallel/ must not name a model family: {match.group()}")
    return found


def check_tree(root):
    picture = read_picture((root / "docs" / "architecture.md").read_text(encoding="utf-8"))
    sentences = dict(picture)
    problems, num_files, sources = problems_of_picture(picture), 0, {}
    for top in TOPS:
        for file in sorted(p for p in (root / top).rglob("*") if p.suffix in SOURCE_SUFFIXES):
            path = file.relative_to(root).as_posix()
            folder = os.path.dirname(path)
            sources.setdefault(folder, []).extend([path] if file.suffix in {".cc", ".cu"} else [])
            if folder not in sentences:
                problems.append(f"{path}: its folder is not in the picture of docs/architecture.md")
                continue
            num_files += 1
            problems += problems_of(path, file.read_text(encoding="utf-8"), picture)
    for folder, sentence in picture:
        if folder not in sources:
            problems.append(f"docs/architecture.md: {folder}/ has no source files; has it moved?")
        elif len(sources[folder]) > MOST_SOURCES and "many because" not in sentence:
            problems.append(f'{folder}/: {len(sources[folder])} source files; cut it, or say in the picture "(many because ...)"')
    print("\n".join(problems) or f"{num_files} files keep the order of {len(picture)} folders")
    return 1 if problems else 0


def self_test():
    picture = read_picture("# X\n## Rooms\nwords\n```\n" + "\n".join(f"{f}   what it is for" for f in (
        "trainer/loop", "models/spec", "parallel/comm", "models/formats/hf", "kernels/matrix", "kernels/base", "data/text", "launch/base")) + "\n```\n")
    right = {
        "trainer/loop/a.cc": '#include "models/formats/hf/x.h"\n#include <ATen/core/Tensor.h>\n',
        "models/spec/a.h": '#include "parallel/comm/x.h"\n  #  include "models/spec/b.h"\n',
        "models/formats/hf/a.cc": '#include "launch/base/file.h"\n#include "kernels/matrix/quantized_matrix.h"\n',
        "parallel/comm/a.cc": '// #include is a word here, like Llama\n#include "kernels/base/ops.h"\n',
    }
    wrong = {
        "launch/base/a.cc": '#include "data/text/x.h"\n',
        "kernels/base/a.cu": '#include "data/text/x.h"\n',
        "data/text/a.h": '  # include "kernels/base/x.h"\n',
        "kernels/base/a.h": '#include "kernels/matrix/x.h"\n',
        "parallel/comm/a.h": '#include "models/spec/decoder.h"\n',
        "parallel/comm/b.cc": "bool is_llama3 = false;\n",
        "models/spec/a.cc": '#include "trainer/loop/model.h"\n',
        "models/formats/hf/a.h": '#include "kernels/base/ops.h"\n',
        "trainer/loop/a.cc": '#include "ops.h"\n',
        "trainer/loop/b.cc": "#include <kernels/base/ops.h>\n",
        "trainer/loop/c.cc": '#include "trainer/attic/x.h"\n',
    }
    misses = [f"refused but right: {p}" for p, text in right.items() if problems_of(p, text, picture)]
    misses += [f"passed but wrong: {p}" for p, text in wrong.items() if len(problems_of(p, text, picture)) != 1]
    misses += ["two rooms in one pass"] if not problems_of_picture([("a", "does this and also that")]) else []
    print("\n".join(misses) or f"{len(right)} right files pass, {len(wrong)} wrong ones are refused")
    return 1 if misses else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(self_test() if sys.argv[1] == "--self-test" else check_tree(pathlib.Path(sys.argv[1])))
