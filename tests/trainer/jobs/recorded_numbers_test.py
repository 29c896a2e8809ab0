# Models that were trained before must be trained alike today: losses and gradient norms of short runs, recorded from the program of commit
# c0100f3, before blocks were made of parts. Other processors' products round otherwise, so numbers are compared to 2e-6 of themselves.
#
#     recorded_numbers_test.py TRIREME --record    prints them anew
import json
import pathlib
import struct
import sys

import job

SIZES = "num_hidden_layers: 2 hidden_size: 64 num_attention_heads: 4 intermediate_size: 96 vocab_size: 97 initializer_range: 0.1"
RUN = """
data { source { path: "tokens.bin" } sequence_length: 32 } global_batch_size: 4 micro_batch_size: 2
optimizer { adamw { learning_rate: 3e-3 } } lr_schedule { warmup_steps: 2 cosine {} } train_for { steps: 4 } checkpoint { every_steps: 0 }
launch { device: CPU } logging { tensorboard: false } run_dir: "run"
"""
MODELS = {
    "llama": "num_key_value_heads: 2 attention_bias: true rope_scaling { rope_type: LLAMA3 factor: 4 original_max_position_embeddings: 16 }",
    "mistral": "num_key_value_heads: 1 sliding_window: 9 rope_scaling { rope_type: YARN factor: 4 original_max_position_embeddings: 16 }",
    "qwen2": "num_key_value_heads: 2 tie_word_embeddings: true",
    "qwen3": "num_key_value_heads: 2 head_dim: 24",
    "smollm3": "num_key_value_heads: 2 no_rope_layers: [0, 1]",
    "gemma2": "num_key_value_heads: 2 head_dim: 24 sliding_window: 9 layer_types: ['sliding_attention', 'full_attention'] attn_logit_softcapping: 3 final_logit_softcapping: 2",
    "gemma3_text": "num_key_value_heads: 2 head_dim: 24 sliding_window: 9 layer_types: ['sliding_attention', 'full_attention'] tie_word_embeddings: true",
    "gpt2": "",
    "gpt_neox": "partial_rotary_factor: 0.5",
    "gpt_neox, one after the other": "use_parallel_residual: false",
}
RECORDED = json.loads((pathlib.Path(__file__).parent / "recorded_numbers.json").read_text()) if "--record" not in sys.argv else {}
TOLERANCE = 2e-6  # of a number: float32 sums of some hundred terms in another order


def write_tokens(path):
    """An llm.c file whose tokens can be learned in part."""
    state, tokens = 1, []
    for i in range(4000):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        tokens.append((state >> 33) % 97 if i % 3 == 0 else (tokens[-1] * 3 + 1) % 97)
    header = [20240520, 1, len(tokens)] + [0] * 253
    path.write_bytes(struct.pack("<256i", *header) + struct.pack(f"<{len(tokens)}H", *tokens))


def numbers(folder, name, fields, threads=1):
    family = "llama" if name == "mistral" else name.split(",")[0]
    write_tokens(folder / "tokens.bin")
    (folder / "recipe.textproto").write_text(f'model {{ family: "{family}" {SIZES} {fields} }} {RUN}')
    result = job.train(folder, 1, recipe="recipe.textproto", env={"OMP_NUM_THREADS": str(threads)})
    assert result.code == 0, result.output
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [record[key] for record in records if record.get("type") == "train" for key in ("loss", "grad_norm")]


class RecordedNumbers(job.JobTest):
    def test_every_family(self):
        for name, fields in MODELS.items():
            with self.subTest(name):
                folder = self.folder / name.replace(" ", "_").replace(",", "")
                folder.mkdir()
                for got, recorded in zip(numbers(folder, name, fields), RECORDED[name], strict=True):
                    self.assertLess(abs(got / recorded - 1), TOLERANCE)

    def test_any_number_of_threads(self):
        alone = None
        for threads in 1, 2, 3:
            folder = self.folder / f"threads_{threads}"
            folder.mkdir()
            got = numbers(folder, "llama", MODELS["llama"], threads)
            alone = alone or got
            self.assertEqual(got, alone, f"{threads} threads")


if __name__ == "__main__":
    if "--record" in sys.argv:
        import tempfile

        sys.argv.remove("--record")
        job.TRIREME = sys.argv[1]
        recorded = {}
        for name, fields in MODELS.items():
            with tempfile.TemporaryDirectory() as folder:
                recorded[name] = numbers(pathlib.Path(folder), name, fields)
        print(json.dumps(recorded, indent=1))
    else:
        job.main()
