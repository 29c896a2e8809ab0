"""What `trireme generate` and `trireme evaluate` say, against Transformers, on several meshes.

Runs alone: tests/oracle/generate_oracle.py --trireme build/bin/trireme
"""

import argparse
import json
import math
import os
import shutil
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

SKIPPED = 77

LOG_PROBABILITY_TOLERANCE = 1e-4
TOKENS = 24
PROMPTS = ([5, 17, 300], [1], list(range(40, 75)))


def last_line(output):
    """The JSON line among log lines."""
    return json.loads([line for line in output.splitlines() if line.startswith("{")][-1])


def greedy(model, prompt, tokens, **options):
    """Transformers' greedy continuation and the log-probability of each token."""
    import torch

    with torch.no_grad():
        out = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=tokens, do_sample=False,
            use_cache=True, output_logits=True, return_dict_in_generate=True, **options,
        )  # fmt: skip
    ids = out.sequences[0, len(prompt) :].tolist()
    return ids, [torch.log_softmax(logits[0].double(), -1)[i].item() for i, logits in zip(ids, out.logits)]


def compare(checks, label, ours, theirs, tolerance=LOG_PROBABILITY_TOLERANCE):
    ids, log_probabilities = theirs
    different = [step for step, (a, b) in enumerate(zip(ours["ids"], ids)) if a != b]
    checks.equal(f"{label}: {len(ids)} greedy tokens, and which differ", [len(ours["ids"]), different], [len(ids), []])
    worst = max((abs(a - b) for a, b in zip(ours["log_probabilities"], log_probabilities)), default=0.0)
    checks.within(f"{label}: log-probabilities", worst, tolerance)


def comma(ids):
    return ",".join(map(str, ids))


def check_greedy(checks, ref, trireme, folder):
    from cases import MODELS

    meshes = ((1, ""), (2, "tensor: 2"), (2, "pipeline: 2"), (4, "tensor: 2 pipeline: 2"), (3, ""))
    for seed, (name, sizes) in enumerate(MODELS.items()):
        model = ref.build(dict(sizes, max_position_embeddings=128), 90 + seed).eval()
        model.config.use_cache = True
        path = os.path.join(folder, f"model{seed}")
        model.save_pretrained(path)
        for ranks, mesh in meshes if seed == 0 else meshes[:1]:
            flags = ["--set", f"parallel {{ {mesh} }}"] if mesh else []
            for prompt in PROMPTS:
                label = f"{name}, {ranks} ranks ({mesh}), prompt of {len(prompt)}"
                output = trireme("generate", path, "--prompt-ids", comma(prompt), "--max-tokens", str(TOKENS), "--ignore-eos", "--json", *flags, ranks=ranks)
                compare(checks, label, last_line(output), greedy(model, prompt, TOKENS, eos_token_id=None))


def check_families(checks, trireme, folder):
    """What families add to the cache: learned positions, partial rotation."""
    from families_oracle import FAMILIES, build

    for family in ("gpt2", "gpt_neox"):
        name, model = FAMILIES[family][0]
        reference = build(family, model, 60).eval()
        path = os.path.join(folder, family)
        reference.save_pretrained(path)
        for ranks, mesh in ((1, ""), (4, "tensor: 2 pipeline: 2")):
            flags = ["--set", f"parallel {{ {mesh} }}"] if mesh else []
            for prompt in PROMPTS:
                output = trireme("generate", path, "--prompt-ids", comma(prompt), "--max-tokens", str(TOKENS), "--ignore-eos", "--json", *flags, ranks=ranks)
                compare(checks, f"{family}, {name}, {ranks} ranks, prompt of {len(prompt)}", last_line(output), greedy(reference, prompt, TOKENS, eos_token_id=None))


