"""Checks that includes only go down: launch < configs < {kernels, data} < parallel < models < trainer (docs/architecture.md).

    layering_test.py ROOT          parses every source file below ROOT; prints each offending include and exits 1 if there is one
    layering_test.py --self-test   runs the same rules on made-up files, some of them wrong
"""

import pathlib
import re
import sys

# What a folder may include besides itself. The longest matching folder counts, so models/formats has rules of its own.
ALLOWED = {
    "launch": set(),
    "configs": {"launch"},
    "kernels": {"launch", "configs"},
    "data": {"launch", "configs"},
    "parallel": {"launch", "configs", "kernels", "data"},
    "models": {"launch", "configs", "kernels", "data", "parallel", "models/formats"},
    "models/formats": {"launch", "configs", "data", "kernels"},  # of kernels: plain records, for it is built without libtorch
    "trainer": {"launch", "configs", "kernels", "data", "parallel", "models", "models/formats"},
}
SOURCE_SUFFIXES = {".h", ".cc", ".cu", ".cuh"}
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^">]+)[">]', re.MULTILINE)
# The code of parallel/ never names a model family; its comments may, as an example.
FAMILY = re.compile(r"llama|qwen|mistral|gemma", re.IGNORECASE)
COMMENT = re.compile(r"//.*")


def layer_of(path):
    """The layer that a path relative to the root belongs to, or None."""
    matching = [layer for layer in ALLOWED if path.startswith(layer + "/")]
    return max(matching, key=len) if matching else None


def problems_of(path, text):
    """What is wrong in one file, as lines for a person."""
    layer = layer_of(path)
    found = []
    for match in INCLUDE.finditer(text):
        quote, included = match.groups()
        line = text.count("\n", 0, match.start()) + 1
        target = layer_of(included)
        if target is None:
            if quote == '"':
                found.append(f'{path}:{line}: #include "{included}" names no layer; includes are relative to the root, others take <>')
        elif quote == "<":
            found.append(f"{path}:{line}: #include <{included}> is ours; write it with quotes, so that this test sees a layer")
        elif target != layer and target not in ALLOWED[layer]:
            found.append(f"{path}:{line}: {layer}/ must not include {included}; it may use {', '.join(sorted(ALLOWED[layer])) or 'nothing of ours'}")
    if layer == "parallel":
        for match in FAMILY.finditer(code := COMMENT.sub("", text)):
            line = code.count("\n", 0, match.start()) + 1
            found.append(f"{path}:{line}: parallel/ must not name a model family: {match.group()}")
    return found


def check_tree(root):
    problems, num_files = [], 0
    for layer in {layer.split("/")[0] for layer in ALLOWED}:
        files = sorted(p for p in (root / layer).rglob("*") if p.suffix in SOURCE_SUFFIXES)
        if not files:
            problems.append(f"{layer}/: no source files; has the folder moved?")
        num_files += len(files)
        for file in files:
            problems += problems_of(file.relative_to(root).as_posix(), file.read_text(encoding="utf-8"))
    print("\n".join(problems) or f"{num_files} files keep the order")
    return 1 if problems else 0


def self_test():
    right = {
        "trainer/a.cc": '#include "models/formats/x.h"\n#include <ATen/core/Tensor.h>\n',
        "models/a.h": '#include "parallel/comm/x.h"\n  #  include "models/b.h"\n',
        "models/formats/a.cc": '#include "launch/base/file.h"\n',
        "parallel/a.cc": '// #include is a word here, like Llama\n#include "kernels/base/ops.h"\n',
    }
    wrong = {
        "launch/a.cc": '#include "configs/x.h"\n',
        "kernels/a.cu": '#include "data/x.h"\n',
        "data/a.h": '  # include "kernels/x.h"\n',
        "parallel/a.h": '#include "models/blocks/decoder.h"\n',
        "parallel/b.cc": "bool is_llama3 = false;\n",
        "models/a.cc": '#include "models/engine/engine.h"\n',
        "models/formats/a.h": '#include "parallel/comm/mesh.h"\n',
        "trainer/a.cc": '#include "ops.h"\n',
        "trainer/b.cc": "#include <kernels/base/ops.h>\n",
    }
    misses = [f"refused but right: {p}" for p, text in right.items() if problems_of(p, text)]
    misses += [f"passed but wrong: {p}" for p, text in wrong.items() if len(problems_of(p, text)) != 1]
    print("\n".join(misses) or f"{len(right)} right files pass, {len(wrong)} wrong ones are refused")
    return 1 if misses else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(self_test() if sys.argv[1] == "--self-test" else check_tree(pathlib.Path(sys.argv[1])))
