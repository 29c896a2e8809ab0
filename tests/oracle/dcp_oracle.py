"""torch.distributed.checkpoint opens our checkpoint folders."""

import os
import tempfile

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader

import reference as ref
from cases import LENGTH, MODELS, recipe
from probe import Request, random_microbatch

RANKS = 3


def load(folder, shapes):
    state = {name: torch.full(shape, float("nan")) for name, shape in shapes.items()}
    dcp.load(state, storage_reader=HuggingFaceStorageReader(folder), no_dist=True)
    return state


def fragments(folder):
    """Names of tensors that are cut in the middle of a row."""
    from safetensors import safe_open
    import json

    cut = set()
    for name in os.listdir(folder):
        with safe_open(os.path.join(folder, name), "pt") as file:
            offsets = json.loads(file.metadata()["DCP_SHARDING_INFO"])
            cut |= {key for key, info in offsets.items() if len(info["saved_offsets"]) == 2 and info["saved_offsets"][1] > 0}
    return cut


def run(checks, probe):
    model = MODELS["head_dim 32 of hidden 72, one kv head"]
    reference = ref.build(model, 50)
    weights = ref.weights_of(reference)
    generator = torch.Generator().manual_seed(51)
    batch = [random_microbatch(model["vocab_size"], [LENGTH], generator) for _ in range(RANKS)]
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    with tempfile.TemporaryDirectory(prefix="trireme_oracle_") as folder:
        text = recipe(model, "adamw { beta1: 0.9 }", sequences=RANKS, micro_batch=1, run_dir=os.path.join(folder, "run"))
        request = Request(text, weights, [batch], RANKS, ["--evaluate", "--save"])
        saved = probe.run(request, os.path.join(folder, "untrained"))["checkpoint"]
        checks.above("dcp: tensors cut inside a row", len(fragments(os.path.join(saved, "weights"))), 3)
        state = load(os.path.join(saved, "weights"), shapes)
        wrong = [name for name in weights if not torch.equal(state[name], weights[name])]
        checks.equal(f"dcp: weights saved by {RANKS} ranks that differ from what they loaded", wrong, [])

        request.flags = ["--save"]
        trained = probe.run(request, os.path.join(folder, "trained"))
        state = load(os.path.join(trained["checkpoint"], "weights"), shapes)
        wrong = [name for name in weights if not torch.equal(state[name], trained["updated"][name])]
        checks.equal("dcp: weights after a step that differ from ours", wrong, [])
        ref.forward_backward(reference, batch)
        expected = {name: 0.1 * g for name, g in ref.gradients_of(reference).items()}
        state = load(os.path.join(trained["checkpoint"], "optimizer"), {f"{name}.exp_avg": s for name, s in shapes.items()})
        error = max(((state[f"{n}.exp_avg"] - g).abs().max() / g.abs().max()).item() for n, g in expected.items())
        checks.within("dcp: first moments after one step, against 0.1 x the reference's gradients", error, 1e-5)
