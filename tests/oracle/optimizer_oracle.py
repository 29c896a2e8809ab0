"""Optimizers, groups of parameters and learning rates against torch.optim and Transformers: weights after 20 steps on the same tokens."""

import contextlib
import json
import os
import tempfile

import torch

import reference as ref
from cases import BASE, recipe
from checks import worst_of
from hf_tools import Program, read_tensors, same_bytes, write_tokens
from llama_oracle import make_steps
from probe import Request, read_sharded
from safetensors.torch import save_file

STEPS = 20
SEGMENTS = [64, 64]
ADAMW = dict(lr=3e-3, betas=(0.9, 0.95), eps=1e-3, weight_decay=0.1)  # an eps that does not enlarge round-off of small gradients
ADAMW_TEXT = "learning_rate: 3e-3 beta1: 0.9 beta2: 0.95 eps: 1e-3 weight_decay: 0.1"
TINY = dict(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, num_key_value_heads=1, intermediate_size=16, vocab_size=50)
NO_CLIP = "lr_schedule { clip_grad_norm: 0 }"


def in_blocks(name, parameter):
    return parameter.ndim == 2 and name.startswith("model.layers.")


class Together:
    """Several optimizers as one."""

    def __init__(self, *optimizers):
        self.optimizers = optimizers

    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()


def train(reference, optimizer, steps):
    for microbatches in steps:
        ref.forward_backward(reference, microbatches)
        optimizer.step()
    return ref.weights_of(reference)


def adamw_of(parameters):
    groups = [[p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]]
    return torch.optim.AdamW([{"params": groups[0]}, {"params": groups[1], "weight_decay": 0.0}], **ADAMW)


def in_float32(gradient, coefficients, steps, eps):
    """torch's Newton-Schulz without its rounding to bfloat16."""
    a, b, c = coefficients
    x = gradient.T if gradient.size(0) > gradient.size(1) else gradient
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if gradient.size(0) > gradient.size(1) else x


@contextlib.contextmanager
def newton_schulz(function):
    import torch.optim._muon as module

    before = module._zeropower_via_newtonschulz
    module._zeropower_via_newtonschulz = function or before
    try:
        yield
    finally:
        module._zeropower_via_newtonschulz = before


def worst_difference(ours, theirs):
    return worst_of({key: (ours[key].float() - expected).abs().max().item() for key, expected in theirs.items()})


def step_on_gradients(probe, rule, weight, gradients):
    """Our optimizer alone, on one matrix and its gradients: the matrix and the state after them."""
    with tempfile.TemporaryDirectory(prefix="trireme_oracle_") as folder:
        config = os.path.join(folder, "recipe.textproto")
        with open(config, "w") as file:
            file.write(recipe(TINY, rule, sequences=1, micro_batch=1, more=NO_CLIP))
        save_file({"weight": weight, **{str(i): g for i, g in enumerate(gradients)}}, os.path.join(folder, "gradients.safetensors"))
        probe.call(config, folder, flags=["--gradients"])
        return read_sharded(os.path.join(folder, "stepped"))


def check_muon(checks, probe, name, options, text, layouts, seed):
    model = dict(BASE)
    reference = ref.build(model, seed)
    weights, steps = ref.weights_of(reference), make_steps(model["vocab_size"], SEGMENTS, 4, STEPS, seed)
    matrices = [p for n, p in reference.named_parameters() if in_blocks(n, p)]
    others = [p for n, p in reference.named_parameters() if not in_blocks(n, p)]
    with newton_schulz(in_float32):
        theirs = train(reference, Together(torch.optim.Muon(matrices, **options), adamw_of(others)), steps)
    moved = min((theirs[key] - value).abs().max().item() for key, value in weights.items())
    checks.above(f"{name}: every tensor moves by", moved, 1e-3)
    for ranks, layout in layouts:
        more = f"{NO_CLIP} parallel {{ {layout} }}"
        micro = recipe(model, f"muon {{ {text} adamw {{ {ADAMW_TEXT} }} }}", sequences=4, micro_batch=1, steps=STEPS, more=more)
        ours = probe.run(Request(micro, weights, steps, ranks))["updated"]
        worst_name, worst = worst_difference(ours, theirs)
        checks.within(f"{name}, {ranks} ranks {layout}".rstrip() + f": weights after {STEPS} steps ({worst_name})", worst, 1e-6)


