# Models and files of others: lengths that fill no page, weights that diverged, text that would steer the terminal, values of wrong types, patterns that never end.
# Each ends with its own exit code and a message, never as a defect of ours.
import json
import math
import os
import pathlib
import pty
import random
import re
import struct
import subprocess
import unittest

import job

NON_FINITE = 7
POSITIONS = 50  # no multiple of a page, which holds 16 tokens
ESCAPE = "\x1b"
SIZES = dict(width=32, heads=2, inner=48, vocab=384)


def write_safetensors(path, tensors):
    """tensors: {name: (shape, values)}, as float32"""
    header, data = {}, b""
    for name, (shape, values) in tensors.items():
        raw = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def numbers(rng, *shape, deviation=0.3):
    return list(shape), [rng.gauss(0, deviation) for _ in range(math.prod(shape))]


def constant(value, *shape):
    return list(shape), [value] * math.prod(shape)


def llama(folder, positions=POSITIONS, norm=1.0, says=None):
    """A Llama of one layer. says: the id that it answers whatever it is asked."""
    width, heads, inner, vocab = SIZES.values()
    rng = random.Random(7)
    tensors = {"model.embed_tokens.weight": numbers(rng, vocab, width)}
    for name, rows, columns in (("self_attn.q", width, width), ("self_attn.k", width, width), ("self_attn.v", width, width), ("self_attn.o", width, width),
                                ("mlp.gate", inner, width), ("mlp.up", inner, width), ("mlp.down", width, inner)):
        tensors[f"model.layers.0.{name}_proj.weight"] = numbers(rng, rows, columns) if says is None else constant(0, rows, columns)
    for name in ("layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm"):
        tensors[f"model.{name}.weight"] = constant(norm if name == "norm" else 1.0, width)
    tensors["lm_head.weight"] = numbers(rng, vocab, width)
    if says is not None:
        tensors["model.embed_tokens.weight"] = constant(1.0, vocab, width)
        tensors["lm_head.weight"] = constant(0.0, vocab, width)
        tensors["lm_head.weight"][1][says * width : (says + 1) * width] = [1.0] * width
    return write(folder, tensors, architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=width, intermediate_size=inner, num_hidden_layers=1,
                 num_attention_heads=heads, num_key_value_heads=heads, vocab_size=vocab, max_position_embeddings=positions, rms_norm_eps=1e-5, rope_theta=10000.0,
                 hidden_act="silu", tie_word_embeddings=False, torch_dtype="float32")


def gpt2(folder, positions=POSITIONS):
    """With a table of positions."""
    width, heads, inner, vocab = SIZES.values()
    rng = random.Random(8)
    tensors = {"transformer.wte.weight": numbers(rng, vocab, width), "transformer.wpe.weight": numbers(rng, 64, width)}
    tensors["transformer.wpe.weight"] = ([positions, width], tensors["transformer.wpe.weight"][1][: positions * width])
    for name, rows, columns in (("attn.c_attn", width, 3 * width), ("attn.c_proj", width, width), ("mlp.c_fc", width, inner), ("mlp.c_proj", inner, width)):
        tensors[f"transformer.h.0.{name}.weight"] = numbers(rng, rows, columns)
        tensors[f"transformer.h.0.{name}.bias"] = constant(0.0, columns)
    for name in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
        tensors[f"transformer.{name}.weight"], tensors[f"transformer.{name}.bias"] = constant(1.0, width), constant(0.0, width)
    return write(folder, tensors, architectures=["GPT2LMHeadModel"], model_type="gpt2", n_embd=width, n_layer=1, n_head=heads, n_inner=inner, n_positions=positions,
                 vocab_size=vocab, layer_norm_epsilon=1e-5, activation_function="gelu_new", tie_word_embeddings=True, torch_dtype="float32")


