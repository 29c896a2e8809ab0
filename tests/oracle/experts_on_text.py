"""Loads of experts on real text: what evens them out ends below 1.5 times the mean, and at most at 0.6 of what they are without it.

The mixture of configs/recipes/quickstart_experts.textproto, made smaller: Qwen3-MoE without and with the loss of uneven loads, GLM-4.5 without and with biases
that follow loads. Loads are those of each layer's busiest expert, as multiples of the mean, over the last steps; the worst layer counts. Needs a finished quickstart
and takes some 10 minutes on 2 cores:
  .venv/bin/python tests/oracle/experts_on_text.py --trireme build/bin/trireme
"""

import argparse
import json
import os
import sys
import tempfile

SKIPPED = 77
RECIPE, CORPUS = "configs/recipes/quickstart_experts.textproto", "runs/quickstart/corpus"
STEPS, LAST = 500, 20
BOUND, SHARE = 1.5, 0.6
SMALL = ["model.hidden_size=64", "model.num_hidden_layers=2", "model.num_attention_heads=2", "model.num_key_value_heads=1", "model.moe_intermediate_size=64",
         "loss.router_aux_loss=0", "lr_schedule.warmup_steps=30", f"train_for.steps={STEPS}", "evaluation.every_steps=0", "checkpoint.every_steps=0"]  # fmt: skip
GLM = ["model.family=glm4_moe", "model.first_k_dense_replace=0", "model.n_shared_experts=0"]
RUNS = {
    "qwen3_moe": ([], ["loss.router_aux_loss=0.1"]),
    "glm4_moe": (GLM, [*GLM, "optimizer.router_bias_rate=0.003"]),
}


def worst_load(run_dir):
    with open(os.path.join(run_dir, "metrics.jsonl")) as file:
        steps = [record["expert_load"] for record in map(json.loads, file) if record["type"] == "train"][-LAST:]
    return max(sum(step[layer]["max_over_mean"] for step in steps) / len(steps) for layer in steps[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trireme", default="build/bin/trireme")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--only", choices=RUNS, nargs="+", default=RUNS)
    args = parser.parse_args()
    if not os.path.exists(CORPUS):
        print(f"skipped: there is no {CORPUS}; run launch/quickstart.sh")
        return SKIPPED

    from checks import Checks
    from hf_tools import Program

    checks, trireme = Checks(), Program(args.trireme)
    with tempfile.TemporaryDirectory(prefix="trireme_experts_") as folder:
        for family in args.only:
            loads = []
            for name, more in zip(("left alone", "evened out"), RUNS[family]):
                run_dir = os.path.join(folder, f"{family} {name}")
                sets = [word for setting in [*SMALL, *more, f"run_dir={run_dir}"] for word in ("--set", setting)]
                trireme("train", RECIPE, *sets, ranks=args.ranks)
                loads.append(worst_load(run_dir))
                print(f"{family}, {name}: the busiest expert of the worst layer has {loads[-1]:.3f} times the mean", flush=True)
            checks.within(f"{family}: evened out", loads[1], BOUND)
            checks.within(f"{family}: of what it is left alone", loads[1] / loads[0], SHARE)
    return checks.conclude()


if __name__ == "__main__":
    sys.exit(main())
