# What a run on conversations says about text belongs to the finished model: its template, its tokenizer, where it stops.
import json
import shutil

import job

# A model of its own head, with more rows than the tokenizer has ids.
MODEL = job.RECIPE.replace("intermediate_size: 128", "intermediate_size: 128 vocab_size: 400").replace("steps: 60", "steps: 1")
TURNS = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
OTHER = TURNS.replace("<|im_end|>", "<end_of_turn>")
CHAT = """
model { from: "base" }
data { sequence_length: 64 conversations { path: "chat.jsonl" %s } }
global_batch_size: 2
optimizer { adamw { learning_rate: 1e-3 } }
train_for { steps: 1 }
logging { tensorboard: false }
run_dir: "run"
"""


def added(token_id, content):
    return {"id": token_id, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


class FinishedModel(job.JobTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        (cls.folder / "model.textproto").write_text(MODEL.replace('run_dir: "run"', 'run_dir: "first"'))
        made = job.train(cls.folder, 0, recipe="model.textproto")
        assert made.code == 0, made.output
        made = job.run(cls.folder, job.TRIREME, "export", "first", "--output", "base")
        assert made.code == 0, made.output
        tokenizer = json.loads((cls.folder / "base" / "tokenizer.json").read_text())
        cls.plain = len(tokenizer["model"]["vocab"])
        for i, content in enumerate(("<|im_start|>", "<|im_end|>")):
            tokenizer["added_tokens"].append(added(cls.plain + i, content))
        (cls.folder / "base" / "tokenizer.json").write_text(json.dumps(tokenizer))
        (cls.folder / "base" / "generation_config.json").write_text(json.dumps({"temperature": 0.5, "pad_token_id": -1}))
        (cls.folder / "base" / "chat_template.jinja").write_text("{{ messages[0].content }}")
        cls.end, cls.turn = next(t["id"] for t in tokenizer["added_tokens"]), cls.plain + 1
        tokenizer["added_tokens"].append(added(cls.plain + 2, "<end_of_turn>"))
        (cls.folder / "other").mkdir()
        (cls.folder / "other" / "tokenizer.json").write_text(json.dumps(tokenizer))
        (cls.folder / "other" / "chat_template.jinja").write_text(OTHER)
        lines = [{"messages": [{"role": "user", "content": f"hi {i}"}, {"role": "assistant", "content": "Hello there."}]} for i in range(4)]
        (cls.folder / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def setUp(self):
        super().setUp()
        shutil.rmtree(self.folder / "out", ignore_errors=True)
        (self.folder / "turns.jinja").write_text(TURNS)

    def trained(self, data, *arguments):
        (self.folder / "chat.textproto").write_text(CHAT % data)
        result = job.train(self.folder, 0, *arguments, recipe="chat.textproto")
        self.assertCode(result, 0)
        return result

    def trireme(self, *arguments):
        result = job.run(self.folder, job.TRIREME, *arguments)
        self.assertCode(result, 0)
        return result

    def exported(self, *arguments):
        self.trireme("export", *arguments, "--output", "out")
        out = self.folder / "out"
        return out, json.loads((out / "config.json").read_text()), json.loads((out / "generation_config.json").read_text())

    def assertInGguf(self, source, *parts, arguments=()):
        self.trireme("export", source, "--format", "gguf", *arguments, "--output", "out.gguf")
        contents = (self.folder / "out.gguf").read_bytes()
        (self.folder / "out.gguf").unlink()
        for part in parts:
            self.assertIn(part, contents)

    def entry(self, name, token_id):
        """Of a GGUF file: key, type 4 (a 32-bit number), value."""
        return f"tokenizer.ggml.{name}_token_id".encode() + (4).to_bytes(4, "little") + token_id.to_bytes(4, "little")

    def prompt_ids(self, prompt):
        return json.loads(self.trireme("generate", "run", "--chat", "--prompt", prompt, "--max-tokens", "1", "--json").stdout)["prompt_ids"]

    def test_a_run_that_was_moved_has_its_tokenizer(self):
        elsewhere = self.folder / "elsewhere"
        shutil.copytree(self.folder / "first", elsewhere / "moved")
        for source in ("moved", "moved/checkpoints/step-00000001", "moved/checkpoints/step-00000001/"):
            self.assertCode(job.run(elsewhere, job.TRIREME, "generate", source, "--prompt", "The", "--max-tokens", 2), 0)
        self.assertCode(job.run(elsewhere, job.TRIREME, "export", "moved", "--output", "out"), 0)
        self.assertEqual((elsewhere / "out" / "tokenizer.json").read_bytes(), (self.folder / "corpus" / "tokenizer.json").read_bytes())

    def test_the_template_and_its_end_are_exported(self):
        self.trained('chat_template: "turns.jinja"')
        (self.folder / "turns.jinja").unlink()  # a run holds what it needs
        out, config, generation = self.exported("run")
        self.assertEqual((out / "chat_template.jinja").read_text(), TURNS)
        self.assertEqual(sorted(config["eos_token_id"]), sorted([self.end, self.turn]))
        self.assertEqual(generation["eos_token_id"], config["eos_token_id"])
        self.assertEqual(generation["temperature"], 0.5)
        self.assertNotIn("pad_token_id", generation)
        self.assertInGguf("run", TURNS.encode(), self.entry("eos", self.end), self.entry("eot", self.turn))
        self.assertEqual(self.prompt_ids("hi")[0], self.plain)

    def test_an_adapter_brings_its_run_s_text(self):
        self.trained('tokenizer: "other"', "--set", "adapter { r: 2 }")
        for source in (["run", "--merge"], ["base", "--adapter", "run", "--merge"]):
            shutil.rmtree(self.folder / "out", ignore_errors=True)
            out, config, _ = self.exported(*source)
            self.assertEqual((out / "tokenizer.json").read_text(), (self.folder / "other" / "tokenizer.json").read_text())
            self.assertEqual((out / "chat_template.jinja").read_text(), OTHER)
            self.assertEqual(config["eos_token_id"], self.plain + 2)
        self.assertInGguf("run", OTHER.encode(), self.entry("eos", self.plain + 2), arguments=["--merge"])
        self.assertEqual(self.prompt_ids("hi").count(self.plain + 2), 1)
        (self.folder / "other").rename(self.folder / "gone")
        refused = job.run(self.folder, job.TRIREME, "export", "run", "--merge", "--output", "nothing")
        (self.folder / "gone").rename(self.folder / "other")
        self.assertCode(refused, job.CONFIG)
        self.assertSays(refused, "the run was trained with that of other")

    def test_the_adapter_s_folder_has_the_template(self):
        self.trained('chat_template: "turns.jinja"', "--set", "adapter { r: 2 }")
        self.assertEqual((self.folder / "run" / "adapter" / "chat_template.jinja").read_text(), TURNS)
        out, config, _ = self.exported("base", "--adapter", "run/adapter", "--merge")
        self.assertEqual((out / "chat_template.jinja").read_text(), TURNS)
        self.assertIn(self.turn, config["eos_token_id"])

    def test_embedding_and_head_of_an_untied_model_trained_whole(self):
        self.trained('chat_template: "turns.jinja"', "--set", 'adapter { r: 2 modules_to_save: "embed_tokens" modules_to_save: "lm_head" }')
        adapter = json.loads((self.folder / "run" / "adapter" / "adapter_config.json").read_text())
        self.assertFalse(adapter["ensure_weight_tying"])
        self.trireme("export", "run", "--format", "peft", "--output", "out")
        shutil.rmtree(self.folder / "out")
        self.exported("base", "--adapter", "run/adapter", "--merge")


if __name__ == "__main__":
    job.main()