def write(folder, tensors, **config):
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class ForeignModel(job.JobTest):
    def trireme(self, *arguments, ranks=0):
        mpirun = ["mpirun", "--quiet", "--bind-to", "none", "--oversubscribe", "-np", ranks] if ranks else []
        return job.run(self.folder, *mpirun, job.TRIREME, *arguments)

    def answer(self, folder, prompt, tokens, *flags, ranks=0):
        result = self.trireme("generate", folder, "--prompt-ids", ",".join(map(str, prompt)), "--max-tokens", tokens, "--ignore-eos", "--json", *flags, ranks=ranks)
        self.assertCode(result, 0)
        return json.loads(result.stdout), result

    def with_tokenizer(self, folder, change=None):
        file = json.loads((self.folder / "tokenizer.json").read_text())
        if change:
            change(file)
        (folder / "tokenizer.json").write_text(json.dumps(file))
        return folder

    def test_no_position_beyond_the_model_is_used(self):
        prompt = [5, 17, 3]
        for make in (llama, gpt2):
            with self.subTest(make.__name__):
                answer, result = self.answer(make(self.folder / make.__name__), prompt, 1000)
                self.assertSays(result, f"stopped at the {POSITIONS} tokens")
                # The last token needs no position: nothing comes after it.
                self.assertEqual(len(answer["ids"]), POSITIONS + 1 - len(prompt))
                self.assertTrue(all(math.isfinite(p) for p in answer["log_probabilities"]))
                # A model with room for more says the same so far.
                longer, _ = self.answer(make(self.folder / f"{make.__name__}-longer", positions=64), prompt, POSITIONS + 1 - len(prompt))
                self.assertEqual(answer["ids"], longer["ids"])
                for parallel in ("tensor: 2", "pipeline: 1 context: 2"):
                    shared, _ = self.answer(self.folder / make.__name__, prompt, 1000, "--set", f"parallel {{ {parallel} }}", ranks=2)
                    self.assertEqual(answer["ids"], shared["ids"], parallel)

    def test_a_run_of_any_length_generates_to_its_end(self):
        for length in (7, 15, 16, 17, 37):
            with self.subTest(length):
                run = f"run-{length}"
                settings = [f"data.sequence_length={length}", f'run_dir="{run}"', "train_for.steps=2", "lr_schedule.warmup_steps=1"]
                self.assertCode(self.trireme("train", "tiny.textproto", *(part for one in settings for part in ("--set", one))), 0)
                answer, _ = self.answer(run, [1, 2], 100)
                self.assertEqual(len(answer["ids"]), length + 1 - 2)
                result = self.trireme("evaluate", run, "--data", "corpus", "--max-sequences", 2)
                self.assertCode(result, 0)
                self.assertSays(result, f"windows of {length // 2 * 2}")  # an even number of tokens

    def test_evaluate_measures_as_the_run_did(self):
        prepared = self.trireme("prepare", job.TEXT, "--delimiter", r"\n\n", "--tokenizer", "tokenizer.json", "--output", "paragraphs", "--validation-fraction", 0.1)
        self.assertCode(prepared, 0)
        for mask in ("true", "false"):
            with self.subTest(document_mask=mask):
                run = f"run-{mask}"
                settings = ['data { source { path: "paragraphs" } }', f"data.document_mask={mask}", f'run_dir="{run}"', "train_for.steps=4", "lr_schedule.warmup_steps=1", "evaluation.every_steps=4"]
                trained = self.trireme("train", "tiny.textproto", *(part for one in settings for part in ("--set", one)))
                self.assertCode(trained, 0)
                during = float(re.search(r"validation loss ([0-9.]+)", trained.output).group(1))
                losses = {}
                for flag in ("", "--document-mask", "--no-document-mask"):
                    result = self.trireme("evaluate", run, "--data", "paragraphs", "--json", *([flag] if flag else []))
                    self.assertCode(result, 0)
                    losses[flag] = json.loads(result.stdout)["loss"]
                self.assertAlmostEqual(losses[""], during, delta=1e-4)
                self.assertEqual(losses[""], losses["--document-mask" if mask == "true" else "--no-document-mask"])
                self.assertNotEqual(losses["--document-mask"], losses["--no-document-mask"])

    def test_choices_end_where_the_model_does(self):
        folder = self.with_tokenizer(llama(self.folder / "choices"))
        text = "A line of text with more tokens than the model has positions for. " * 8
        for length, code in ((20, 0), (len(text), job.DATA)):
            (self.folder / "questions.jsonl").write_text(json.dumps({"prompt": text[:length], "choices": ["a", "b"], "answer": 0}))
            result = self.trireme("evaluate", folder, "--choices", "questions.jsonl")
            self.assertCode(result, code)

    def test_evaluate_fits_its_windows_to_the_model(self):
        for make in (llama, gpt2):
            with self.subTest(make.__name__):
                folder = self.with_tokenizer(make(self.folder / f"windows-{make.__name__}"))
                result = self.trireme("evaluate", folder, "--data", "corpus", "--max-sequences", 4)
                self.assertCode(result, 0)
                self.assertSays(result, f"windows of {POSITIONS}")

    def test_diverged_weights_are_told_whatever_the_sampling(self):
        folder = llama(self.folder / "diverged", norm=math.nan)
        for sampling in ([], ["--temperature", 1, "--top-p", 0.9], ["--temperature", 1, "--top-k", 5], ["--temperature", 0.7]):
            with self.subTest(sampling):
                result = self.trireme("generate", folder, "--prompt-ids", "1,2,3", "--max-tokens", 4, "--print-ids", *sampling)
                self.assertCode(result, NON_FINITE)
                self.assertSays(result, "the model's answer is not a finite number", times=1)
        self.with_tokenizer(folder)
        (self.folder / "one.jsonl").write_text(json.dumps({"prompt": "A", "choices": ["a", "b"], "answer": 0}))
        for arguments in (["--data", "corpus", "--max-sequences", 2], ["--data", "corpus", "--max-sequences", 2, "--json"], ["--choices", "one.jsonl"]):
            with self.subTest(arguments):
                result = self.trireme("evaluate", folder, *arguments)
                self.assertCode(result, NON_FINITE)
                self.assertSays(result, "are the model's weights finite?", times=1)
                self.assertEqual(result.stdout, "")

    def test_a_models_text_does_not_steer_the_terminal(self):
        vocabulary = json.loads((self.folder / "tokenizer.json").read_text())["model"]["vocab"]
        folder = self.with_tokenizer(llama(self.folder / "steering", says=vocabulary[chr(256 + ord(ESCAPE))]))
        command = [job.TRIREME, "generate", str(folder), "--prompt", "Hi", "--max-tokens", "3", "--ignore-eos"]
        piped = subprocess.run(command, capture_output=True, env=job.ENVIRONMENT, stdin=subprocess.DEVNULL, timeout=60)
        self.assertEqual((piped.returncode, piped.stdout.decode()), (0, ESCAPE * 3 + "\n"), piped.stderr.decode())
        ours, theirs = pty.openpty()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.DEVNULL, env=job.ENVIRONMENT)
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:
            pass  # how Linux says that the other side is closed
        os.close(ours)
        self.assertEqual(process.wait(60), 0)
        self.assertEqual(shown.decode().strip(), "\\x1B" * 3)

    def test_messages_do_not_steer_the_terminal(self):
        folder = llama(self.folder / "named")
        config = json.loads((folder / "config.json").read_text())
        config["hidden_act"] = f"{ESCAPE}]0;owned\x07"
        config[f"key{ESCAPE}[2J"] = f"{ESCAPE}[31m"
        (folder / "config.json").write_text(json.dumps(config))
        result = self.trireme("generate", folder, "--prompt-ids", "1", "--print-ids")
        self.assertCode(result, job.DATA)
        self.assertNotIn(ESCAPE, result.output)
        result = self.trireme("inspect", f"no{ESCAPE}[31m-such-file")
        self.assertNotEqual(result.code, 0)
        self.assertSays(result, "no\\x1B[31m-such-file")
        self.assertNotIn(ESCAPE, result.output)

    def test_values_of_wrong_types_are_errors_of_the_data(self):
        for number, processor in enumerate(({"type": 5}, {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": 5}}]}, 5)):
            with self.subTest(processor):
                folder = self.with_tokenizer(llama(self.folder / f"types-{number}"), lambda file: file.update(post_processor=processor))
                result = self.trireme("generate", folder, "--prompt", "Hi", "--max-tokens", 2)
                self.assertCode(result, job.DATA)
                self.assertSays(result, "post_processor", times=1)

    def test_a_damaged_generation_config_is_told(self):
        for number, (text, said) in enumerate((("{", "is the file whole?; generation does not stop at its eos_token_id"), ('{"eos_token_id": [1, "two"]}', 'eos_token_id holds "two", which is no id'))):
            with self.subTest(text):
                folder = self.with_tokenizer(llama(self.folder / f"generation-{number}"))
                (folder / "generation_config.json").write_text(text)
                result = self.trireme("generate", folder, "--prompt-ids", "1", "--max-tokens", 2, "--print-ids")
                self.assertCode(result, 0)
                self.assertSays(result, said, times=1)

    def test_a_pattern_that_never_ends_is_an_error_of_the_data(self):
        def change(file):
            split = {"type": "Split", "pattern": {"Regex": "(a+)+[bc]"}, "behavior": "Isolated", "invert": False}
            byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
            file["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, byte_level]}

        folder = self.with_tokenizer(llama(self.folder / "pattern"), change)
        hard = "a" * 100
        (self.folder / "hard.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("fine", hard)))
        (self.folder / "chat.textproto").write_text(
            job.RECIPE.replace('source { path: "corpus" }', 'conversations { path: "hard.jsonl" tokenizer: "pattern" }'))
        for command in (["prepare", "hard.jsonl", "--tokenizer", folder, "--output", "hard"], ["generate", folder, "--prompt", hard], ["train", "chat.textproto"]):
            with self.subTest(command[0]):
                result = self.trireme(*command)
                self.assertCode(result, job.DATA)
                self.assertSays(result, "(a+)+[bc] exceeds the regex engine's limits", times=1)
        self.assertFalse(pathlib.Path(self.folder / "hard").exists())


if __name__ == "__main__":
    job.main()
