"""Import to ranks and export of a synthetic sharded model, against `cp`, `sync` and hashing of the same bytes.

Turns alternate, so that all see the same machine; the source's pages stay in memory if they fit there.
    tests/bench/import_export_bench.py --folder SCRATCH [--gigabytes 2] [--ranks 2] [--repeats 3]
Prints seconds, ratios of medians, and the largest anonymous memory of the exporting process.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
import zlib

WIDTH, HIDDEN, VOCABULARY = 2048, 8192, 32000
SHARD_BYTES = 1 << 30


def tensors_of(layers):
    yield "model.embed_tokens.weight", (VOCABULARY, WIDTH)
    for i in range(layers):
        prefix = f"model.layers.{i}."
        yield prefix + "input_layernorm.weight", (WIDTH,)
        for name in "qkvo":
            yield f"{prefix}self_attn.{name}_proj.weight", (WIDTH, WIDTH)
        yield prefix + "post_attention_layernorm.weight", (WIDTH,)
        yield prefix + "mlp.gate_proj.weight", (HIDDEN, WIDTH)
        yield prefix + "mlp.up_proj.weight", (HIDDEN, WIDTH)
        yield prefix + "mlp.down_proj.weight", (WIDTH, HIDDEN)
    yield "model.norm.weight", (WIDTH,)


def make(folder, total_bytes, dtype="BF16"):
    """A Llama, tied, in shards of 1 GiB."""
    width = {"BF16": 2, "F32": 4}[dtype]
    count = lambda shape: shape[0] * (shape[1] if len(shape) > 1 else 1)
    sizes = [sum(width * count(shape) for _, shape in tensors_of(n)) for n in (0, 1)]
    layers = max(1, round((total_bytes - sizes[0]) / (sizes[1] - sizes[0])))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": layers, "hidden_size": WIDTH, "intermediate_size": HIDDEN,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": VOCABULARY, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": True, "torch_dtype": {"BF16": "bfloat16", "F32": "float32"}[dtype], "hidden_act": "silu",
    }  # fmt: skip
    os.makedirs(folder)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file)
    shards, used = [[]], 0
    for name, shape in tensors_of(layers):
        if used + width * count(shape) > SHARD_BYTES:
            shards.append([])
            used = 0
        shards[-1].append((name, shape))
        used += width * count(shape)
    # Any finite values do: exponents of small numbers.
    noise = bytearray(os.urandom(1 << 24))
    noise[1::2] = bytes((b & 0x81) | 0x3C for b in noise[1::2])
    index = {}
    for number, shard in enumerate(shards):
        name = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        header, at = {"__metadata__": {"format": "pt"}}, 0
        for key, shape in shard:
            header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + width * count(shape)]}
            at += width * count(shape)
            index[key] = name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(os.path.join(folder, name), "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            while at > 0:
                file.write(noise[:at])
                at -= min(at, len(noise))
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as file:
        json.dump({"metadata": {}, "weight_map": index}, file)
    return sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder))


def copy(source, output):
    begin = time.monotonic()
    subprocess.run(["cp", "-r", source, output], check=True)
    subprocess.run(["sync", "-f", output], check=True)
    for name in sorted(os.listdir(output)):
        with open(os.path.join(output, name), "rb") as file:
            value = 0
            while chunk := file.read(1 << 22):
                value = zlib.crc32(chunk, value)
    return time.monotonic() - begin


def run(command):
    """Seconds, the output, and the largest anonymous memory of the process in bytes."""
    begin, largest = time.monotonic(), 0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout))
    reader.start()
    while process.poll() is None:
        try:
            with open(f"/proc/{process.pid}/status") as file:
                found = re.search(r"RssAnon:\s+(\d+) kB", file.read())
            largest = max(largest, int(found[1]) * 1024 if found else 0)
        except OSError:
            pass
        time.sleep(0.02)
    reader.join()
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{''.join(lines)[-3000:]}")
    return time.monotonic() - begin, "".join(lines), largest


def seconds_of(line):
    value, unit = re.search(r"took ([\d.]+) ?(ms|s|min)", line).groups()
    return float(value) * {"ms": 1e-3, "s": 1, "min": 60}[unit]


def recipe(folder, source):
    """One tiny step of training; its log says what the import took."""
    header = bytearray(1024)
    header[:12] = b"".join(n.to_bytes(4, "little") for n in (20240520, 1, 4096))
    with open(os.path.join(folder, "tokens.bin"), "wb") as file:
        file.write(header + bytes(8192))
    path = os.path.join(folder, "run.textproto")
    with open(path, "w") as file:
        file.write(
            f"""model {{ from: "{source}" }} data {{ source {{ path: "{folder}/tokens.bin" }} sequence_length: 8 }}
            global_batch_size: 2 micro_batch_size: 1 optimizer {{ sgd {{ learning_rate: 0 }} }} lr_schedule {{ clip_grad_norm: 0 }}
            train_for {{ steps: 1 }} launch {{ device: CPU }} logging {{ tensorboard: false }} run_dir: "{folder}/run"
            """
        )
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trireme", default="build/bin/trireme")
    parser.add_argument("--folder", required=True, help="for the model and its copies; made, and removed afterwards")
    parser.add_argument("--gigabytes", type=float, default=2)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], help="settings for the importing run")
    args = parser.parse_args()
    os.makedirs(args.folder)
    try:
        source, output = os.path.join(args.folder, "source"), os.path.join(args.folder, "output")
        size = make(source, args.gigabytes * 1e9)
        print(f"{size / 1e9:.2f} GB in {len(os.listdir(source)) - 2} shards")
        seconds = {"cp, sync, hash": [], f"import to {args.ranks} ranks": [], "export": []}
        memory = 0
        mpirun = ["mpirun", "--bind-to", "none", "--oversubscribe", "-np", str(args.ranks)] if args.ranks > 1 else []
        settings = [text for setting in args.set for text in ("--set", setting)]
        for _ in range(args.repeats):
            took = [copy(source, output)]
            shutil.rmtree(output)
            _, text, _ = run([*mpirun, args.trireme, "train", recipe(args.folder, source), *settings])
            shutil.rmtree(os.path.join(args.folder, "run"))
            took.append(max(seconds_of(line) for line in text.splitlines() if "weights of" in line))
            wall, _, anonymous = run([args.trireme, "export", source, "--format", "hf", "--shard-size", "1GB", "--output", output])
            took.append(wall)
            memory = max(memory, anonymous)
            shutil.rmtree(output)
            for name, value in zip(seconds, took):
                seconds[name].append(value)
            print("  " + ", ".join(f"{name} {value:.2f} s" for name, value in zip(seconds, took)), flush=True)
        base, *others = [statistics.median(values) for values in seconds.values()]
        print(f"medians: {', '.join(f'{name} {statistics.median(values):.2f} s' for name, values in seconds.items())}")
        print(f"ratios to cp, sync, hash: import {others[0] / base:.2f}, export {others[1] / base:.2f}")
        print(f"export's anonymous memory: {memory / 1e6:.0f} MB with shards of 1 GB")
    finally:
        shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
