# Ranks that were told, or have read, different things do not train; and what all ranks know is said once.
import json
import os
import re
import shutil

import job

TEMPLATE = "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
CHAT = """
model { from: "hf" }
data { sequence_length: 64 conversations { path: "chat.jsonl" chat_template: "chat.jinja" } }
global_batch_size: 2
optimizer { adamw { learning_rate: 1e-3 } }
train_for { steps: 2 }
logging { tensorboard: false }
run_dir: "run"
"""


def each(*ranks):
    """mpirun with a command of its own for each rank: (working directory or None, arguments)."""
    command = ["mpirun", "--quiet", "--bind-to", "none", "--oversubscribe"]
    for number, (folder, arguments) in enumerate(ranks):
        command += [":"] if number > 0 else []
        command += ["-np", "1", *(["-wdir", str(folder)] if folder is not None else [])]
        command += [job.TRIREME, *arguments]
    return command


class Ranks(job.JobTest):
    def refused(self, code, *parts, ranks):
        result = job.run(self.folder, *each(*ranks))
        self.assertCode(result, code)
        self.assertSays(result, *parts)
        self.assertEqual(result.output.count("error"), 1, result.output)
        self.assertNotIn("step 1/", result.output)
        self.assertLess(result.seconds, 20)
        return result

    def told(self, *arguments):
        return (None, ["train", "tiny.textproto", *arguments])


class ToldDifferently(Ranks):
    def test_fields(self):
        for field, one, other, shown in (
            ("seed", "1", "2", "seed: 1 -> 2"),
            ("optimizer.adamw.learning_rate", "3e-3", "4e-3", "optimizer.adamw.learning_rate: 0.003 -> 0.004"),
            ("global_batch_size", "8", "16", "global_batch_size: 8 -> 16"),
            ("train_for.steps", "60", "61", "60 -> 61"),
            ("parallel.shard", "PARAMETERS", "NONE", "parallel.shard: PARAMETERS -> NONE"),
            ("logging.parameter_norms", "false", "true", "logging.parameter_norms: false -> true"),
        ):
            with self.subTest(field=field):
                self.setUp()
                self.refused(job.CONFIG, "rank 1 has another config than rank 0", field.split(".")[-1], shown, ranks=[self.told("--set", f"{field}={one}"), self.told("--set", f"{field}={other}")])
                self.assertFalse(self.run_dir.exists(), "nothing should have been started")

    def test_options(self):
        self.refused(job.CONFIG, "--stop-at is not the same on all ranks", "rank 0 has 2", "rank 1 has 3", ranks=[self.told("--stop-at", "2"), self.told("--stop-at", "3")])

    def test_what_may_differ(self):
        result = job.run(self.folder, *each(self.told("--stop-at", "2", "--set", "logging.every_steps=1"), self.told("--stop-at", "2", "--set", "logging.every_steps=2", "--set", "data.prefetch_steps=3")))
        self.assertCode(result, job.PREEMPTED)

    def test_other_verbs(self):
        self.refused(job.CONFIG, "seed: 1 -> 2", ranks=[(None, ["bench", "tiny.textproto", "--set", "model.vocab_size=384", "--set", f"seed={seed}"]) for seed in (1, 2)])


