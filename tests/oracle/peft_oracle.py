"""Adapters against PEFT: same tiny model, adapter values and tokens; gradients and losses, on one rank and spread over many.

Runs alone: tests/oracle/peft_oracle.py --probe build/bin/trireme_probe
"""

import argparse
import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

from cases import MODELS, recipe, text  # noqa: E402
from checks import worst_of  # noqa: E402

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
    "LoRA, head among the targets": (dict(r=3, lora_alpha=6, target_modules=["v_proj", "down_proj", "lm_head"]), "grouped queries, untied"),
}  # fmt: skip

# Of the first case, of DoRA and with the head. Whole microbatches per data rank.
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
# Where the ways through the layouts have been walked by another case.
FEW = ["tensor: 2", 'pipeline: 2 pipeline_schedule: "ZB-H1"', "context: 2", "tensor: 2 pipeline: 2 data_shard: 2"]
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
    model = get_peft_model(reference, LoraConfig(task_type="CAUSAL_LM", **{**tying, **settings}))
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
    where, worst = worst_of({key: (ours[key] - theirs[key]).abs().max().item() / max(theirs[key].abs().max().item(), FLOOR) for key in set(ours) & set(theirs)})
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
            if number == 0 or settings.get("use_dora") or "lm_head" in settings["target_modules"]:
                check_layouts(checks, probe, name, text_recipe, start, steps[:3], result, few=number > 0 and not settings.get("use_dora"))


def philox(key, low, high):
    """Philox4x32-10 of arrays of 64-bit counters: four words for each (kernels/base/philox.h)."""
    import numpy as np

    mask = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    c = [low & mask, low >> shift, high & mask, high >> shift]
    k = [np.uint64(key[0]), np.uint64(key[1])]
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> shift) ^ c[1] ^ k[0], p1 & mask, (p0 >> shift) ^ c[3] ^ k[1], p0 & mask]
        k = [(k[0] + np.uint64(0x9E3779B9)) & mask, (k[1] + np.uint64(0xBB67AE85)) & mask]
    return c


def dropout_key(seed, name):
    """kernels/base/philox.h: MakeRandomKey() for dropout of the group whose first A is called `name`."""
    import numpy as np

    identity = 0xCBF29CE484222325
    for byte in name.encode():
        identity = ((identity ^ byte) * 0x100000001B3) % 2**64
    purpose = 3 << 56
    words = philox((seed % 2**32, seed >> 32), np.array([identity], dtype=np.uint64), np.array([purpose], dtype=np.uint64))
    return int(words[0][0]), int(words[1][0])


