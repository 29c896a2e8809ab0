"""Our tensor, pipeline and context parallelism against PyTorch's, and against one plain Transformers process."""

import os
import tempfile

import torch
import torch.multiprocessing

import reference as ref
import torch_parallel
from cases import MODELS, SGD, recipe
from dcp_oracle import load
from llama_oracle import (
    DOCUMENTS,
    LOSS_TOLERANCE,
    SGD_RATE,
    STEPS,
    WHOLE,
    check_sgd,
    compare_gradients,
    make_steps,
    relative,
)
from probe import Request

UNTIED, TIED = MODELS["grouped queries, untied"], MODELS["no groups, tied"]
ODD_VOCABULARY = dict(TIED, vocab_size=501, num_key_value_heads=2)
THREE_BLOCKS = dict(UNTIED, num_hidden_layers=3)

MICROBATCHES = 4  # more than pipeline ranks, so that forward and backward take turns

# PyTorch's method, model, segments of each microbatch, and our layouts to compare with it.
CASES = {
    "tensor, untied": ("tensor", UNTIED, WHOLE, {"tensor: 2": 2}),
    "tensor, tied, 501 tokens, documents": ("tensor", ODD_VOCABULARY, DOCUMENTS[0], {"tensor: 2": 2}),
    "tensor, sequence, documents": ("sequence", UNTIED, DOCUMENTS[0], {"tensor: 2": 2, "tensor: 2 data_replicate: 2": 4}),
    "pipeline, documents": ("pipeline", UNTIED, DOCUMENTS[0], {"pipeline: 2": 2, "tensor: 2 pipeline: 2": 4}),
    "pipeline, tied": ("pipeline", TIED, WHOLE, {"pipeline: 2": 2, "tensor: 2 pipeline: 2": 4}),
    "pipeline, 3 blocks": ("pipeline", THREE_BLOCKS, WHOLE, {"pipeline: 2": 2, "pipeline: 2 data_shard: 2": 4}),
}


AXES = ("pipeline", "data_replicate", "data_shard", "context", "tensor")


def mesh_of(layout):
    """As ours prints it."""
    words = layout.replace(":", "").split()
    sizes = {**dict.fromkeys(AXES, "1"), **dict(zip(words[::2], words[1::2]))}
    return " x ".join(f"{axis} {sizes[axis]}" for axis in AXES)


def theirs_of(cases):
    with tempfile.TemporaryDirectory(prefix="trireme_oracle_") as folder:
        torch.multiprocessing.spawn(torch_parallel.work, args=(cases, folder), nprocs=torch_parallel.RANKS)
        return torch.load(os.path.join(folder, "results.pt"))


def check_against(checks, probe, name, case, theirs, layout, ranks):
    name = f"{name}, ours {{ {layout} }}"
    text = recipe(case.model, SGD, sequences=2 * MICROBATCHES, more=f"parallel {{ {layout} }}")
    weights = ref.weights_of(ref.build(case.model, case.seed))
    ours = probe.run(Request(text, weights, case.steps, ranks))
    checks.equal(f"{name}: mesh", ours["mesh"], mesh_of(layout))
    compare_gradients(checks, name, ours["gradients"], theirs["gradients"])
    norm = ref.norm_of(theirs["gradients"])
    checks.within(f"{name}: grad_norm", relative(ours["grad_norm"][:1], [norm]), 1e-5)
    losses = theirs["loss"]
    text = f"{name}: {STEPS} SGD losses ({losses[0]:.4f} to {losses[-2]:.4f})"
    checks.within(text, relative(ours["loss"], losses), LOSS_TOLERANCE)
    checks.above(f"{name}: loss falls by", losses[0] - losses[-2], 0.02)


def check_cases(checks, probe):
    cases = []
    for seed, (method, model, segments, _) in enumerate(CASES.values(), start=60):
        steps = make_steps(model["vocab_size"], segments, MICROBATCHES, STEPS, seed)
        cases.append(torch_parallel.Case(method, model, seed, steps, SGD_RATE))
    for (name, (*_, layouts)), case, theirs in zip(CASES.items(), cases, theirs_of(cases), strict=True):
        every = sum(g.numel() for g in theirs["gradients"].values())
        checks.within(f"{name}: part of the parameters on PyTorch's first rank, or it cut nothing", theirs["own_parameters"] / every, 0.7)
        for layout, ranks in layouts.items():
            check_against(checks, probe, name, case, theirs, layout, ranks)


def check_context(checks, probe):
    """PyTorch's context parallelism takes no documents, so the reference is one process."""
    seed = 80
    for method in ("GATHER", "RING"):
        for model, segments, more, ranks in (
            (UNTIED, DOCUMENTS, "", 2),
            (TIED, WHOLE, "tensor: 2", 4),
            (UNTIED, DOCUMENTS, "pipeline: 2", 4),
        ):
            layout = f"context: 2 context_method: {method} {more}".strip()
            name = f"{'documents' if segments is DOCUMENTS else 'whole sequences'}, ours {{ {layout} }}"
            check_sgd(checks, probe, name, model, segments, seed, ranks=ranks, more=f"parallel {{ {layout} }}")
            seed += 1


def check_checkpoint(checks, probe):
    """torch.distributed.checkpoint finds in a checkpoint of tensor x pipeline ranks what these were given."""
    weights = ref.weights_of(ref.build(ODD_VOCABULARY, 95))
    steps = make_steps(ODD_VOCABULARY["vocab_size"], WHOLE, 2, 1, 95)
    with tempfile.TemporaryDirectory(prefix="trireme_oracle_") as folder:
        text = recipe(ODD_VOCABULARY, run_dir=os.path.join(folder, "run"), more="parallel { tensor: 2 pipeline: 2 }")
        request = Request(text, weights, steps, 4, ["--evaluate", "--save"])
        saved = probe.run(request, os.path.join(folder, "probe"))["checkpoint"]
        state = load(os.path.join(saved, "weights"), {name: tensor.shape for name, tensor in weights.items()})
    wrong = [name for name in weights if not torch.equal(state[name], weights[name])]
    checks.equal("dcp: weights saved by tensor 2 x pipeline 2 ranks that differ from what they loaded", wrong, [])


def run(checks, probe):
    check_cases(checks, probe)
    check_context(checks, probe)
    # More tensor ranks than key and value heads: each of these is on two ranks.
    check_sgd(checks, probe, "ours { tensor: 4 } of 2 kv heads", UNTIED, DOCUMENTS, 90, ranks=4, more="parallel { tensor: 4 }")
    check_checkpoint(checks, probe)