class ReadDifferently(Ranks):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        made = job.train(cls.folder, 0, "--set", "train_for.steps=1", "--set", 'run_dir="base"', "--set", 'export { output: "hf" }')
        assert made.code == 0, made.output
        cls.one = cls.folder / "one"
        cls.one.mkdir()
        for name in ("corpus", "hf"):
            shutil.copytree(cls.folder / name, cls.one / name)
        (cls.one / "tiny.textproto").write_text(job.RECIPE)
        (cls.one / "chat.textproto").write_text(CHAT)
        (cls.one / "chat.jinja").write_text(TEMPLATE)
        (cls.one / "chat.jsonl").write_text("".join(json.dumps({"messages": [{"role": "user", "content": f"hi {i}"}, {"role": "assistant", "content": "Hello there."}]}) + "\n" for i in range(4)))

    def setUp(self):
        super().setUp()
        self.other = self.folder / "other"
        shutil.rmtree(self.other, ignore_errors=True)
        shutil.rmtree(self.one / "run", ignore_errors=True)
        shutil.copytree(self.one, self.other)

    def differ(self, recipe, *parts):
        shared = ["--set", f'run_dir="{self.run_dir}"']
        self.refused(job.DATA, *parts, ranks=[(folder, ["train", recipe, *shared]) for folder in (self.one, self.other)])

    def test_copies_of_everything_are_fine(self):
        for recipe in ("tiny.textproto", "chat.textproto"):
            shared = ["--set", f'run_dir="{self.run_dir}-{recipe}"', "--set", "train_for.steps=2", "--set", "checkpoint.every_steps=0"]
            result = job.run(self.folder, *each(*[(folder, ["train", recipe, *shared]) for folder in (self.one, self.other)]))
            self.assertCode(result, 0)

    def test_another_corpus(self):
        shutil.rmtree(self.other / "corpus")
        made = job.run(self.folder, job.TRIREME, "prepare", os.path.join(job.TEXT, "GPL-3"), "--tokenizer", "tokenizer.json", "--output", "other/corpus", "--validation-fraction", "0.1")
        self.assertCode(made, 0)
        self.differ("tiny.textproto", "the content of data.source is not the same on all ranks", "rank 0 has ", "rank 1 has ")

    def test_another_conversation(self):
        path = self.other / "chat.jsonl"
        path.write_text(path.read_text().replace("Hello there", "Hello where", 1))
        self.differ("chat.textproto", "the content of data.conversations is not the same")

    def test_another_template(self):
        (self.other / "chat.jinja").write_text(TEMPLATE.replace(r"'\n'", "' '"))
        self.differ("chat.textproto", "the content of data.conversations.chat_template is not the same")

    def test_another_tokenizer(self):
        path = self.other / "hf" / "tokenizer_config.json"
        path.write_text(path.read_text() + " ")
        self.differ("chat.textproto", "the content of data.conversations.tokenizer is not the same")

    def test_other_weights(self):
        path = self.other / "hf" / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
        self.differ("chat.textproto", "the content of model.from is not the same")
        result = self.refused(job.DATA, "the content of SOURCE is not the same", ranks=[(folder, ["generate", "hf", "--prompt", "The", "--max-tokens", "2"]) for folder in (self.one, self.other)])
        self.assertNotIn("tokens/s", result.output)

    def test_run_dir_of_its_own_on_each_machine(self):
        result = self.refused(job.CONFIG, "run_dir: what rank 0 on ", "give every rank the same folder, one that all machines share", ranks=[(folder, ["train", "tiny.textproto"]) for folder in (self.one, self.other)])
        self.assertSays(result, str(self.other / "run"))


class SaidOnce(job.JobTest):
    def test_warnings(self):
        bare = self.folder / "bare"
        shutil.copytree(self.folder / "corpus", bare)
        (bare / "manifest.textproto").unlink()
        for name in bare.glob("validation*"):
            name.unlink()
        result = job.train(self.folder, 4, "--stop-at", "1", "--set", 'data { source { path: "bare" } }', "--set", "model.vocab_size=384", "--set", "evaluation.every_steps=5", "--set", "recompute.offload=true")
        self.assertCode(result, job.PREEMPTED)
        self.assertSays(result, "has no manifest.textproto", "nothing will be evaluated", "recompute.offload: has no effect without recompute.policy", times=1)
        lines = [line for line in result.output.splitlines() if "warning: " in line]
        self.assertEqual(len(lines), len({re.sub(r"\[rank \d+\] ", "", line) for line in lines}), result.output)

    def test_errors_that_all_ranks_see(self):
        result = job.train(self.folder, 4, "--ranks", "2")
        self.assertCode(result, job.WORLD_SIZE)
        self.assertSays(result, "expects 2 ranks but was started with 4", "error", times=1)
        result = job.train(self.folder, 4, "--set", "global_batch_size=6")
        self.assertCode(result, job.CONFIG)
        self.assertSays(result, "error", "global_batch_size: 6 is not a multiple", times=1)

    def test_a_rank_s_own_error_under_another_launcher(self):
        # Only mpirun is known to end a job when one rank ends; without its variable a rank ends the others itself.
        bad = self.folder / "bad"
        shutil.copytree(self.folder / "corpus", bad)
        path = bad / "train-00000.bin"
        data = bytearray(path.read_bytes())
        for at in range(200, len(data) - 200, 4000):
            data[at : at + 2] = (5000).to_bytes(2, "little")
        path.write_bytes(data)
        mpirun, program = job.train_command(2)[:-3], job.train_command(0, "--set", 'data { source { path: "bad" } }')
        aborted = {}
        for other in ("env -u OMPI_COMM_WORLD_SIZE", ""):
            aborted[other] = 0
            # Open MPI's own message may be lost when both ranks fail at once.
            for _ in range(20 if other else 3):
                if aborted[other]:
                    break
                shutil.rmtree(self.run_dir, ignore_errors=True)
                result = job.run(self.folder, *[word for word in mpirun if word != "--quiet"], *other.split(), *program)
                self.assertCode(result, job.DATA)
                self.assertSays(result, "5000")
                aborted[other] += "MPI_ABORT was invoked" in result.output
        self.assertGreater(aborted["env -u OMPI_COMM_WORLD_SIZE"], 0)
        self.assertEqual(aborted[""], 0)


if __name__ == "__main__":
    job.main()
