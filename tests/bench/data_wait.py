"""The part of a run's training steps that was spent waiting for data, from its metrics.jsonl. Exit code 1 when it is 1 % or more."""

import argparse
import json
import sys


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("metrics", help="run_dir/metrics.jsonl")
    args = parser.parse_args()
    with open(args.metrics) as file:
        lines = [json.loads(line) for line in file]
    steps = [line for line in lines if "data_wait_ms" in line]
    assert steps, f"{args.metrics} holds no training line"
    waited = sum(line["data_wait_ms"] for line in steps)
    total = sum(line["step_ms"] for line in steps)
    print(f"data wait: {waited:.1f} ms of {total / 1e3:.1f} s in {len(steps)} steps, {100 * waited / total:.3f} %")
    return 0 if waited < 0.01 * total else 1


if __name__ == "__main__":
    sys.exit(main())
