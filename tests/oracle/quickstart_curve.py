"""Repeats a finished run in Transformers: the same initial weights, tokens in the same order, schedule and AdamW.

Its validation loss must end within 1 % of ours. (With other initial weights it may not: those of five seeds were up to 0.1 nat
apart at step 120 of the quickstart, in both programs.) Takes about as long as the run itself; 8 to 15 minutes for the quickstart.
  .venv/bin/python tests/oracle/quickstart_curve.py --config configs/recipes/quickstart.textproto --run-dir runs/quickstart/run
"""

import argparse
import json
import os
import sys
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(1 << 40))

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

import reference as ref
from probe import Probe, read_sharded

TOLERANCE = 0.01


def read_metrics(run_dir):
    """(training losses by step, evaluation losses by step); the last line of a step counts."""
    losses, evaluations = {}, {}
    with open(os.path.join(run_dir, "metrics.jsonl")) as file:
        for line in map(json.loads, file):
            if "eval_loss" in line:
                evaluations[line["step"]] = line["eval_loss"]
            elif "loss" in line:
                losses[line["step"]] = line["loss"]
    return losses, evaluations


def loss_sum(model, tokens, targets, positions):
    """Cross-entropy summed over a batch [sequences, length]; positions that restart inside a sequence are document boundaries."""
    mask = None
    if (positions[:, 1:] == 0).any():
        ids = (positions == 0).cumsum(1)
        visible = (ids[:, :, None] == ids[:, None, :]).tril()
        mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)[:, None]
    logits = model(input_ids=tokens, position_ids=positions, attention_mask=mask).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="sum")


def evaluate(model, data, batch=8):
    total, count = 0.0, 0
    with torch.no_grad():
        for i in range(0, len(data["validation.tokens"]), batch):
            part = [data[f"validation.{field}"][i : i + batch] for field in ("tokens", "targets", "positions")]
            total += loss_sum(model, *part).item()
            count += int((part[1] >= 0).sum())
    return total / count


def train(model, recipe, data, our_losses):
    adamw = recipe["adamw"]
    optimizer = torch.optim.AdamW(ref.decay_groups(model, adamw["weight_decay"]), betas=adamw["betas"], eps=adamw["eps"], fused=True)
    start = time.monotonic()
    for i, learning_rate in enumerate(recipe["learning_rate"]):
        tokens, targets, positions = (data[f"train.{field}"][i] for field in ("tokens", "targets", "positions"))
        loss = loss_sum(model, tokens, targets, positions) / (targets >= 0).sum()
        loss.backward()
        if recipe["clip_grad_norm"] > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe["clip_grad_norm"])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step = i + 1
        if step % 20 == 0 or step == 1:
            ours = our_losses.get(step, float("nan"))
            print(f"step {step}: Transformers {loss.item():.4f}, ours {ours:.4f}, {time.monotonic() - start:.0f} s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/recipes/quickstart.textproto")
    parser.add_argument("--run-dir", default="runs/quickstart/run", help="of a finished run of CONFIG")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="overrides that the run was started with")
    parser.add_argument("--probe", default="build/bin/trireme_probe")
    args = parser.parse_args()
    if not os.path.exists(os.path.join(args.run_dir, "metrics.jsonl")):
        print(f"skipped: {args.run_dir}/metrics.jsonl does not exist; run launch/quickstart.sh first")
        return 77
    our_losses, evaluations = read_metrics(args.run_dir)
    last = max(evaluations)
    with tempfile.TemporaryDirectory(prefix="trireme_oracle_") as folder:
        flags = ["--tokens", str(last)]
        recipe = Probe(args.probe).call(args.config, folder, flags=flags, overrides=args.overrides)
        data = load_file(os.path.join(folder, "tokens.safetensors"))
        initial = read_sharded(os.path.join(folder, "initial"))
    if recipe["total_steps"] != last:
        print(f"{args.run_dir} was last evaluated at step {last} of {recipe['total_steps']}; finish the run first")
        return 1
    model = LlamaForCausalLM(ref.config_of(recipe["model"], attention="sdpa")).float().train()
    loaded = model.load_state_dict(initial, strict=False)
    missing = set(loaded.missing_keys) - {"lm_head.weight" if recipe["model"]["tie_word_embeddings"] else None}
    if missing or loaded.unexpected_keys:
        raise RuntimeError(f"initial weights: missing {sorted(missing)}, unexpected {loaded.unexpected_keys}")
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {last} steps; ours ended at a validation loss of {evaluations[last]:.4f}")
    train(model, recipe, data, our_losses)
    theirs = evaluate(model, data)
    difference = evaluations[last] / theirs - 1
    passed = abs(difference) <= TOLERANCE
    values = f"ours {evaluations[last]:.4f}, Transformers {theirs:.4f}: {100 * difference:+.2f} % (allowed 1 %)"
    print(f"{'ok  ' if passed else 'FAIL'}  validation loss: {values}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