def put_dropout(peft, rate, seed, length):
    """PEFT's dropout replaced by ours: q, k, v and gate, up drop the same elements; token t of microbatch m is number m * length + t."""
    import numpy as np
    import torch

    class Dropout(torch.nn.Module):
        def __init__(self, key):
            super().__init__()
            self.key, self.calls = key, 0

        def forward(self, x):
            numbers = np.arange(self.calls * length, (self.calls + 1) * length, dtype=np.uint64)[:, None]
            self.calls += 1
            groups = np.arange(x.shape[-1] // 4, dtype=np.uint64)[None, :]
            numbers, groups = np.broadcast_arrays(numbers, groups)
            words = np.stack(philox(self.key, numbers, groups), -1).reshape(length, -1)
            keep = torch.from_numpy(words >= int(rate * 2**32)).view(x.shape)
            return x * keep / (1 - rate)

    first = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
    for name, module in peft.named_modules():
        if hasattr(module, "lora_dropout"):
            path, _, last = canonical(name).rpartition(".")
            prefix = path + "." if path else ""
            module.lora_dropout["default"] = Dropout(dropout_key(seed, f"{prefix}{first.get(last, last)}.lora_A.weight"))


def check_dropout(checks, probe):
    """Adapters' dropout: PEFT with the same elements dropped, and every layout drops the same."""
    import reference as ref
    import torch
    from probe import Request, random_microbatch

    settings, key = CASES["LoRA, all linear"]
    rate, seed = 0.3, 11
    model = MODELS[key]
    generator = torch.Generator().manual_seed(5)
    steps = [[random_microbatch(model["vocab_size"], [[50, 78], [128], [1, 127]][(s + m) % 3], generator) for m in range(8)] for s in range(3)]
    for dora in (False, True):
        name = f"dropout, {'DoRA' if dora else 'LoRA'}"
        settings = dict(settings, use_dora=dora, target_modules=ALL if dora else ALL + ["lm_head"])
        peft = wrap(ref.build(model, 77), settings, 3)
        start = {k: v.detach().clone() for k, v in named(peft).items()}
        text_recipe = recipe(model, "sgd { learning_rate: 0.5 }", sequences=8, micro_batch=1, steps=3, more=adapter_text(dict(settings, lora_dropout=rate)) + f" seed: {seed}")
        result = probe.run(Request(text_recipe, start, steps))
        without = probe.run(Request(text_recipe, start, steps, overrides=["adapter.lora_dropout=0"]))
        checks.above(f"{name}: the first loss moves", abs(result["loss"][0] - without["loss"][0]), 1e-5)
        if not dora:  # where PEFT's formula for dropout is another
            put_dropout(peft, rate, seed, 128)
            ref.forward_backward(peft, steps[0])
            compare_gradients(checks, name, result["gradients"], {k: p.grad for k, p in named(peft, trainable_only=True).items()})
        check_layouts(checks, probe, name, text_recipe, start, steps, result, few=True)


def check_pissa(checks, probe):
    """PiSSA: from PEFT's start the same gradients and losses; from ours every layout's the same, and no other function than the base."""
    import reference as ref
    import torch
    from llama_oracle import relative
    from peft import LoraConfig, get_peft_model
    from probe import Request, random_microbatch

    settings, key = dict(r=4, lora_alpha=8, target_modules=ALL), "grouped queries, untied"
    model = MODELS[key]
    generator = torch.Generator().manual_seed(6)
    steps = [[random_microbatch(model["vocab_size"], [[50, 78], [128], [1, 127]][(s + m) % 3], generator) for m in range(8)] for s in range(3)]
    plain = recipe(model, "sgd { learning_rate: 0.5 }", sequences=8, micro_batch=1, steps=3)
    text_recipe = plain + adapter_text(settings)[:-1] + "init_lora_weights: PISSA }"

    reference = ref.build(model, 78)
    start = {name: parameter.detach().clone() for name, parameter in reference.named_parameters()}
    peft = get_peft_model(reference, LoraConfig(task_type="CAUSAL_LM", init_lora_weights="pissa", **settings))
    for name, parameter in named(peft, trainable_only=True).items():
        for key in (name, name.replace(".lora_", ".initial_lora_")):
            start[key] = parameter.detach().clone()
    ref.forward_backward(peft, steps[0])
    gradients = {k: p.grad.detach().clone() for k, p in named(peft, trainable_only=True).items()}
    losses = ref.train(peft, torch.optim.SGD([p for p in peft.parameters() if p.requires_grad], lr=0.5), steps, [0.5] * 3)
    result = probe.run(Request(text_recipe, start, steps))
    compare_gradients(checks, "PiSSA", result["gradients"], gradients)
    checks.within("PiSSA: worst of 3 losses", relative(result["loss"], losses), LOSS_TOLERANCE)
    moved = [k for k, v in result["updated"].items() if ".initial_lora_" in k and not torch.equal(v, start[k])]
    checks.equal("PiSSA: initial factors that moved", moved, [])

    own = probe.run(Request(text_recipe, None, steps))
    base = probe.run(Request(plain, None, steps[:1]))
    checks.within("PiSSA, our start: the first loss is the base's", relative(own["loss"][:1], base["loss"][:1]), LOSS_TOLERANCE)
    checks.above("PiSSA, our start: the loss falls", own["loss"][0] - own["loss"][-1], 1e-4)
    check_layouts(checks, probe, "PiSSA, our start", text_recipe, None, steps, own, few=True)


def check_loraplus(checks, probe):
    """LoRA+: B learns faster, as PEFT's optimizer has it."""
    import reference as ref
    import torch
    from llama_oracle import relative
    from peft.optimizers import create_loraplus_optimizer
    from probe import Request, random_microbatch

    settings, key = CASES["LoRA, all linear"]
    model = MODELS[key]
    generator = torch.Generator().manual_seed(8)
    steps = [[random_microbatch(model["vocab_size"], [[50, 78], [128]][(s + m) % 2], generator) for m in range(8)] for s in range(5)]
    peft = wrap(ref.build(model, 79), settings, 4)
    start = {k: v.detach().clone() for k, v in named(peft).items()}
    ratio, rate = 8, 0.002
    theirs = create_loraplus_optimizer(peft, torch.optim.AdamW, lr=rate, loraplus_lr_ratio=ratio, betas=(0.9, 0.99), eps=1e-4, weight_decay=0.0)
    rates = {group["lr"] for group in theirs.param_groups if group["params"]}
    checks.equal("LoRA+: PEFT's rates", sorted(rates), [rate, rate * ratio])
    losses = []
    for step in steps:  # ref.train sets one rate for all
        theirs.zero_grad()
        losses.append(ref.forward_backward(peft, step))
        theirs.step()
    text_recipe = recipe(model, f"adamw {{ learning_rate: {rate} beta2: 0.99 eps: 1e-4 weight_decay: 0 }}", sequences=8, micro_batch=1, steps=5, more=adapter_text(settings)[:-1] + f"loraplus_lr_ratio: {ratio} }}")
    result = probe.run(Request(text_recipe, start, steps))
    plain = probe.run(Request(text_recipe, start, steps, overrides=["adapter.loraplus_lr_ratio=1"]))
    checks.within("LoRA+: worst of 5 losses", relative(result["loss"], losses), LOSS_TOLERANCE)
    checks.above("LoRA+: the ratio moves the losses", abs(result["loss"][-1] - plain["loss"][-1]), 1e-4)


def check_quantized(checks, probe):
    """LoRA on NF4 and INT8 bases: every layout that cuts no block trains as one rank does."""
    import torch
    from llama_oracle import relative
    from probe import Request, random_microbatch

    settings, key = CASES["LoRA, all linear"]
    model = dict(MODELS[key], hidden_size=256, intermediate_size=256, num_attention_heads=8, num_key_value_heads=4, head_dim=32)  # blocks fit four ranks
    generator = torch.Generator().manual_seed(9)
    steps = [[random_microbatch(model["vocab_size"], [[50, 78], [128]][(s + m) % 2], generator) for m in range(8)] for s in range(3)]
    plain = recipe(model, "sgd { learning_rate: 0.5 }", sequences=8, micro_batch=1, steps=3, more=adapter_text(settings))
    exact = probe.run(Request(plain, None, steps))
    for method in ("NF4", "INT8"):
        name = f"LoRA on {method}"
        text_recipe = plain.replace("model {", f"model {{\n  quantization {{ method: {method} }}", 1)
        result = probe.run(Request(text_recipe, None, steps))
        checks.above(f"{name}: its first loss is not the exact model's", relative(result["loss"][:1], exact["loss"][:1]), 1e-7)
        checks.above(f"{name}: the loss falls", result["loss"][0] - result["loss"][-1], 1e-4)
        check_layouts(checks, probe, name, text_recipe, None, steps, result, few=method == "INT8")


def check_directories(checks, trireme):
    """Directories that PEFT wrote, merged and written again by us: the same logits in Transformers and in PEFT; what would mean another model is refused."""
    import reference as ref
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.arange(24)[None] * 5 % 97
    tied, untied = MODELS["no groups, tied"], MODELS["grouped queries, untied"]
    some = dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    cases = {  # name: (model, settings, what is done to PEFT's model, what a refusal says)
        "regular expression": (untied, dict(some, target_modules=r".*layers\.0\..*(q|down)_proj"), None, ""),
        "tied, embedding trained whole": (tied, dict(some, modules_to_save=["embed_tokens"], ensure_weight_tying=True), "embedding", ""),
        "tied, embedding apart from the head": (tied, dict(some, modules_to_save=["embed_tokens"], ensure_weight_tying=False), "embedding", "without ensure_weight_tying"),
        "head among the targets": (untied, dict(some, target_modules=["q_proj", "lm_head"]), None, ""),
        "embedding changed but not named": (untied, some, "embedding saved", "differs from the base model's"),
        "names that match nothing": (untied, dict(some, target_modules=["q_proj", "c_attn"], alpha_pattern={"c_attn": 3}), None, ""),
    }
    with tempfile.TemporaryDirectory(prefix="trireme_oracle_") as folder:
        for number, (name, (model, settings, change, refusal)) in enumerate(cases.items()):
            base, adapter, merged, again = (os.path.join(folder, f"{what}{number}") for what in ("base", "adapter", "merged", "again"))
            ref.build(model, 90 + number).save_pretrained(base)
            peft = wrap(AutoModelForCausalLM.from_pretrained(base), settings, number)
            if change:
                with torch.no_grad():
                    for key, parameter in peft.named_parameters():
                        if "embed_tokens" in key and "original_module" not in key:
                            parameter.mul_(1.5)
            peft.save_pretrained(adapter, save_embedding_layers=True if change == "embedding saved" else "auto")
            flags = ["export", base, "--adapter", adapter, "--merge", "--dtype", "f32", "--output", merged]
            if refusal:
                checks.equal(f"{name}: refused", refusal in trireme(*flags, fails=True), True)
                continue
            trireme(*flags)
            trireme("export", base, "--adapter", adapter, "--format", "peft", "--output", again)
            with torch.no_grad():
                expected = peft.eval()(ids).logits
                ours = AutoModelForCausalLM.from_pretrained(merged).eval()(ids).logits
                theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), again).eval()(ids).logits
            checks.within(f"{name}: merged, in Transformers", (ours - expected).abs().max().item(), 1e-5)
            checks.within(f"{name}: written again, in PEFT", (theirs - expected).abs().max().item(), 1e-6)


