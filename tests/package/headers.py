"""headers.py FOLDER: the installed headers are exactly what the contract's headers include, all the way down."""
import pathlib
import re
import sys

CONTRACT = [
    "trainer/main.h",
    "models/engine/extensions.h",
    "models/spec/family.h",
    "models/parts/draft.h",
    "models/parts/projections.h",
    "parallel/layers/functions.h",
    "kernels/attention/attention.h",
]

folder = pathlib.Path(sys.argv[1])
installed = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
needed, waiting = set(), list(CONTRACT)
while waiting:
    header = waiting.pop()
    if header not in needed:
        needed.add(header)
        waiting += re.findall(r'^#include "([^"]+)"', (folder / header).read_text(encoding="utf-8"), re.MULTILINE)
if installed != needed:
    sys.exit(f"missing: {sorted(needed - installed)}; nobody needs: {sorted(installed - needed)}")
print(f"{len(installed)} headers, all needed by {', '.join(CONTRACT)}")