# Of SmolLM2-Instruct, as its tokenizer has it.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, "
    "trained by Hugging Face<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def text_model(ref, trireme, folder):
    """A model directory with a tokenizer of ours, and a corpus for it."""
    text, words = os.path.join(folder, "text.jsonl"), "the quick brown fox jumps over a lazy dog while nobody looks".split()
    with open(text, "w") as file:
        for i in range(200):
            document = ".\n".join(" ".join(words[(i * 7 + k * 3 + j * (1 + i % 5)) % len(words)] for j in range(12)) for k in range(10))
            file.write(json.dumps({"text": document}) + "\n")
    tokenizer, corpus, path = os.path.join(folder, "tokenizer.json"), os.path.join(folder, "corpus"), os.path.join(folder, "text_model")
    trireme("tokenizer", "train", text, "--vocab-size", "300", "--output", tokenizer)
    trireme("prepare", text, "--tokenizer", tokenizer, "--output", corpus, "--validation-fraction", "0.2")
    sizes = dict(num_hidden_layers=2, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=160, vocab_size=300, max_position_embeddings=256)
    model = ref.build(sizes, 95).eval()
    model.config.use_cache = True
    model.save_pretrained(path)
    shutil.copy(tokenizer, path)
    with open(os.path.join(path, "tokenizer_config.json"), "w") as file:
        json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "eos_token": "<|endoftext|>"}, file)
    with open(os.path.join(path, "chat_template.jinja"), "w") as file:
        file.write(CHAT_TEMPLATE)
    return path, model, corpus


