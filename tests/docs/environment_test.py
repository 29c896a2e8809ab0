"""Checks that docs/environment.md names every environment variable that the tree reads or sets, and none that it does not.

C++: names given to getenv, setenv and unsetenv, and every constant in capitals of a file that gives it something else. Python: names beside os.environ, and of a file that
uses it every one that begins as known variables do. Shell: what is exported, set for one command or read without being set before. CMake: ENVIRONMENT
properties of tests.
"""

import re
import sys

from pages import ROOT, page, source_files

NAME = r"(?:OMPI_MCA_\w+|[A-Z][A-Z0-9_]{2,})"
KNOWN_PREFIX = r"(?:TRIREME|OMPI|OMP|HF|HUGGINGFACE|NCCL|CUDA|MKL|NVIDIA|TORCH|TOKENIZERS|MALLOC|GLOO|XDG|GTEST|CCACHE)_\w+"
# What a shell itself sets or what is no variable of ours to explain.
SHELL_OWN = {"BASH_SOURCE", "BASH_REMATCH", "BASH_VERSION", "CDPATH", "END", "PATH", "POSIXLY_CORRECT", "PWD", "SECONDS", "ZSH_VERSION"}


def in_cpp(text):
    found = set(re.findall(rf'\b(?:get|set|unset)env\(\s*"({NAME})"', text))
    if re.search(r'getenv\(\s*[^"\s]', text):
        found |= set(re.findall(rf'"({NAME})"', text))
    return found


def in_python(text):
    if "environ" not in text:
        return set()
    found = set(re.findall(rf"\b({KNOWN_PREFIX})\b", text))
    return found | set(re.findall(rf'environ(?:\.\w+)?[\[(]\s*["\']({NAME})["\']', text))


def in_shell(text):
    # Comments name variables of other programs; the rest of a line is what counts.
    code = "\n".join(re.sub(r"(^|\s)#.*", "", line) for line in text.splitlines())
    exported = set()
    for line in re.findall(r"^\s*export ([^-\n]*)$", code, re.MULTILINE):
        exported |= set(re.findall(rf"\b({NAME})=", line))
    for_one_command = set(re.findall(rf"(?:^\s*|&& |; |\()(?:env )?({NAME})=\S+ +[\w\"$./]", code, re.MULTILINE))
    assigned = set(re.findall(rf"(?:^|[;\s(])(?:local |readonly )?({NAME})=", code))
    read = set(re.findall(rf"\$\{{?({NAME})", code))
    return (exported | for_one_command | (read - assigned)) - SHELL_OWN


def in_cmake(text):
    found = set(re.findall(rf"\$ENV\{{({NAME})\}}", text))
    for properties in re.findall(r'ENVIRONMENT\s+((?:"[^"]*"|[^\s)"]+))', text):
        found |= set(re.findall(rf"\b({NAME})=", properties))
    return found


def is_shell(path):
    return path.suffix in {".sh", ".sbatch"} or path.parent.name == ".ci" or path.name == "activate"


def used_in(path):
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix in {".h", ".cc", ".cu"}:
        return in_cpp(text)
    if path.suffix == ".py" and path.parent.name != "docs":
        return in_python(text)
    if path.suffix == ".cmake" or path.name == "CMakeLists.txt":
        return in_cmake(text)
    return in_shell(text) if is_shell(path) else set()


def self_test():
    assert in_cpp('getenv("TRIREME_X"); setenv("TRIREME_Y", "1", 0); "NOT_THIS"') == {"TRIREME_X", "TRIREME_Y"}
    assert in_cpp('f(getenv(name)); {"HF_ONE", "TWO_HERE"}') == {"HF_ONE", "TWO_HERE"}
    assert in_python('os.environ.get("PLAIN")\nE = dict(OMPI_A="1")\nCONSTANT = 3') == {"PLAIN", "OMPI_A"}
    assert in_shell('OWN=1\nexport SET_HERE=1 TOO=2\n# $NOT_READ\necho ${READ:-x} $OWN\nFOR_ONE=7 command\n') == {"SET_HERE", "TOO", "READ", "FOR_ONE"}
    assert in_cmake('PROPERTIES ENVIRONMENT "A_ONE=1;B_TWO=2" LABELS "C_NOT=1"') == {"A_ONE", "B_TWO"}


def main():
    self_test()
    found = {}
    for path in source_files():
        for name in used_in(path):
            found.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert {"TRIREME_CPU", "TRIREME_FUZZ_SECONDS", "HF_HUB_CACHE", "OMPI_ALLOW_RUN_AS_ROOT"} <= set(found), sorted(found)
    text = page("docs/environment.md").text
    written, mentioned = set(re.findall(rf"^\| `({NAME})`", text, re.MULTILINE)), set(re.findall(rf"`({NAME})\b", text))
    everything = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in source_files(".cc", ".h", ".cu", ".py", ".sh", ".sbatch", ".txt", ".cmake", "run", "activate")
                           if "docs" not in path.relative_to(ROOT).parts)
    problems = [f"{name} is missing from docs/environment.md; it is used in {', '.join(places)}" for name, places in sorted(found.items()) if name not in mentioned]
    problems += [f"docs/environment.md explains {name}, which nothing in the tree mentions" for name in sorted(written) if name not in everything]
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(found)} environment variables are explained")


if __name__ == "__main__":
    main()
