"""Adapters against PEFT: same tiny model, adapter values and tokens; gradients and losses, on one rank and spread over many.

Runs alone: tests/oracle/peft_oracle.py --probe build/bin/trireme_probe
"""

import argparse
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

from cases import MODELS, recipe, text  # noqa: E402

SKIPPED = 77
STEPS = 20
LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-5  # of the tensor's largest element
FLOOR = 1e-9
# Another order of summation changes float32 sums by some 1e-6 relative; gradients of B pass through two thin products.
LAYOUT_TOLERANCE = 1e-5

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# name: (settings in both terms, recipe's model key)
CASES = {
    "LoRA, all linear": (dict(r=4, lora_alpha=8, target_modules=ALL), "grouped queries, untied"),
    "LoRA, q and v, patterns": (
        dict(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], rank_pattern={"q_proj": 3}, alpha_pattern={"layers.1.self_attn.v_proj": 12}),
        "no groups, tied",
    ),
    "rsLoRA, regular expression": (dict(r=5, lora_alpha=7, target_modules=r".*\.(k_proj|up_proj|down_proj)", use_rslora=True), "grouped queries, untied"),
    "LoRA, excluded, embedding trained whole": (
        dict(r=2, lora_alpha=4, target_modules="all-linear", exclude_modules=["o_proj"], modules_to_save=["embed_tokens"]),
        "no groups, tied",
    ),
    "LoRA, head trained whole": (dict(r=3, lora_alpha=4, target_modules=["o_proj"], modules_to_save=["lm_head"]), "grouped queries, untied"),
    "DoRA, all linear": (dict(r=4, lora_alpha=8, target_modules=ALL, use_dora=True), "grouped queries, untied"),
    "DoRA, k and down": (dict(r=3, lora_alpha=5, target_modules=["k_proj", "down_proj"], use_dora=True), "no groups, tied"),
}  # fmt: skip

# Of the first and the DoRA case. Whole microbatches per data rank.
LAYOUTS = {
    "tensor: 2": 2,
    "tensor: 4": 4,
    "pipeline: 2": 2,
    'pipeline: 2 pipeline_schedule: "ZB-H1"': 2,
    "shard: NONE": 2,
    "shard: OPTIMIZER": 2,
    "shard: GRADIENTS": 2,
    "shard: PARAMETERS": 2,
    "data_replicate: 2": 2,
    "context: 2": 2,
    "context: 2 context_method: RING": 2,
    "tensor: 2 pipeline: 2 data_shard: 2": 8,
}
RECOMPUTE = ["recompute { policy: BLOCK }", 'recompute { policy: SELECTIVE keep: ["qkv", "gate_up", "attention"] }']


def adapter_text(settings):
    """PEFT's arguments as our textproto."""
    lines = []
    for key, value in settings.items():
        if key == "target_modules" and isinstance(value, str) and value != "all-linear":
            key = "target_modules_regex"
        if isinstance(value, dict):
            lines += [f"{key} {{ key: {text(k)} value: {v} }}" for k, v in value.items()]
        elif isinstance(value, list):
            lines += [f"{key}: {text(v)}" for v in value]
        else:
            lines.append(f"{key}: {text(value)}")
    return "adapter { " + " ".join(lines) + " }"


def wrap(reference, settings, seed):
    """The model under PEFT, every adapter away from its neutral start."""
    import torch
    from peft import LoraConfig, get_peft_model

    # Of a tied matrix both uses are trained, as ours always are.
    tying = {"ensure_weight_tying": True} if "modules_to_save" in settings else {}
    model = get_peft_model(reference, LoraConfig(task_type="CAUSAL_LM", **tying, **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.normal_(0, 0.1, generator=generator)
            if "magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))
    return model


def canonical(name):
    """PEFT's parameter name as ours."""
    name = name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".default.weight", ".weight")
    name = name.replace(".modules_to_save.", ".").replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector").replace(".lora_magnitude_vector.default", ".lora_magnitude_vector")
    return name


def named(model, trainable_only=False):
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=True):
        if ".original_module." in name or (trainable_only and not parameter.requires_grad):
            continue
        found[canonical(name)] = parameter
    return found


