"""Our tokenizer against the package `tokenizers`, one thread each, taking turns on the same files."""

import argparse
import os
import statistics
import subprocess
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
from tokenizers import Tokenizer


def package_rate(tokenizer, texts, size):
    best = 1e30
    for _ in range(3):
        start = time.perf_counter()
        for text in texts:
            tokenizer.encode(text, add_special_tokens=False)
        best = min(best, time.perf_counter() - start)
    return size / best


def our_rate(args):
    command = [args.encode_main, args.tokenizer, "--speed", *args.files]
    words = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.split()
    return int(words[0]) / float(words[4])  # "N bytes N ids S s", the best of three passes


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer", help="tokenizer.json")
    parser.add_argument("files", nargs="+", help="text")
    parser.add_argument("--encode-main", default="build/bin/encode_main", help="the binary of tests/data/encode_main.cc")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    texts = [open(name, "rb").read().decode(errors="replace") for name in args.files]
    size = sum(os.path.getsize(name) for name in args.files)
    tokenizer = Tokenizer.from_file(args.tokenizer)
    ours, theirs = [], []
    for _ in range(args.rounds):
        ours.append(our_rate(args))
        theirs.append(package_rate(tokenizer, texts, size))
    ours, theirs = statistics.median(ours), statistics.median(theirs)
    print(f"trireme {ours / 1e6:.2f} MB/s, tokenizers {theirs / 1e6:.2f} MB/s on one thread: {ours / theirs:.2f}x")


if __name__ == "__main__":
    main()
