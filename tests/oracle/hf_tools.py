"""What hf_oracle.py calls and compares with: model directories, token files, `trireme`, Transformers' loader."""

import json
import logging
import os
import subprocess
import warnings

SGD_RATE = 64.0  # large, so that the difference of two float32 weights still shows the gradient
LENGTH = 128


def read_tensors(folder):
    """Every tensor of a model directory, and the dtype it is stored in."""
    from safetensors import safe_open

    tensors = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            with safe_open(os.path.join(folder, name), "pt") as file:
                for key in file.keys():
                    assert key not in tensors, key
                    tensors[key] = file.get_tensor(key)
    return tensors


def same_bytes(ours, theirs):
    """Names of tensors that differ in anything: presence, dtype, shape, bits."""
    import torch

    wrong = sorted(set(ours) ^ set(theirs))
    for name in set(ours) & set(theirs):
        a, b = ours[name], theirs[name]
        if a.dtype != b.dtype or a.shape != b.shape or not torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)):
            wrong.append(name)
    return wrong


def edit_config(folder, change):
    path = os.path.join(folder, "config.json")
    with open(path) as file:
        config = json.load(file)
    change(config)
    with open(path, "w") as file:
        json.dump(config, file)


def to_old_dialect(config):
    """What Transformers 4 wrote."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")


def write_tokens(path, tokens):
    """An llm.c file."""
    import numpy as np

    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(tokens)
    with open(path, "wb") as file:
        file.write(header.tobytes() + np.array(tokens, dtype="<u2").tobytes())


class Program:
    """`trireme`, alone or under mpirun."""

    def __init__(self, binary):
        self.binary = os.path.abspath(binary)

    def __call__(self, *arguments, ranks=1, fails=False, environment=None):
        from probe import ENVIRONMENT

        command = [self.binary, *arguments]
        if ranks > 1:
            command = ["mpirun", "--bind-to", "none", "--oversubscribe", "-np", str(ranks)] + command
        threads = str(max(1, len(os.sched_getaffinity(0)) // ranks))
        everything = {"OMP_NUM_THREADS": threads, **os.environ, **ENVIRONMENT, **(environment or {})}
        # Two streams: mpirun may pass on a piece of a line of the one, then the other's.
        done = subprocess.run(command, env=everything, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        output = done.stdout + done.stderr
        if (done.returncode != 0) != fails:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{output[-4000:]}")
        return output


def recipe(folder, name, model, corpus, rate=SGD_RATE, rule="sgd", mesh="", more="", batch=4, length=LENGTH):
    """Writes a one-step recipe; returns its path and its run_dir."""
    run_dir = os.path.join(folder, name)
    path = run_dir + ".textproto"
    with open(path, "w") as file:
        file.write(
            f"""model {{ {model} }}
            data {{ source {{ path: "{corpus}" }} sequence_length: {length} }}
            global_batch_size: {batch} micro_batch_size: 1 parallel {{ {mesh} }}
            optimizer {{ {rule} {{ learning_rate: {rate} }} }} lr_schedule {{ clip_grad_norm: 0 }}
            train_for {{ steps: 1 }} launch {{ device: CPU }} logging {{ tensorboard: false }}
            run_dir: "{run_dir}" {more}
            """
        )
    return path, run_dir


def first_loss(run_dir):
    with open(os.path.join(run_dir, "metrics.jsonl")) as file:
        for line in file:
            record = json.loads(line)
            if "loss" in record and record.get("step") == 1:
                return record["loss"]
    raise RuntimeError(f"{run_dir} recorded no loss")


def batch_of(probe, folder, corpus, vocab):
    """The microbatches of step 1, as the probe says that `trireme train` reads them."""
    import torch
    from probe import Microbatch
    from safetensors import safe_open

    sizes = f"num_hidden_layers: 1 hidden_size: 8 num_attention_heads: 1 intermediate_size: 8 vocab_size: {vocab}"
    path, _ = recipe(folder, "tokens", sizes, corpus, rule="adamw")
    out = os.path.join(folder, "tokens_out")
    os.makedirs(out)
    probe.call(path, out, flags=["--tokens", "1"])
    with safe_open(os.path.join(out, "tokens.safetensors"), "pt") as file:
        tokens, targets = file.get_tensor("train.tokens")[0], file.get_tensor("train.targets")[0]
    return [Microbatch(t, y, [len(t)]) for t, y in zip(tokens.to(torch.int64), targets.to(torch.int64))]


class Listener(logging.Handler):
    """Collects what Transformers warns about while it loads."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def load(folder, dtype=None):
    """Transformers' model of a directory, and everything it complained about."""
    import torch
    from transformers import AutoModelForCausalLM

    listener, root = Listener(), logging.getLogger("transformers")
    root.addHandler(listener)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model, info = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype or torch.float32, attn_implementation="eager", output_loading_info=True
            )
    finally:
        root.removeHandler(listener)
    complaints = listener.messages + [str(w.message) for w in caught] + [f"{k}: {v}" for k, v in info.items() if v]
    # It says so of the published files, too, whose numbers its own class reads.
    return model, [text for text in complaints if "Unrecognized keys in `rope_parameters`" not in text]
