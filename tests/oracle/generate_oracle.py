"""What `trireme generate` says, against Transformers: greedy tokens and their log-probabilities, on several meshes."""

import json
import os
import tempfile

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


def run_with(checks, trireme):
    import reference as ref

    with tempfile.TemporaryDirectory(prefix="trireme_generate_") as folder:
        check_greedy(checks, ref, trireme, folder)


def run(checks, probe):
    from hf_tools import Program

    run_with(checks, Program(os.path.join(os.path.dirname(probe.binary), "trireme")))
