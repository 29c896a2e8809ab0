"""Our Llama against Transformers': same weights, same tokens; loss, gradients, norms, and losses while training."""

import math

import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import reference as ref
from cases import LENGTH, MODELS, SGD, recipe
from checks import worst_of
from probe import Request, random_microbatch

STEPS = 10
SGD_RATE = 0.1
GRADIENT_TOLERANCE = 1e-5  # of the tensor's largest gradient
ABSOLUTE_FLOOR = 1e-8
LOSS_TOLERANCE = 1e-5  # relative

WHOLE = [LENGTH, LENGTH]
# Two sequences cut into documents: short and long ones, one of a single token.
DOCUMENTS = [[40, 1, 87, 3, 125], [128, 64, 64]]


def make_steps(vocab, segments, microbatches, count, seed):
    """`count` steps that take turns with two batches, so that the loss falls. segments: one list, or one per microbatch."""
    generator = torch.Generator().manual_seed(seed)
    lists = segments if isinstance(segments[0], list) else [segments] * microbatches
    batches = [[random_microbatch(vocab, s, generator) for s in lists] for _ in range(2)]
    return [batches[i % 2] for i in range(count)]


def compare_gradients(checks, name, ours, theirs):
    checks.equal(f"{name}: tensors that only one side has", sorted(set(ours) ^ set(theirs)), [])
    errors = {}
    for key, expected in theirs.items():
        floor = max(GRADIENT_TOLERANCE * expected.abs().max().item(), ABSOLUTE_FLOOR)
        errors[key] = (ours[key] - expected).abs().max().item() / floor * GRADIENT_TOLERANCE
    worst_name, worst = worst_of(errors)
    checks.within(f"{name}: gradients, worst of {len(theirs)} tensors ({worst_name})", worst, GRADIENT_TOLERANCE)


def relative(ours, theirs):
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def check_sgd(checks, probe, name, model, segments, seed, ranks=1, more="", window=0, z_loss=0.0):
    """First-step loss, gradients and norm, then ten losses."""
    reference = ref.build(model, seed)
    weights = ref.weights_of(reference)
    steps = make_steps(model["vocab_size"], segments, 2, STEPS, seed)
    result = probe.run(Request(recipe(model, SGD, more=more), weights, steps, ranks))
    first = ref.forward_backward(reference, steps[0], window=window, z_loss=z_loss)
    theirs = ref.gradients_of(reference)
    checks.within(f"{name}: loss", relative(result["loss"][:1], [first]), LOSS_TOLERANCE)
    compare_gradients(checks, name, result["gradients"], theirs)
    checks.within(f"{name}: grad_norm", relative(result["grad_norm"][:1], [ref.norm_of(theirs)]), 1e-5)
    optimizer = torch.optim.SGD(reference.parameters(), lr=SGD_RATE)
    losses = ref.train(reference, optimizer, steps, [SGD_RATE] * STEPS, window=window, z_loss=z_loss)
    checks.within(f"{name}: {STEPS} SGD losses ({losses[0]:.4f} to {losses[-2]:.4f})", relative(result["loss"], losses), LOSS_TOLERANCE)
    checks.above(f"{name}: loss falls by", losses[0] - losses[-2], 0.02)
    return result


def schedule(peak, warmup, total, min_ratio):
    """Linear warm-up from step 1, then half a cosine."""
    rates = []
    for step in range(1, total + 1):
        if step <= warmup:
            rates.append(peak * step / warmup)
        else:
            cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
            rates.append(peak * (min_ratio + (1 - min_ratio) * cosine))
    return rates


