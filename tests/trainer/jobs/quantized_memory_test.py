# The memory of an NF4 base: 0.53 bytes for each of its parameters, half of it on each of two ranks, and loading needs little more.
# Writes a model of a billion parameters (2 GB) into the scratch folder.
import json
import pathlib
import random
import struct
import time

import job

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, VOCABULARY = 2048, 8192, 16, 32, 8, 512
BYTES_PER_PARAMETER = 0.53
LOADING_FACTOR, LOADING_EXTRA = 1.3, 300e6

RECIPE = """
model { from: "%s" quantization { method: NF4 } }
adapter { r: 1 }
data { source { path: "tokens.bin" } sequence_length: 64 }
global_batch_size: 2
micro_batch_size: 1
parallel { shard: PARAMETERS }
optimizer { sgd { learning_rate: 0 } }
train_for { steps: 1 }
logging { tensorboard: false }
launch { device: CPU }
run_dir: "run_%s"
"""


def shapes(layers):
    """Names and shapes, and how many parameters are quantized."""
    kv = HIDDEN * KV_HEADS // HEADS
    tensors = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    quantized = 0
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        matrices = {
            "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (kv, HIDDEN), "self_attn.v_proj": (kv, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN), "mlp.down_proj": (HIDDEN, FFN),
        }  # fmt: skip
        for name, shape in matrices.items():
            tensors[prefix + name + ".weight"] = shape
            quantized += shape[0] * shape[1]
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[prefix + name + ".weight"] = (HIDDEN,)
    return tensors, quantized


def write_model(folder, layers):
    """A directory of bfloat16 weights, one random block over and over."""
    folder.mkdir()
    tensors, quantized = shapes(layers)
    config = dict(
        model_type="llama", hidden_size=HIDDEN, intermediate_size=FFN, num_hidden_layers=layers, vocab_size=VOCABULARY, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=True, hidden_act="silu", rope_theta=10000.0,
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    generator = random.Random(7)
    block = b"".join(struct.pack("<f", generator.gauss(0, 0.02))[2:] for _ in range(1 << 19))
    header, at = {}, 0
    for name, shape in tensors.items():
        numel = shape[0] * (shape[1] if len(shape) == 2 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + 2 * numel]}
        at += 2 * numel
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        while at > 0:
            at -= file.write(block[: min(at, len(block))])
    return quantized


class QuantizedMemory(job.JobTest):
    def load(self, model, ranks):
        """For each rank: anonymous memory at the end of loading, and the most until then."""
        (self.folder / "tokens.bin").write_bytes(struct.pack("<256i", 20240520, 1, 1000, *[0] * 253) + struct.pack("<1000H", *[i % 500 for i in range(1000)]))
        name = f"{model.name}_{ranks}.textproto"
        (self.folder / name).write_text(RECIPE % (model, f"{model.name}_{ranks}"))
        started = job.start_train(self.folder, ranks, recipe=name)
        last, most = {}, {}
        deadline = time.monotonic() + 200
        while "weights of" not in started.output() and started.process.poll() is None and time.monotonic() < deadline:
            for rank in started.ranks():
                now = job.memory(rank, "RssAnon")  # bytes that are no file's
                if now > 0:
                    last[rank], most[rank] = now, max(now, most.get(rank, 0))
            time.sleep(0.002)
        result = started.wait(200)
        self.assertCode(result, 0)
        return [(last[rank], most[rank]) for rank in sorted(last)]

    def test_a_billion_parameters(self):
        # A model of one such layer needs what does not grow with the model.
        one, all_layers = self.folder / "one", self.folder / "all"
        quantized = -write_model(one, 1) + write_model(all_layers, LAYERS)
        for ranks in (1, 2):
            idle = self.load(one, ranks)
            share = quantized / ranks
            for rank, (end, most) in enumerate(self.load(all_layers, ranks)):
                base, needed = end - idle[rank][0], most - idle[rank][0]
                print(f"{quantized / 1e6:.0f} M quantized parameters, rank {rank} of {ranks}: base {base / 1e6:.1f} MB, {base / share:.4f} bytes each; loading needed {needed / 1e6:.1f} MB")
                self.assertLess(base / share, BYTES_PER_PARAMETER)
                self.assertGreater(base / share, 0.5, "not everything was counted")
                self.assertLess(needed, LOADING_FACTOR * BYTES_PER_PARAMETER * share + LOADING_EXTRA)


if __name__ == "__main__":
    job.main()
