"""Runs the commands of README.md and of the tutorials as they are written, and checks those of the other pages.

    commands_test.py TRIREME       TRIREME: the program that was built

A block ```sh of README.md or docs/tutorials/ runs in a scratch copy of docs/, configs/ and launch/, the blocks of a page one after another in one shell
that stops at the first error; tutorials share the folder, in the order of ORDER, since one goes on where another ended. A word behind `sh` says what a block
needs that is not here (```sh gpu, cluster, network, software): such a block, and every block of the other pages, is only checked: each `trireme VERB` must exist with
the options that are used, and a config of this tree that it trains or plans must be valid on the ranks that the command names. Blocks ```python of the tutorials
run in .venv where it has Transformers.
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time

from pages import ROOT, Page, pages

ORDER = ["quickstart", "pretrain_own_text", "fine_tune", "export_and_use", "many_nodes", "first_gpu_run"]
NEEDS = {"gpu", "cluster", "network", "software"}
# Readers have two cores for two ranks or more; a machine that tests several things at a time need not.
ENVIRONMENT = dict(
    os.environ,
    OMPI_ALLOW_RUN_AS_ROOT="1",
    OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
    OMPI_MCA_rmaps_base_oversubscribe="1",
    OMPI_MCA_hwloc_base_binding_policy="none",
    OMPI_MCA_btl_vader_single_copy_mechanism="none",
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
)
SECONDS = 600  # for all blocks of a page


def commands(text):
    """The commands of a block as lists of words: lines joined at backslashes, without comments, here-documents and what follows an operator of the shell."""
    found, end = [], None
    for line in text.replace("\\\n", " ").splitlines():
        if end is not None:
            end = None if line.strip() == end else end
            continue
        if match := re.search(r"<<-?'?(\w+)'?", line):
            end = match[1]
            line = line[: match.start()]
        try:
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = list(lexer)
        except ValueError as error:
            raise AssertionError(f"cannot be split into words ({error}): {line}") from None
        command = []
        for word in [*words, ";"]:
            if word in {";", "|", "&&", "||", "&", ">", "2>", "<", "(", ")"}:
                if command:
                    found.append(command)
                command = []
            else:
                command.append(word)
    return found


def trireme_call(command):
    """(ranks of mpirun or None, the words behind the program's name), or None for other commands."""
    names = [i for i, word in enumerate(command) if word == "trireme" or word.endswith("bin/trireme")]
    if not names or (command[0] not in {"mpirun", "srun"} and names[0] != 0):
        return None
    ranks = next((int(command[i + 1]) for i in range(names[0]) if command[i] == "-np" and command[i + 1].isdigit()), None)
    return ranks, command[names[0] + 1 :]


class Checker:
    """What the program says of its own options, asked once a verb."""

    def __init__(self, trireme):
        self.trireme, self.help = trireme, {}

    def options(self, verb):
        if tuple(verb) not in self.help:
            done = subprocess.run([self.trireme, *verb, "--help"], capture_output=True, text=True)
            self.help[tuple(verb)] = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", done.stdout)) if done.returncode == 0 else None
        return self.help[tuple(verb)]

    def problems(self, command):
        call = trireme_call(command)
        if call is None:
            return []
        ranks, words = call
        if not words or words[0].startswith("-"):
            return []
        verb = words[:2] if words[0] == "tokenizer" else words[:1]
        known = self.options(verb)
        if known is None:
            return [f"`trireme {' '.join(verb)}` does not exist"]
        used = [word.split("=")[0] for word in words if word.startswith("--")]
        found = [f"`trireme {' '.join(verb)}` has no option {option}" for option in used if option not in known]
        configs = [word for word in words[1:] if word.endswith(".textproto") and (ROOT / word).exists()]
        if not found and configs and verb[0] in {"train", "plan", "validate"}:
            overrides = [part for i, word in enumerate(words) if word == "--set" for part in ("--set", words[i + 1])]
            # A model in somebody's cache cannot be looked at here.
            if "model.from" not in str(overrides) and not any("from:" in (ROOT / config).read_text() for config in configs):
                asked = [int(words[i + 1]) for i, word in enumerate(words) if word == "--ranks" and words[i + 1].isdigit()]
                on = str((asked or [ranks or 1])[0])
                vocabulary = [] if "vocab_size" in str(overrides) else ["--set", "model.vocab_size=32000"]
                done = subprocess.run([self.trireme, "validate", *configs, *overrides, *vocabulary, "--ranks", on, "--without-data"], cwd=ROOT, capture_output=True, text=True)
                if done.returncode != 0:
                    found.append(f"`trireme validate` refuses {' '.join(configs)} on {on} ranks: {done.stderr.strip()}")
        return found


def scratch_copy(folder, trireme):
    for name in ("docs", "configs", "launch"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "build" / "bin").mkdir(parents=True)
    (folder / "build" / "bin" / "trireme").symlink_to(trireme)
    if (ROOT / ".venv").exists():
        (folder / ".venv").symlink_to(ROOT / ".venv")


def has_transformers():
    python = ROOT / ".venv" / "bin" / "python"
    return python.exists() and subprocess.run([python, "-c", "import transformers"], capture_output=True, env=ENVIRONMENT).returncode == 0


def run_page(page, blocks, folder):
    """What went wrong, or None."""
    script = "set -eo pipefail\n"
    for block in blocks:
        text = block.text if block.language == "sh" else f".venv/bin/python - <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK\n"
        script += f"echo '== {block.where()}'\n{text}"
    started = time.monotonic()
    try:
        done = subprocess.run(["bash", "-c", script], cwd=folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=SECONDS)
    except subprocess.TimeoutExpired as late:
        return f"{page.name}: its commands took more than {SECONDS} s:\n{(late.stdout or b'').decode(errors='replace')[-3000:]}"
    if done.returncode != 0:
        return f"{page.name}: a command ended with code {done.returncode}:\n{done.stdout[-5000:]}"
    print(f"{page.name}: {len(blocks)} blocks ran in {time.monotonic() - started:.0f} s")
    return None


def metrics_problems(folder):
    """Keys that runs recorded and docs/file_formats.md does not explain."""
    explained, kind = set(), ""
    for row in re.findall(r"^\| (?:`(\w+)`)? ?\| `(\w+)` \|", Page(ROOT / "docs" / "file_formats.md").text, re.MULTILINE):
        kind = row[0] or kind
        explained.add((kind, row[1]))
    recorded = set()
    for path in folder.rglob("metrics.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            recorded |= {(record["type"], key) for key in record if key != "type"}
    assert {("run", "config"), ("train", "loss"), ("eval", "eval_loss"), ("resume", "step"), ("gradient_norms", "norms")} <= recorded, recorded
    return [f"docs/file_formats.md: metrics.jsonl has {key} in lines of type {kind}, which is not explained" for kind, key in sorted(recorded - explained)]


def self_test():
    text = "# comment\n. launch/activate\ncat >x <<'END'\ntrireme nothing\nEND\nmpirun -np 2 trireme train a.textproto \\\n  --set 'b { c: 1 }' | tee log  # said\n"
    found = commands(text)
    assert [trireme_call(command) for command in found] == [None, None, None, (2, ["train", "a.textproto", "--set", "b { c: 1 }"]), None], found


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if shutil.which("mpirun") is None:
        print("SKIPPED: needs mpirun")
        sys.exit(77)
    self_test()
    trireme = pathlib.Path(sys.argv[1]).resolve()
    checker, problems, checked = Checker(trireme), [], 0
    tutorials = [Page(ROOT / "docs" / "tutorials" / f"{name}.md") for name in ORDER]
    missing = {path.stem for path in (ROOT / "docs" / "tutorials").glob("*.md")} - set(ORDER)
    assert not missing, f"ORDER lacks the tutorials {missing}"
    runnable = {str(page.path) for page in tutorials} | {str(ROOT / "README.md")}
    for page in pages():
        for block in page.blocks("sh"):
            unknown = set(block.tags) - NEEDS
            if unknown:
                problems.append(f"{block.where()}: a block needs {unknown}; known are {sorted(NEEDS)}")
            if block.tags or str(page.path) not in runnable:
                for command in commands(block.text):
                    checked += trireme_call(command) is not None
                    problems += [f"{block.where()}: {problem}" for problem in checker.problems(command)]
    print(f"{checked} calls of trireme that cannot run here have known verbs and options")
    for group in (tutorials, [Page(ROOT / "README.md")]):
        with tempfile.TemporaryDirectory(prefix="trireme-docs-") as name:
            folder = pathlib.Path(name)
            scratch_copy(folder, trireme)
            for page in group:
                blocks = [block for block in page.blocks("sh") if not block.tags]
                if page.blocks("python") and not has_transformers():
                    print(f"{page.name}: its Python is SKIPPED: no .venv with Transformers")
                else:
                    blocks = sorted([*blocks, *page.blocks("python")], key=lambda block: block.line)
                problem = run_page(page, blocks, folder) if blocks else None
                if problem:
                    problems.append(problem)
                    break  # Later tutorials go on from this one.
            else:
                problems += metrics_problems(folder) if group is tutorials else []
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