def compare_gradients(checks, name, ours, theirs, tolerance=GRADIENT_TOLERANCE):
    checks.equal(f"{name}: what has gradients", sorted(set(ours) ^ set(theirs)), [])
    worst, where = 0.0, ""
    for key in set(ours) & set(theirs):
        error = (ours[key] - theirs[key]).abs().max().item() / max(theirs[key].abs().max().item(), FLOOR)
        if not error <= worst:
            worst, where = error, key
    checks.within(f"{name}: worst gradient ({where})", worst, tolerance)


def run(checks, probe, only=""):
    import reference as ref
    import torch
    from llama_oracle import relative
    from probe import Request, random_microbatch

    for number, (name, (settings, key)) in enumerate(CASES.items()):
        if only and only not in name:
            continue
        model = MODELS[key]
        generator = torch.Generator().manual_seed(7 + number)
        # Segments of several lengths, 128 tokens a sequence, 8 microbatches a step.
        steps = [[random_microbatch(model["vocab_size"], [[50, 78], [128], [1, 127]][(s + m) % 3], generator) for m in range(8)] for s in range(STEPS)]
        peft = wrap(ref.build(model, 30 + number), settings, number)
        start = {k: v.detach().clone() for k, v in named(peft).items()}
        trained = named(peft, trainable_only=True)
        ref.forward_backward(peft, steps[0])
        gradients = {k: p.grad.detach().clone() for k, p in trained.items()}
        for rule, theirs in {
            "sgd { learning_rate: 0.5 }": torch.optim.SGD(trained.values(), lr=0.5),
            "adamw { learning_rate: 0.003 beta2: 0.99 eps: 1e-4 weight_decay: 0.1 }": torch.optim.AdamW(
                [
                    {"params": [p for p in trained.values() if p.ndim > 1], "weight_decay": 0.1},
                    {"params": [p for p in trained.values() if p.ndim == 1], "weight_decay": 0.0},
                ],
                betas=(0.9, 0.99),
                eps=1e-4,
            ),
        }.items():
            word = rule.split()[0]
            with torch.no_grad():
                for k, parameter in named(peft).items():
                    parameter.copy_(start[k])
            rate = float(rule.split("learning_rate: ")[1].split()[0])
            losses = ref.train(peft, theirs, steps, [rate] * STEPS)
            text_recipe = recipe(model, rule, sequences=8, micro_batch=1, steps=STEPS, more=adapter_text(settings))
            result = probe.run(Request(text_recipe, start, steps))
            compare_gradients(checks, f"{name}, {word}", result["gradients"], gradients)
            checks.within(f"{name}, {word}: worst of {STEPS} losses", relative(result["loss"], losses), LOSS_TOLERANCE)
            checks.above(f"{name}, {word}: the losses move", abs(losses[0] - losses[-1]), 1e-4)
            if word != "sgd":
                continue
            frozen = {k: v for k, v in start.items() if k not in trained}
            moved = [k for k, v in frozen.items() if k in result["updated"] and not torch.equal(result["updated"][k], v)]
            checks.equal(f"{name}: frozen weights that moved", moved, [])
            if number == 0 or settings.get("use_dora"):
                check_layouts(checks, probe, name, text_recipe, start, steps[:3], result)


def check_layouts(checks, probe, name, text_recipe, start, steps, plain):
    from llama_oracle import relative
    from probe import Request

    cases = {f"parallel {{ {layout} }}": ranks for layout, ranks in LAYOUTS.items()}
    cases.update({more: 1 for more in RECOMPUTE})
    cases[f"parallel {{ tensor: 2 }} {RECOMPUTE[1]}"] = 2
    for more, ranks in cases.items():
        result = probe.run(Request(text_recipe + "\n" + more, start, steps, ranks=ranks))
        compare_gradients(checks, f"{name}, {more}", result["gradients"], plain["gradients"], LAYOUT_TOLERANCE)
        checks.within(f"{name}, {more}: losses", relative(result["loss"], plain["loss"][: len(steps)]), LOSS_TOLERANCE)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probe", default="build/bin/trireme_probe", help="the binary of tests/oracle/probe.cc")
    parser.add_argument("--only", default="", help="part of a case's name")
    args = parser.parse_args()
    try:
        import peft
        import torch
        import transformers
    except ImportError as error:
        print(f"skipped: {error}; `launch/setup.sh --tests` installs torch, transformers and peft into .venv")
        return SKIPPED
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")

    from checks import Checks
    from probe import Probe

    checks = Checks()
    run(checks, Probe(args.probe), args.only)
    return checks.conclude()


if __name__ == "__main__":
    sys.exit(main())
