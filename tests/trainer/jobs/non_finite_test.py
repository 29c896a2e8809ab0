# A step whose update is skipped leaves no trace in the next one.
import array
import json
import shutil
import struct

import job

RATE = 1e-3
RECIPE = f"""
model {{ from: "hf" }}
data {{ sequence_length: 32 conversations {{ path: "two.jsonl" chat_template: "chat.jinja" packing: NONE }} }}
global_batch_size: 1
optimizer {{ adamw {{ learning_rate: {RATE} weight_decay: 0 eps: 1e-30 }} }}
lr_schedule {{ clip_grad_norm: 0 }}
train_for {{ steps: 2 }}
non_finite {{ policy: SKIP_UPDATE }}
logging {{ tensorboard: false }}
run_dir: "run"
"""
POISON = "~"


def tensors(path):
    """{name: (offset in the file, values)} of a file of float32 tensors."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    found = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        assert entry["dtype"] == "F32", entry
        found[name] = (8 + size + begin, array.array("f", data[8 + size + begin : 8 + size + end]))
    return found


class Skips(job.JobTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        made = job.train(cls.folder, 0, "--set", "train_for.steps=1", "--set", 'run_dir="base"', "--set", 'export { output: "hf" }')
        assert made.code == 0, made.output
        # The embedding of one letter is not a number: a sample with it has no finite loss, the other one has.
        tokenizer = json.loads((cls.folder / "hf" / "tokenizer.json").read_text())
        token = tokenizer["model"]["vocab"][POISON]
        path = cls.folder / "hf" / "model.safetensors"
        offset, values = tensors(path)["model.embed_tokens.weight"]
        data = bytearray(path.read_bytes())
        data[offset + 4 * 64 * token : offset + 4 * 64 * (token + 1)] = struct.pack("<f", float("nan")) * 64
        path.write_bytes(data)
        (cls.folder / "chat.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
        (cls.folder / "two.jsonl").write_text("".join(json.dumps({"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "yes, of course"}]}) + "\n" for text in (f"one {POISON} two", "one and two")))
        (cls.folder / "skip.textproto").write_text(RECIPE)

    def test_bias_correction_counts_updates(self):
        before = tensors(self.folder / "hf" / "model.safetensors")
        for seed in range(1, 30):
            shutil.rmtree(self.run_dir, ignore_errors=True)
            result = job.train(self.folder, 0, "--set", f"seed={seed}", recipe="skip.textproto")
            self.assertCode(result, 0)
            self.assertSays(result, "update skipped, 1 in a row", times=1)
            if "warning: step 1: " in result.output:
                break
        else:
            self.fail("no seed begins with the bad sample")
        # AdamW's first update moves every weight that has a gradient by the learning rate, whatever the gradient.
        moved = 0.0
        for path in sorted(job.checkpoint(self.run_dir, 2).glob("weights/*.safetensors")):
            for name, (_, values) in tensors(path).items():
                if name.endswith("down_proj.weight") and len(values) == len(before[name][1]):
                    moved = max(moved, max(abs(a - b) for a, b in zip(values, before[name][1])))
        self.assertAlmostEqual(moved / RATE, 1, delta=0.01)


if __name__ == "__main__":
    job.main()