def check_adamw(checks, probe, name, model, segments, seed, ranks=1):
    peak, decay, betas, clip = 3e-3, 0.1, (0.9, 0.95), 1.0
    reference = ref.build(model, seed)
    steps = make_steps(model["vocab_size"], segments, 2, STEPS, seed)
    rule = f"adamw {{ learning_rate: {peak} beta1: {betas[0]} beta2: {betas[1]} eps: 1e-8 weight_decay: {decay} }}"
    more = f"lr_schedule {{ warmup_steps: 3 cosine {{ min_ratio: 0.1 }} clip_grad_norm: {clip} }}"
    result = probe.run(Request(recipe(model, rule, more=more), ref.weights_of(reference), steps, ranks))
    rates = schedule(peak, 3, STEPS, 0.1)
    checks.within(f"{name}: learning rates", relative(result["learning_rate"], rates), 1e-12)
    optimizer = torch.optim.AdamW(ref.decay_groups(reference, decay), lr=peak, betas=betas, eps=1e-8)
    losses = ref.train(reference, optimizer, steps, rates, clip=clip)
    checks.within(f"{name}: {STEPS} AdamW losses ({losses[0]:.4f} to {losses[-2]:.4f})", relative(result["loss"], losses), LOSS_TOLERANCE)
    checks.above(f"{name}: loss falls by", losses[0] - losses[-2], 0.05)


def check_rope(checks, name, model, table):
    config = ref.config_of(dict(model, max_position_embeddings=len(table["cosine"])))
    positions = torch.arange(len(table["cosine"]))
    cosine, sine = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    half = table["cosine"].shape[1]
    error = max((ours - theirs[0, :, :half]).abs().max().item() for ours, theirs in ((table["cosine"], cosine), (table["sine"], sine)))
    # Unscaled frequencies are the same float32 numbers. A scaled one may differ in its last bit, which the position multiplies.
    allowed = len(positions) * 2.0**-24 if "rope_scaling" in model else 2.0**-23
    checks.within(f"{name}: rope table of {len(positions)} positions", error, allowed)


def check_bf16(checks, probe, model, segments, seed):
    """bf16 is far from fp32, but no farther than twice what Transformers' own bf16 is."""
    reference = ref.build(model, seed)
    weights = ref.weights_of(reference)
    steps = make_steps(model["vocab_size"], [segments], 1, 1, seed)
    text = recipe(model, sequences=2, more="precision { compute: BF16 }")
    ours = probe.run(Request(text, weights, steps))["gradients"]
    ref.forward_backward(reference, steps[0])
    exact = ref.gradients_of(reference)
    ref.forward_backward(reference.bfloat16(), steps[0])
    theirs = ref.gradients_of(reference)
    error = lambda g, key: ((g[key] - exact[key]).norm() / exact[key].norm()).item()
    worst = max(exact, key=lambda key: error(ours, key) / error(theirs, key))
    ratio = error(ours, worst) / error(theirs, worst)
    checks.within(f"bf16: gradient error ({worst}: {error(ours, worst):.3g}), times that of Transformers' bf16", ratio, 2)
    checks.above("bf16: largest gradient error, or nothing ran in bf16", max(error(ours, key) for key in exact), 1e-4)


def run(checks, probe):
    for seed, (name, model) in enumerate(MODELS.items()):
        long = dict(model, max_position_embeddings=4096)
        result = check_sgd(checks, probe, name, long, WHOLE, seed)
        check_rope(checks, name, long, result["rope"])
        check_sgd(checks, probe, f"{name}, documents", model, DOCUMENTS, seed + 10)
        check_adamw(checks, probe, name, model, WHOLE, seed + 20)
    untied, tied = MODELS["grouped queries, untied"], MODELS["no groups, tied"]
    check_sgd(checks, probe, "two ranks", untied, DOCUMENTS, 30, ranks=2)
    check_sgd(checks, probe, "two ranks, tied, recompute", tied, DOCUMENTS, 31, ranks=2, more="recompute { policy: BLOCK }")
    check_adamw(checks, probe, "two ranks, tied, documents", tied, DOCUMENTS, 32, ranks=2)
    windowed = dict(untied, sliding_window=20)
    check_sgd(checks, probe, "window 20, documents", windowed, DOCUMENTS, 33, window=20)
    check_sgd(checks, probe, "z-loss", untied, WHOLE, 34, more="loss { z_loss: 0.01 }", z_loss=0.01)
    check_bf16(checks, probe, untied, DOCUMENTS[0], 35)
