#!/usr/bin/env python3
"""Makes conversations to fine-tune on out of this machine's own Debian package lists.

    launch/package_chat.py [--output runs/package_chat] [--train 4000] [--heldout 300]

writes DIR/train.jsonl, DIR/heldout.jsonl (packages whose sources appear in no training sample) and DIR/shuffled.jsonl: the training questions
with each other's answers, a control from which manners can be learned but no facts. The same lists give the same files. Needs apt-cache
or /var/lib/dpkg/status; the standard library only.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys

QUESTIONS = ["What does the package {} do?", "What is {} in Debian?", "Tell me about the Debian package {}.", "What is the package {} for?"]
SYSTEM = "You know Debian's packages."


def package_lists():
    """The text of all package entries known here."""
    try:
        done = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True)
        if "\nDescription" in done.stdout:
            return done.stdout
    except (OSError, subprocess.CalledProcessError):
        pass
    path = "/var/lib/dpkg/status"
    if not os.path.exists(path):
        sys.exit("package_chat: neither apt-cache nor /var/lib/dpkg/status is here; this needs a Debian machine")
    with open(path, encoding="utf-8") as file:
        return file.read()


def packages(text):
    """Name, source, section and short description of each package, once each, by name."""
    found = {}
    for entry in text.split("\n\n"):
        fields = {}
        for line in entry.split("\n"):
            if line[:1] not in ("", " ") and ": " in line:
                key, value = line.split(": ", 1)
                fields.setdefault(key, value.strip())
        name, description = fields.get("Package"), fields.get("Description", fields.get("Description-en"))
        section = fields.get("Section", "").split("/")[-1]
        if not name or not description or not section or name.endswith("-dbgsym") or "dummy" in description or "transitional" in description:
            continue
        found[name] = {"name": name, "source": fields.get("Source", name).split(" ")[0], "section": section, "description": description.rstrip(".")}
    return [found[name] for name in sorted(found)]


def fraction(text):
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12


def answer(package):
    return (f"{package['name']}: {package['description']}. It belongs to the section {package['section']}; "
            f"install it with `apt install {package['name']}`.")


def question(package):
    index = int(fraction("question " + package["name"]) * len(QUESTIONS))
    return QUESTIONS[index].format(package["name"])


def conversation(asked, answered):
    return {"messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question(asked)},
                         {"role": "assistant", "content": answer(answered)}]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/package_chat", help="folder for the files (default: %(default)s)")
    parser.add_argument("--train", type=int, default=4000, help="training conversations (default: %(default)s)")
    parser.add_argument("--heldout", type=int, default=300, help="held-out conversations (default: %(default)s)")
    args = parser.parse_args()

    # By hash: which packages are taken, and their order, does not depend on the others.
    known = sorted(packages(package_lists()), key=lambda package: fraction(package["name"]))
    heldout = [package for package in known if fraction("source " + package["source"]) < 0.1][: args.heldout]
    train = [package for package in known if fraction("source " + package["source"]) >= 0.1][: args.train]
    if not heldout or len(train) < 2:
        sys.exit(f"package_chat: only {len(known)} packages are known here; run `apt-get update` first")
    shuffled = train[:]
    random.Random(1).shuffle(shuffled)
    files = {"train": [conversation(p, p) for p in train], "heldout": [conversation(p, p) for p in heldout],
             "shuffled": [conversation(asked, answered) for asked, answered in zip(train, shuffled)]}
    os.makedirs(args.output, exist_ok=True)
    for name, samples in files.items():
        path = os.path.join(args.output, f"{name}.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
        print(f"{path}: {len(samples)} conversations")


if __name__ == "__main__":
    main()
