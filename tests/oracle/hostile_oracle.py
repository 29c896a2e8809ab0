"""Malformed files by the hundred: our readers and the packages `safetensors` and `gguf` accept and refuse the same ones.

We never accept what the package refuses. What we refuse beside that is listed below, and why. Where both accept, both see the same tensors.

Standalone: hostile_oracle.py [--tool build/bin/reader_tool]
"""

import argparse
import collections
import json
import os
import re
import signal
import subprocess
import sys
import tempfile

from hostile_files import gguf_files, safetensors_files

SECONDS_PER_FILE = 0.5  # of this process, however busy the machine is. The package gguf walks over an array of 2^62 elements that are not there.

# Our message -> why we refuse what the package takes.
STRICTER = {
    "safetensors": {
        r'names ".*" twice': "of two values the package takes the last",
        r"does not have exactly dtype, shape and data_offsets": "keys that nobody writes are more likely damage; a list for an object too",
        r"does not begin with '\{'": "the format says that it must; the package takes white space before it",
        r"nested too deeply": "no header needs more than three levels",
        r"__metadata__ is not an object": "null for an object",
        r"has unknown dtype": "dtypes of less than a byte have no place here",
        r"has a shape that overflows": "an extent of 0 makes the package forget what is beside it",
    },
    "gguf": {
        r"begins at byte .* where .* was expected": "ggml's own reader refuses holes, overlaps and another order",
        r"bytes follow the last tensor": "something is missing from the list, or does not belong there",
        r"is an array of arrays": "ggml refuses it",
        r"is a bool of value": "ggml's type has two values",
        r"has \d+ dimensions; at most 4": "ggml's limit",
        r"has extent ": "ggml has no empty tensors",
        r"has a name of \d+ bytes": "the format's limits",
        r"general\.alignment is not a u32 power of two up to": "above 1 MiB only padding is left",
        r"\(a big-endian file\)": "no engine runs on such a machine",
        r"needs \d+ bytes at byte \d+, \d+ are left": "the package reads past the end of the file as nothing",
        r"claims \d+ (keys|tensors|elements)": "as above",
        r"is an array of unknown type": "an empty one, which the package does not look at",
        r"begins at byte \d+ of the data$": "the package counts modulo 2^64",
        r"names the header's own fields": "the package refuses three of these names",
        r"has unknown type 9;": "Q8_1 exists in memory only",
        r"has unknown type 4[01];": "NVFP4 and Q1_0 are not read here",
    },
}


SLOW = "slow"


class TooSlow(Exception):
    pass


def safetensors_tensors(path):
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        return sorted([name, piece.get_dtype(), list(piece.get_shape())] for name, piece in slices.items())


def gguf_tensors(path):
    import gguf

    reader = gguf.GGUFReader(path)
    return sorted([t.name, t.tensor_type.name, [int(n) for n in reversed(t.shape)], int(t.data_offset), int(t.data_offset + t.n_bytes)] for t in reader.tensors)


def in_time(read, path):
    """The tensors, None when the package refuses the file; TooSlow is raised after SECONDS_PER_FILE, wherever this is then."""

    def stop(number, frame):
        raise TooSlow

    previous = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS_PER_FILE)
    try:
        return read(path)
    except BaseException as error:  # A panic of the package safetensors is no Exception.
        if isinstance(error, (KeyboardInterrupt, TooSlow)):
            raise
        return None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)


def by_package(read, path):
    """As in_time, or SLOW."""
    try:
        return in_time(read, path)
    except TooSlow:
        return SLOW


def by_us(tool, format_name, paths):
    answers = []
    for begin in range(0, len(paths), 200):
        done = subprocess.run([tool, format_name, *paths[begin : begin + 200]], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"reader_tool {format_name} ended with {done.returncode}: {done.stderr[-2000:]}")
        answers += map(json.loads, done.stdout.splitlines())
    return answers


def check_format(checks, tool, format_name, files, read):
    counts, stricter, unlisted, laxer, different, slow = collections.Counter(), collections.Counter(), [], [], [], 0
    with tempfile.TemporaryDirectory(prefix="trireme_hostile_") as folder:
        paths = []
        for number, (_, content) in enumerate(files):
            paths.append(os.path.join(folder, f"{number}.{format_name}"))
            with open(paths[-1], "wb") as file:
                file.write(content)
        for (category, content), path, ours in zip(files, paths, by_us(tool, format_name, paths)):
            theirs = by_package(read, path)
            example = f"{category}: {content[:200]!r}"
            if theirs == SLOW:
                # It might take the file in the end, or not; a reason that it would show is shown on faster machines.
                slow += 1
                stricter.update(pattern for pattern in STRICTER[format_name] if re.search(pattern, ours.get("error", "")))
                continue
            counts[(theirs is not None, "tensors" in ours)] += 1
            if theirs is None and "tensors" in ours:
                laxer.append(example)
            elif theirs is not None and "error" in ours:
                reason = next((pattern for pattern in STRICTER[format_name] if re.search(pattern, ours["error"])), None)
                stricter[reason] += 1
                if reason is None:
                    unlisted.append(f"{ours['error']}: {example}")
            elif theirs is not None:
                tensors = sorted(t[: len(theirs[0])] for t in ours["tensors"]) if theirs else ours["tensors"]
                if tensors != theirs:
                    different.append(example)
            if category == "good":
                checks.equal(f"{format_name}: a good file is taken by both", [theirs is not None, "tensors" in ours], [True, True])
    print(f"      {format_name}: {len(files)} files; taken by both {counts[True, True]}, by none {counts[False, False]}, only by the package {counts[True, False]}, not decided by it in {SECONDS_PER_FILE} s {slow}")
    for reason, count in sorted(stricter.items(), key=str):
        print(f"      {count} times: {reason}: {STRICTER[format_name].get(reason)}")
    checks.equal(f"{format_name}: files that only we take", laxer[:5], [])
    checks.equal(f"{format_name}: files that only the package takes, for a reason that is not listed", unlisted[:5], [])
    checks.equal(f"{format_name}: files in which we see other tensors", different[:5], [])
    unused = sorted(set(STRICTER[format_name]) - set(stricter))
    checks.equal(f"{format_name}: reasons listed that no file shows", unused, [])


def check(checks, tool):
    check_format(checks, tool, "safetensors", list(safetensors_files()), safetensors_tensors)
    check_format(checks, tool, "gguf", list(gguf_files()), gguf_tensors)


def run(checks, probe):
    """As run_all.py calls it: the tool lies beside the probe."""
    check(checks, os.path.join(os.path.dirname(probe.binary), "reader_tool"))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tool", default="build/bin/reader_tool", help="the binary of tests/models/formats/reader_tool.cc")
    args = parser.parse_args()
    from checks import Checks

    checks = Checks()
    check(checks, os.path.abspath(args.tool))
    print(f"{checks.total} checks, {len(checks.failed)} failed")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
