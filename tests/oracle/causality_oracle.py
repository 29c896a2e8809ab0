"""What comes later, or stands in another document, leaves a token's loss bit-equal."""

import torch

import reference as ref
from cases import LENGTH, MODELS, recipe
from probe import Microbatch, Request

POSITIONS = [0, 1, 7, 31, 63, 64, 100, LENGTH - 2]


def only_target(microbatch, at):
    targets = torch.full_like(microbatch.targets, -100)
    targets[at] = microbatch.targets[at]
    return Microbatch(microbatch.tokens, targets, microbatch.segments)


def changed(microbatch, begin, end, vocab):
    """Every token in [begin, end) becomes another one; targets stay."""
    tokens = microbatch.tokens.clone()
    tokens[begin:end] = (tokens[begin:end] + 1 + torch.arange(end - begin) % (vocab - 1)) % vocab
    return Microbatch(tokens, microbatch.targets, microbatch.segments)


def losses(probe, model, microbatches):
    weights = ref.weights_of(ref.build(model, 40))
    steps = [[m] for m in microbatches]
    return probe.run(Request(recipe(model, sequences=2), weights, steps, flags=["--evaluate"]))["loss_sum"]


def run(checks, probe):
    model = MODELS["grouped queries, untied"]
    vocab = model["vocab_size"]
    generator = torch.Generator().manual_seed(41)
    stream = torch.randint(vocab, (2 * LENGTH + 1,), generator=generator)
    whole = Microbatch(stream[:-1], stream[1:], [LENGTH, LENGTH])
    pieces = Microbatch(stream[:-1], stream[1:], [50, 30, 48, LENGTH])
    asked, names = [], []

    def ask(name, microbatch, at, begin, end):
        asked.extend([only_target(microbatch, at), only_target(changed(microbatch, begin, end, vocab), at)])
        names.append(name)

    for at in POSITIONS:
        ask(f"tokens after {at}", whole, at, at + 1, 2 * LENGTH)
    ask("the sequence before", whole, LENGTH + 5, 0, LENGTH)
    for at in (50, 79, 127):
        ask(f"documents before {at}'s", pieces, at, 0, 50 if at < 80 else 80)
    same = len(names)
    # What a token does see must matter, or the above proves nothing.
    ask("the token itself", whole, 63, 63, 64)
    ask("the first token", whole, LENGTH - 2, 0, 1)
    ask("its document's first token", pieces, 79, 50, 51)
    result = losses(probe, model, asked)
    for i, name in enumerate(names):
        before, after = result[2 * i : 2 * i + 2]
        if i < same:
            checks.equal(f"causality: {name} changed, loss bit-equal", after.hex(), before.hex())
        else:
            checks.above(f"causality: {name} changed, loss moves by", abs(after - before), 1e-6)