def check_muon_in_bfloat16(checks, probe):
    """torch's own Newton-Schulz, on the same gradients: two computations in bfloat16 differ in single elements; by how much as a whole?"""
    for shape in ((40, 96), (96, 40)):
        generator = torch.Generator().manual_seed(shape[0])
        weight = torch.randn(shape, generator=generator)
        gradients = [torch.randn(shape, generator=generator) for _ in range(STEPS)]
        theirs = torch.nn.Parameter(weight.clone())
        optimizer = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95)
        for gradient in gradients:
            theirs.grad = gradient
            optimizer.step()
        ours = step_on_gradients(probe, "muon { learning_rate: 0.02 newton_schulz: BF16 }", weight, gradients)["weight"]
        moved = (theirs.detach() - weight).norm()
        checks.within(f"muon in bfloat16, {shape[0]} x {shape[1]}: distance to torch's, of the whole way", ((ours - theirs.detach()).norm() / moved).item(), 1e-2)


def lion(parameters, rate, beta1, beta2, decay):
    """The ten lines of arXiv 2302.06675."""

    class Lion:
        momenta = [torch.zeros_like(p) for p in parameters]

        @torch.no_grad()
        def step(self):
            for p, m in zip(parameters, self.momenta):
                direction = (beta1 * m + (1 - beta1) * p.grad).sign()
                p.mul_(1 - rate * (decay if p.ndim == 2 else 0)).sub_(rate * direction)
                m.mul_(beta2).add_((1 - beta2) * p.grad)

    return Lion()


def check_lion(checks, probe):
    rate, decay = 1e-3, 0.1
    generator = torch.Generator().manual_seed(43)
    weight = torch.randn(50, 90, generator=generator)
    gradients = [torch.randn(50, 90, generator=generator) for _ in range(STEPS)]
    theirs = torch.nn.Parameter(weight.clone())
    optimizer = lion([theirs], rate, 0.9, 0.99, decay)
    for gradient in gradients:
        gradient[:5].zero_()  # no direction, no step
        theirs.grad = gradient
        optimizer.step()
    ours = step_on_gradients(probe, f"lion {{ learning_rate: {rate} weight_decay: {decay} }}", weight, gradients)
    error = (ours["weight"] - theirs.detach()).norm() / theirs.detach().norm()
    checks.within(f"lion: weights after {STEPS} steps", error.item(), 1e-7)
    checks.within("lion: momentum", (ours["weight.exp_avg"] - optimizer.momenta[0]).abs().max().item(), 1e-7)


def check_groups(checks, probe, seed, ranks, layout):
    model = dict(BASE)
    reference = ref.build(model, seed)
    weights, steps = ref.weights_of(reference), make_steps(model["vocab_size"], SEGMENTS, 4, STEPS, seed)
    text = f"""adamw {{ {ADAMW_TEXT} }}
        groups {{ names: "model.embed_tokens.weight" names: "*.k_proj.weight" names: "model.layers.1.mlp.*" frozen: true }}
        groups {{ names: "*.q_proj.weight" names: "*.k_proj.weight" learning_rate_factor: 0.1 }}
        groups {{ names: "*norm.weight" weight_decay: 0.5 learning_rate_factor: 2 }}"""
    groups, frozen = {"slow": [], "norms": [], "rest": []}, []
    for name, parameter in reference.named_parameters():
        if name == "model.embed_tokens.weight" or name.endswith("k_proj.weight") or name.startswith("model.layers.1.mlp."):
            frozen.append(name)
        else:
            groups["slow" if name.endswith("q_proj.weight") else "norms" if parameter.ndim == 1 else "rest"].append(parameter)
    rate = ADAMW["lr"]
    optimizer = torch.optim.AdamW(
        [
            {"params": groups["slow"], "lr": rate * 0.1},
            {"params": groups["norms"], "lr": rate * 2, "weight_decay": 0.5},
            {"params": groups["rest"]},
        ],
        **ADAMW,
    )
    theirs = train(reference, optimizer, steps)
    name = f"groups, {ranks} ranks {layout}".rstrip()
    with tempfile.TemporaryDirectory(prefix="trireme_oracle_") as folder:
        run_dir = os.path.join(folder, "run")
        config = recipe(model, text, sequences=4, micro_batch=1, steps=STEPS, run_dir=run_dir, more=f"{NO_CLIP} parallel {{ {layout} }}")
        ours = probe.run(Request(config, weights, steps, ranks, flags=["--save"]), os.path.join(folder, "probe"))
        states = {key.rsplit(".", 1)[0] for key in read_sharded(os.path.join(ours["checkpoint"], "optimizer"))}
        saved = read_sharded(os.path.join(ours["checkpoint"], "weights"))
    worst_name, worst = worst_difference(ours["updated"], theirs)
    checks.within(f"{name}: weights after {STEPS} steps ({worst_name})", worst, 1e-6)
    checks.equal(f"{name}: frozen ones that moved", [key for key in frozen if not torch.equal(ours["updated"][key], weights[key])], [])
    checks.equal(f"{name}: those that have state and are frozen, or neither", sorted(states ^ (set(weights) - set(frozen))), [])
    checks.equal(f"{name}: those that a checkpoint lacks", sorted(set(weights) ^ set(saved)), [])


