"""Reads the TensorBoard events of a run with TensorBoard's own reader and compares them with metrics.jsonl.

usage: tensorboard_oracle.py RUN_DIR     (needs the tensorboard package)
"""

import json
import math
import pathlib
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TAGS = {
    "train/loss": ("train", "loss"),
    "train/grad_norm": ("train", "grad_norm"),
    "train/learning_rate": ("train", "learning_rate"),
    "train/tokens": ("train", "tokens"),
    "train/tokens_per_second": ("train", "tokens_per_second"),
    "eval/loss": ("eval", "eval_loss"),
}


def main(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    seen = set(events.Tags()["scalars"])
    compared = 0
    for tag, (kind, key) in TAGS.items():
        expected = {line["step"]: float(line[key]) for line in lines if line["type"] == kind}
        found = {event.step: event.value for event in events.Scalars(tag)} if tag in seen else {}
        assert found.keys() == expected.keys(), f"{tag}: steps {sorted(found)} instead of {sorted(expected)}"
        for step, value in expected.items():
            same = math.isnan(value) and math.isnan(found[step]) or math.isclose(value, found[step], rel_tol=1e-6)
            assert same, f"{tag} at step {step}: {found[step]} instead of {value}"
            compared += 1
    assert compared > 0, "nothing to compare"
    print(f"tensorboard reads {len(seen)} tags; {compared} values agree with metrics.jsonl")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