def check_layouts(checks, probe, name, text_recipe, start, steps, plain, few=False):
    from llama_oracle import relative
    from probe import Request

    cases = {f"parallel {{ {layout} }}": ranks for layout, ranks in LAYOUTS.items() if not few or layout in FEW}
    cases.update({more: 1 for more in RECOMPUTE[1 if few else 0 :]})
    cases[f"parallel {{ tensor: 2 }} {RECOMPUTE[1]}"] = 2
    for more, ranks in cases.items():
        result = probe.run(Request(text_recipe + "\n" + more, start, steps, ranks=ranks))
        compare_gradients(checks, f"{name}, {more}", result["gradients"], plain["gradients"], LAYOUT_TOLERANCE)
        checks.within(f"{name}, {more}: losses", relative(result["loss"], plain["loss"][: len(steps)]), LOSS_TOLERANCE)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probe", default="build/bin/trireme_probe", help="the binary of tests/oracle/probe.cc")
    parser.add_argument("--trireme", default="build/bin/trireme")
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
    from hf_tools import Program
    from probe import Probe

    checks = Checks()
    run(checks, Probe(args.probe), args.only)
    if args.only in "dropout":
        check_dropout(checks, Probe(args.probe))
    if args.only in "quantized":
        check_quantized(checks, Probe(args.probe))
    if args.only in "lora+":
        check_loraplus(checks, Probe(args.probe))
    if args.only in "directories":
        check_directories(checks, Program(args.trireme))
    if args.only in "pissa":
        check_pissa(checks, Probe(args.probe))
    return checks.conclude()


if __name__ == "__main__":
    sys.exit(main())