def check_text(checks, trireme, path, model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    flags = ["--max-tokens", "60", "--ignore-eos", "--json"]
    prompts = ("the quick", "  Zürich 日本\n", "What is the capital of France?")
    for prompt in prompts:
        ours = last_line(trireme("generate", path, "--prompt", prompt, *flags))
        ids = tokenizer(prompt)["input_ids"]
        checks.equal(f"text {prompt!r}: ids of the prompt", ours["prompt_ids"], ids)
        compare(checks, f"text {prompt!r}", ours, greedy(model, ids, 60, eos_token_id=None))
        checks.equal(f"text {prompt!r}: the text of the tokens", ours["text"] == tokenizer.decode(ours["ids"]), True)
        for system in (None, "Be brief."):
            messages = [{"role": "system", "content": system}] * (system is not None) + [{"role": "user", "content": prompt}]
            expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            more = [] if system is None else ["--system", system]
            ours = last_line(trireme("generate", path, "--chat", "--prompt", prompt, "--max-tokens", "1", "--json", *more))
            checks.equal(f"chat {prompt!r}, system {system!r}: ids of the prompt", ours["prompt_ids"] == tokenizer(expected)["input_ids"], True)


def check_end(checks, trireme, path, model):
    """Stops where generation_config.json says, without the token that ends it."""
    ids, _ = greedy(model, [5, 17, 30], TOKENS, eos_token_id=None)
    stop = next(i for i in range(1, TOKENS) if ids[i] not in ids[:i])
    config = os.path.join(path, "generation_config.json")
    with open(config) as file:
        settings = json.load(file)
    with open(config, "w") as file:
        json.dump({**settings, "eos_token_id": [ids[stop], 7]}, file)
    ours = last_line(trireme("generate", path, "--prompt-ids", comma([5, 17, 30]), "--max-tokens", str(TOKENS), "--json"))
    checks.equal("ends at the model's end token", [ours["ids"], ours["finish"]], [ids[:stop], "end"])


def check_evaluate(checks, trireme, folder, path, model, corpus):
    import numpy as np
    import torch
    import torch.nn.functional as F
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    [name] = [name for name in os.listdir(corpus) if name.startswith("validation") and name.endswith(".bin")]
    tokens = torch.from_numpy(np.fromfile(os.path.join(corpus, name), dtype="<u2").astype(np.int64))
    length = 64
    windows = (len(tokens) - 1) // length
    inputs, targets = tokens[: windows * length].view(windows, length), tokens[1 : windows * length + 1]
    with torch.no_grad():
        loss = F.cross_entropy(model(input_ids=inputs).logits.flatten(0, 1).double(), targets).item()
    text = tokenizer.decode([i for i in targets.tolist() if i != tokenizer.eos_token_id])
    bits = loss * len(targets) / math.log(2) / len(text.encode())
    for ranks, mesh in ((1, ""), (3, ""), (4, "tensor: 2 context: 2")):
        flags = ["--set", f"parallel {{ {mesh} }}"] if mesh else []
        ours = last_line(trireme("evaluate", path, "--data", corpus, "--sequence-length", str(length), "--json", *flags, ranks=ranks))
        label = f"evaluate on {ranks} ranks ({mesh})"
        checks.equal(f"{label}: tokens and bytes", [ours["tokens"], ours["bytes"]], [len(targets), len(text.encode())])
        checks.within(f"{label}: loss", abs(ours["loss"] / loss - 1), 1e-5)
        checks.within(f"{label}: perplexity", abs(ours["perplexity"] / math.exp(loss) - 1), 1e-4)
        checks.within(f"{label}: bits per byte", abs(ours["bits_per_byte"] / bits - 1), 1e-5)


def check_choices(checks, trireme, folder, path, model):
    import torch
    from transformers import AutoTokenizer

    tokenizer, questions = AutoTokenizer.from_pretrained(path), os.path.join(folder, "questions.jsonl")
    words = "fox dog nobody looks-at-it lazy quick brown 日本".split()
    lines = [{"prompt": f"the {words[i % 7]}{'' if i % 3 else ' '}", "choices": [words[(i + j) % 8] * (1 + j) for j in range(2 + i % 3)], "answer": i % 2} for i in range(12)]
    with open(questions, "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    scores = []
    for line in lines:
        scores.append([])
        for choice in line["choices"]:
            context = line["prompt"].rstrip()
            whole, begin = tokenizer(f"{context} {choice}")["input_ids"], len(tokenizer(context)["input_ids"])
            with torch.no_grad():
                log_probabilities = torch.log_softmax(model(input_ids=torch.tensor([whole])).logits[0].double(), -1)
            scores[-1].append(sum(log_probabilities[i - 1, whole[i]].item() for i in range(begin, len(whole))))
    right = [max(range(len(s)), key=s.__getitem__) == line["answer"] for s, line in zip(scores, lines)]
    per_byte = [[x / len(c.encode()) for x, c in zip(s, line["choices"])] for s, line in zip(scores, lines)]
    right_per_byte = [max(range(len(s)), key=s.__getitem__) == line["answer"] for s, line in zip(per_byte, lines)]
    for ranks, mesh in ((1, ""), (3, ""), (4, "tensor: 2 pipeline: 2")):
        flags = ["--set", f"parallel {{ {mesh} }}"] if mesh else []
        ours = last_line(trireme("evaluate", path, "--choices", questions, "--json", *flags, ranks=ranks))
        label = f"choices on {ranks} ranks ({mesh})"
        worst = max(abs(a - b) for mine, theirs in zip(ours["log_likelihoods"], scores) for a, b in zip(mine, theirs))
        checks.within(f"{label}: log-likelihoods", worst, LOG_PROBABILITY_TOLERANCE)
        expected = [sum(right) / len(lines), sum(right_per_byte) / len(lines), len(lines)]
        checks.equal(f"{label}: accuracies", [ours["accuracy"], ours["accuracy_normalized"], ours["questions"]], expected)


def run_with(checks, trireme):
    import reference as ref

    with tempfile.TemporaryDirectory(prefix="trireme_generate_") as folder:
        check_greedy(checks, ref, trireme, folder)
        check_families(checks, trireme, folder)
        path, model, corpus = text_model(ref, trireme, folder)
        check_text(checks, trireme, path, model)
        check_evaluate(checks, trireme, folder, path, model, corpus)
        check_choices(checks, trireme, folder, path, model)
        check_end(checks, trireme, path, model)


def run(checks, probe):
    from hf_tools import Program

    run_with(checks, Program(os.path.join(os.path.dirname(probe.binary), "trireme")))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trireme", default="build/bin/trireme")
    args = parser.parse_args()
    try:
        import transformers
    except ImportError as error:
        print(f"skipped: {error}; `launch/setup.sh` installs torch, transformers and safetensors into .venv")
        return SKIPPED
    from checks import Checks
    from hf_tools import Program

    transformers.utils.logging.disable_progress_bar()
    checks, trireme = Checks(), Program(args.trireme)
    run_with(checks, trireme)
    return checks.conclude()


if __name__ == "__main__":
    sys.exit(main())
