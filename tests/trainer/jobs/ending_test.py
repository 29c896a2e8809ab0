# What a run will write at its end is tried before its first step, and by `validate`.
import json
import shutil

import job

ADAPTER = """
model { from: "hf" }
data { source { path: "corpus" } sequence_length: 64 }
global_batch_size: 2
optimizer { adamw { learning_rate: 1e-3 } }
train_for { steps: 2 }
adapter { r: 4 }
logging { tensorboard: false }
run_dir: "run"
"""


class Ending(job.JobTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        made = job.train(cls.folder, 0, "--set", "train_for.steps=1", "--set", 'run_dir="base"', "--set", 'export { output: "hf" }')
        assert made.code == 0, made.output
        (cls.folder / "adapter.textproto").write_text(ADAPTER)

    def refused(self, code, *parts, arguments, recipe="tiny.textproto"):
        before = set(self.folder.rglob("*"))
        checked = job.run(self.folder, job.TRIREME, "validate", recipe, *arguments)
        self.assertNotEqual(checked.code, 0, checked.output)
        self.assertSays(checked, *parts)
        left = {path for path in set(self.folder.rglob("*")) - before if not path.name.startswith("output-")}
        self.assertEqual(left, set(), "validating leaves something behind")
        result = job.train(self.folder, 2, *arguments, recipe=recipe)
        self.assertCode(result, code)
        self.assertSays(result, *parts)
        self.assertSays(result, "error", times=1)
        self.assertNotIn("step 1/", result.output)
        self.assertEqual([path for path in self.folder.rglob("*.tmp-*")], [], "a trial is left behind")

    def test_an_output_that_cannot_be_made(self):
        (self.folder / "file").write_text("in the way")
        self.refused(job.STORAGE, "file", arguments=["--set", 'export { output: "file/model" }'])

    def test_a_tokenizer_that_gguf_has_no_name_for(self):
        tokenizer = json.loads((self.folder / "tokenizer.json").read_text())
        tokenizer["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        (self.folder / "odd.json").write_text(json.dumps(tokenizer))
        made = job.run(self.folder, job.TRIREME, "prepare", job.TEXT, "--tokenizer", "odd.json", "--output", "odd")
        self.assertCode(made, 0)
        self.refused(job.DATA, "what the run writes at its end was tried", "llama.cpp has no name for these splitting rules",
                     arguments=["--set", 'data { source { path: "odd" } }', "--set", 'export { format: GGUF output: "model.gguf" }'])

    def test_an_adapter_needs_a_base_that_can_be_opened_again(self):
        for field, settings in (("adapter", "adapter { r: 4 }"), ("model.quantization", "model { quantization { method: NF4 } }")):
            with self.subTest(field):
                self.refused(job.CONFIG, f"{field}: the model has random weights", "set model.from", arguments=["--set", settings])

    def test_an_adapter_is_written_or_never_trained(self):
        # Whatever of this can be written, no run may find out at its end.
        for name, settings in {
            "both ends whole": 'adapter { r: 4 modules_to_save: "embed_tokens" modules_to_save: "lm_head" }',
            "embedding whole": 'adapter { r: 4 modules_to_save: "embed_tokens" }',
            "pissa": "adapter { r: 4 init_lora_weights: PISSA }",
            "dora": "adapter { r: 4 use_dora: true use_rslora: true }",
            "head": 'adapter { r: 4 target_modules: "lm_head" target_modules: "q_proj" }',
        }.items():
            with self.subTest(name):
                shutil.rmtree(self.run_dir, ignore_errors=True)
                result = job.train(self.folder, 2, "--set", settings, recipe="adapter.textproto")
                if result.code == 0:
                    self.assertTrue((self.run_dir / "adapter" / "adapter_model.safetensors").exists(), result.output)
                else:
                    self.assertNotIn("step 1/", result.output)
                    self.assertSays(result, "what the run writes at its end was tried", times=1)

    def test_every_format_of_an_adapter_is_tried_and_written(self):
        for kind in ("PEFT", "GGUF_LORA", "GGUF merge: true", "HF merge: true"):
            with self.subTest(kind):
                for left in (self.run_dir, self.folder / "out"):
                    shutil.rmtree(left, ignore_errors=True)
                output = self.folder / ("out/" + kind.split()[0])
                self.assertCode(job.run(self.folder, job.TRIREME, "validate", "adapter.textproto", "--set", f'export {{ format: {kind} output: "{output}" }}'), 0)
                result = job.train(self.folder, 2, "--set", f'export {{ format: {kind} output: "{output}" }}', recipe="adapter.textproto")
                self.assertCode(result, 0)
                self.assertTrue(output.exists())


if __name__ == "__main__":
    job.main()