def check_eight_bits(checks, probe):
    import bitsandbytes as bnb

    for shape in ((70, 100), (64, 256), (30, 20)):
        generator = torch.Generator().manual_seed(shape[0])
        weight = torch.randn(shape, generator=generator)
        # Columns of very different size, rows without a gradient at first, and one that has never one.
        size = torch.logspace(-4, 0, shape[1])
        gradients = [torch.randn(shape, generator=generator) * size for _ in range(STEPS)]
        for i, gradient in enumerate(gradients):
            gradient[: shape[0] // 4 if i < 5 else 3].zero_()
        ours = step_on_gradients(probe, "adamw { learning_rate: 1e-3 beta2: 0.99 eps: 1e-6 weight_decay: 0.1 state: INT8 }", weight, gradients)
        theirs = torch.nn.Parameter(weight.clone())
        optimizer = bnb.optim.AdamW8bit([theirs], lr=1e-3, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1)
        for gradient in gradients:
            theirs.grad = gradient.clone()
            optimizer.step()
        state, name = optimizer.state[theirs], f"adamw in 8 bits, {shape[0]} x {shape[1]}"
        if weight.numel() < 4096:
            checks.equal(f"{name}: state", sorted(ours), ["weight", "weight.exp_avg", "weight.exp_avg_sq"])
        else:
            for key, part in (("state1", "exp_avg_codes"), ("state2", "exp_avg_sq_codes"), ("absmax1", "exp_avg_absmax"), ("absmax2", "exp_avg_sq_absmax")):
                same = torch.equal(ours[f"weight.{part}"].flatten(), state[key].flatten())
                checks.equal(f"{name}: {part} after {STEPS} steps is bitsandbytes' {key}, byte for byte", same, True)
        checks.within(f"{name}: weights", (ours["weight"] - theirs.detach()).abs().max().item(), 2e-6)


PEAK, WARMUP, TOTAL = 2e-3, 5, 30


def schedules():
    """Each with the keyword arguments of Transformers' get_scheduler."""
    steps = dict(num_warmup_steps=WARMUP, num_training_steps=TOTAL)
    wsd = lambda tail: ("warmup_stable_decay", dict(num_warmup_steps=WARMUP, num_training_steps=TOTAL, scheduler_specific_kwargs=dict(num_decay_steps=8, decay_type=tail, min_lr_ratio=0.1)))
    return {
        "constant {}": ("constant_with_warmup", steps),
        "linear {}": ("linear", steps),
        "cosine { min_ratio: 0 }": ("cosine", steps),
        "cosine { min_ratio: 0.2 }": ("cosine_with_min_lr", dict(steps, scheduler_specific_kwargs=dict(min_lr_rate=0.2))),
        "cosine { min_ratio: 0 cycles: 3 }": ("cosine_with_restarts", dict(steps, scheduler_specific_kwargs=dict(num_cycles=3))),
        "polynomial { power: 2 min_ratio: 0.05 }": ("polynomial", dict(steps, scheduler_specific_kwargs=dict(power=2.0, lr_end=0.05 * PEAK))),
        "inverse_sqrt {}": ("inverse_sqrt", steps),
        "inverse_sqrt { timescale: 12 }": ("inverse_sqrt", dict(steps, scheduler_specific_kwargs=dict(timescale=12))),
        "wsd { decay_steps: 8 min_ratio: 0.1 }": wsd("linear"),
        "wsd { decay_steps: 8 min_ratio: 0.1 tail: ONE_MINUS_SQRT }": wsd("1-sqrt"),
        "wsd { decay_steps: 8 min_ratio: 0.1 tail: COSINE }": wsd("cosine"),
    }


def check_schedules(checks, probe):
    from transformers import get_scheduler

    generator_steps = make_steps(TINY["vocab_size"], [8], 1, TOTAL, 0)
    for shape, (name, arguments) in schedules().items():
        text = recipe(TINY, f"sgd {{ learning_rate: {PEAK} }}", sequences=1, micro_batch=1, steps=TOTAL, more=f"lr_schedule {{ warmup_steps: {WARMUP} {shape} clip_grad_norm: 0 }}")
        ours = probe.run(Request(text, None, generator_steps))["learning_rate"]
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
        scheduler = get_scheduler(name, optimizer, **arguments)
        theirs = []
        for _ in range(TOTAL):  # Ours of step n is theirs after n steps: theirs of the first step is zero.
            optimizer.step()
            scheduler.step()
            theirs.append(scheduler.get_last_lr()[0])
        # Theirs of WSD warms up from the minimum, torchtitan's and ours from zero as all other shapes do.
        first = WARMUP - 1 if shape.startswith("wsd") else 0
        checks.within(f"{shape} against {name}", max(abs(a - b) for a, b in zip(ours[first:], theirs[first:], strict=True)) / PEAK, 1e-7)


def averages_of(run_dir, step):
    return read_sharded(os.path.join(run_dir, "checkpoints", f"step-{step:08d}", "averages"))


def check_average(checks, probe, trireme):
    """Averages of the weights that the checkpoints of every step hold, through a stop and another mesh; and what is exported."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    total, decay, precision = 8, 0.8, "precision { compute: BF16 }"
    for name, adapter, more in (("ema", "", ""), ("ema, adapter", "adapter { r: 4 }", precision)):
        with tempfile.TemporaryDirectory(prefix="trireme_oracle_") as folder:
            base, corpus, run_dir = (os.path.join(folder, part) for part in ("base", "corpus.bin", "run"))
            ref.build(dict(BASE), 50).save_pretrained(base)
            write_tokens(corpus, torch.randint(BASE["vocab_size"], (9000,), generator=torch.Generator().manual_seed(1)).tolist())
            config = os.path.join(folder, "run.textproto")
            with open(config, "w") as file:
                file.write(f"""model {{ from: "{base}" }} data {{ source {{ path: "{corpus}" }} sequence_length: 64 }} global_batch_size: 4
                    optimizer {{ muon {{ adamw {{ eps: 1e-4 }} }} }} train_for {{ steps: {total} }} ema {{ decay: {decay} every_steps: 2 }}
                    checkpoint {{ every_steps: 1 keep_last: 0 }} launch {{ device: CPU }} logging {{ tensorboard: false }} run_dir: "{run_dir}" {adapter} {more}""")
            trireme("train", config, "--stop-at", "5", ranks=2, fails=True)
            trireme("train", config, "--set", "parallel.tensor=2", ranks=2)
            step_weights = lambda step: read_sharded(os.path.join(run_dir, "checkpoints", f"step-{step:08d}", "weights"))
            names = sorted(step_weights(1))
            model = torch.nn.ParameterDict({key.replace(".", "/"): torch.zeros_like(value) for key, value in step_weights(1).items()})
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
            for step in range(2, total + 1, 2):
                with torch.no_grad():
                    for key, value in step_weights(step).items():
                        model[key.replace(".", "/")].copy_(value)
                average.update_parameters(model)
            theirs = {key: average.module[key.replace(".", "/")].detach() for key in names}
            ours = averages_of(run_dir, total)
            worst_name, worst = worst_difference(ours, theirs)
            checks.within(f"{name}: averages after {total} steps ({worst_name})", worst, 1e-7)
            last = step_weights(total)
            checks.above(f"{name}: they differ from the weights by", max((ours[key] - last[key]).abs().max().item() for key in names), 1e-4)
            out = os.path.join(folder, "out")
            if adapter:
                trireme("export", run_dir, "--ema", "--format", "peft", "--output", out)
                exported = read_tensors(out)
                wrong = [key for key, value in ours.items() if not torch.equal(exported["base_model.model." + key], value)]
                checks.equal(f"{name}: exported ones that differ", wrong, [])
            else:
                trireme("export", run_dir, "--ema", "--output", out)
                checks.equal(f"{name}: exported ones that differ", same_bytes(read_tensors(out), ours), [])


def check_plateau(checks, probe):
    losses = [3.0, 2.9, 2.95, 2.93, 2.8999, 2.92, 2.8, 2.9, 2.9, 2.9, 2.9, 2.9, 2.7, 2.71, 2.72, 2.73, 2.74, 2.75, 2.76, 2.77, 2.78]
    shape = dict(factor=0.3, patience=2, threshold=1e-3, cooldown=1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, min_lr=0.05 * PEAK, **shape)
    theirs = []
    for loss in losses:
        scheduler.step(loss)
        theirs.append(optimizer.param_groups[0]["lr"] / PEAK)
    with tempfile.TemporaryDirectory(prefix="trireme_oracle_") as folder:
        config = os.path.join(folder, "recipe.textproto")
        settings = " ".join(f"{key}: {value}" for key, value in shape.items())
        more = f"evaluation {{ every_steps: 1 }} lr_schedule {{ plateau {{ {settings} min_ratio: 0.05 }} clip_grad_norm: 0 }}"
        with open(config, "w") as file:
            file.write(recipe(TINY, f"sgd {{ learning_rate: {PEAK} }}", sequences=1, micro_batch=1, more=more))
        with open(os.path.join(folder, "losses.json"), "w") as file:
            json.dump(losses, file)
        ours = probe.call(config, folder, flags=["--plateau"])["factor"]
    checks.above("plateau: times that the rate falls", len(set(theirs)), 3)
    checks.within("plateau against ReduceLROnPlateau", max(abs(a - b) for a, b in zip(ours, theirs, strict=True)), 1e-7)


def run(checks, probe):
    text = "learning_rate: 0.02 weight_decay: 0.1 momentum: 0.95"
    options = dict(lr=0.02, weight_decay=0.1, momentum=0.95)
    every = [(1, ""), (2, "tensor: 2"), (2, "shard: GRADIENTS"), (4, "tensor: 2 pipeline: 2")]
    check_muon(checks, probe, "muon", options, text, every, 40)
    matched = dict(lr=3e-3, weight_decay=0.2, momentum=0.9, nesterov=False, adjust_lr_fn="match_rms_adamw", ns_steps=4, ns_coefficients=(3.0, -3.2, 1.2))
    check_muon(
        checks,
        probe,
        "muon as large as adamw",
        matched,
        "learning_rate: 3e-3 weight_decay: 0.2 momentum: 0.9 nesterov: false scaling: MATCH_RMS_ADAMW newton_schulz_steps: 4 "
        "newton_schulz_coefficient: 3 newton_schulz_coefficient: -3.2 newton_schulz_coefficient: 1.2",
        [(1, "")],
        41,
    )
    check_muon_in_bfloat16(checks, probe)
    check_lion(checks, probe)
    check_groups(checks, probe, 44, 1, "")
    check_groups(checks, probe, 44, 2, "tensor: 2")
    check_eight_bits(checks, probe)
    check_schedules(checks, probe)
    check_plateau(checks, probe)
    check_average(checks, probe, Program(os.path.join(os.path.dirname(probe.binary), "trireme")))
