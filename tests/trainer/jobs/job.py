# What the job tests share: a corpus of real text from this machine, a tiny recipe, and jobs under mpirun that can be watched and killed.
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

TRIREME = os.environ.get("TRIREME", "build/bin/trireme")
TEXT = "/usr/share/common-licenses"
CONFIG, DATA, CHECKPOINT, STORAGE, WORLD_SIZE, HANG, PEER_LOST, OUT_OF_MEMORY, PREEMPTED, INTERRUPTED, KILLED = 2, 3, 4, 5, 6, 8, 9, 10, 75, 130, 137

RECIPE = """
model { family: "llama" num_hidden_layers: 2 hidden_size: 64 num_attention_heads: 4 num_key_value_heads: 2 intermediate_size: 128 }
data { source { path: "corpus" } sequence_length: 64 }
global_batch_size: 8
micro_batch_size: 2
optimizer { adamw { learning_rate: 3e-3 } }
lr_schedule { warmup_steps: 5 cosine {} }
train_for { steps: 60 }
checkpoint { every_steps: 2 keep_last: 3 }
logging { tensorboard: false }
run_dir: "run"
"""

# The same with experts.
MIXTURE = [
    word
    for field in ("family=qwen3_moe", "num_experts=8", "num_experts_per_tok=2", "moe_intermediate_size=48", "head_dim=16")
    for word in ("--set", f"model.{field}")
]  # fmt: skip

ENVIRONMENT = dict(
    os.environ,
    OMP_NUM_THREADS="1",
    OMPI_ALLOW_RUN_AS_ROOT="1",
    OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
    # mpirun waits so long between its signals to a job that it takes down, twice.
    OMPI_MCA_odls_base_sigkill_timeout="1",
)


class Result:
    """How a job ended. output: what it printed, answers (stdout) after messages (stderr); stdout: its answers alone."""

    def __init__(self, code, output, stdout, seconds):
        self.code, self.output, self.stdout, self.seconds = code, output, stdout, seconds


class Job:
    """A started command in its own process group, and all that came of it."""

    started_jobs = []

    def __init__(self, folder, command, env=None):
        # mpirun passes on what it reads in pieces of 1 KiB: in one file a message could stand in the middle of a line of the answer.
        self.stdout_path, self.stderr_path = (folder / f"output-{stream}-{time.monotonic_ns()}" for stream in ("stdout", "stderr"))
        self.started = time.monotonic()
        with open(self.stdout_path, "wb") as stdout, open(self.stderr_path, "wb") as stderr:
            self.process = subprocess.Popen(command, cwd=folder, env=dict(ENVIRONMENT, **(env or {})), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True)
        Job.started_jobs.append(self)

    def output(self):
        return self.stderr_path.read_text(errors="replace") + self.stdout_path.read_text(errors="replace")

    def ranks(self):
        """Process ids of the ranks, in order."""
        found = []
        for child in children(self.process.pid):
            try:
                variables = pathlib.Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            rank = [v for v in variables if v.startswith(b"OMPI_COMM_WORLD_RANK=")]
            if rank:
                found.append((int(rank[0].split(b"=")[1]), child))
        return [child for _, child in sorted(found)]

    def wait(self, seconds=60):
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"the job did not end within {seconds} s; its output:\n{self.output()}") from None
        return Result(code, self.output(), self.stdout_path.read_text(errors="replace"), time.monotonic() - self.started)

    def wait_for(self, condition, what, seconds=30, pause=0.002):
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{what} did not happen; exit code {self.process.poll()}, output:\n{self.output()}")
            time.sleep(pause)


def children(pid):
    try:
        return [int(c) for task in pathlib.Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]
    except OSError:
        return []


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def memory(pid, field):
    """A field of /proc/PID/status in bytes; 0 when the process is gone."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":")), 0)


def run(folder, *command, env=None, seconds=60):
    return Job(folder, [str(c) for c in command], env).wait(seconds)


def train_command(ranks, *arguments, recipe="tiny.textproto"):
    mpirun = ["mpirun", "--quiet", "--bind-to", "none", "--oversubscribe", "-np", str(ranks)] if ranks > 0 else []
    return [*mpirun, TRIREME, "train", recipe, *arguments]


def train(folder, ranks, *arguments, recipe="tiny.textproto", env=None, seconds=60):
    """ranks 0: without mpirun."""
    return run(folder, *train_command(ranks, *arguments, recipe=recipe), env=env, seconds=seconds)


def start_train(folder, ranks, *arguments, recipe="tiny.textproto", env=None):
    return Job(folder, train_command(ranks, *arguments, recipe=recipe), env)


def metrics(run_dir):
    """{step: what does not depend on time}"""
    records = {}
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["type"] == "train":
            records[record["step"]] = {k: record[k] for k in ("loss", "grad_norm", "learning_rate", "tokens")}
    return records


def tensor_files(checkpoint):
    """{path: digest} of every tensor file."""
    return {str(f.relative_to(checkpoint)): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(checkpoint.rglob("*.safetensors"))}


def steps(run_dir):
    """Steps that have a checkpoint under its final name."""
    return sorted(int(f.name[5:]) for f in (run_dir / "checkpoints").glob("step-*") if f.name[5:].isdigit())


def checkpoint(run_dir, step):
    return run_dir / "checkpoints" / f"step-{step:08d}"


class JobTest(unittest.TestCase):
    """Every test class gets a folder with a tokenizer, a corpus and the recipe; every test a fresh run_dir."""

    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="trireme-job-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        for command in (
            ["tokenizer", "train", TEXT, "--vocab-size", "384", "--output", "tokenizer.json"],
            ["prepare", TEXT, "--tokenizer", "tokenizer.json", "--output", "corpus", "--validation-fraction", "0.1"],
        ):
            made = run(cls.folder, TRIREME, *command)
            assert made.code == 0, made.output
        (cls.folder / "tiny.textproto").write_text(RECIPE)

    def setUp(self):
        self.run_dir = self.folder / "run"
        shutil.rmtree(self.run_dir, ignore_errors=True)

    def tearDown(self):
        # After a failure a job may be left running; its ranks go with mpirun.
        for left in Job.started_jobs:
            if left.process.poll() is None:
                left.process.kill()
                left.process.wait()
        Job.started_jobs.clear()

    def assertCode(self, result, code):
        self.assertEqual(result.code, code, f"output:\n{result.output}")

    def assertSays(self, result, *parts, times=None):
        for part in parts:
            self.assertIn(part, result.output)
            if times is not None:
                self.assertEqual(result.output.count(part), times, f"{part!r} should stand {times} times in:\n{result.output}")

    def assertGone(self, pids, seconds=2):
        deadline = time.monotonic() + seconds
        while any(alive(pid) for pid in pids):
            self.assertLess(time.monotonic(), deadline, f"still there: {[pid for pid in pids if alive(pid)]}")
            time.sleep(0.01)

    def assertSameEnd(self, run_dir, reference):
        """Bit-identical metrics and final tensors."""
        self.assertEqual(metrics(run_dir), metrics(reference))
        last = max(steps(reference))
        self.assertEqual(max(steps(run_dir)), last)
        expected = tensor_files(checkpoint(reference, last))
        self.assertGreater(len(expected), 0)
        self.assertEqual(tensor_files(checkpoint(run_dir, last)), expected)

    def uninterrupted(self, ranks=2, *arguments):
        """The run_dir of the recipe run in one go; made once."""
        reference = self.folder / re.sub(r"[^-\w]+", "_", f"reference-{ranks}{''.join(arguments)}")
        if not reference.exists():
            result = train(self.folder, ranks, *arguments, "--set", f'run_dir="{reference.name}"')
            self.assertCode(result, 0)
        return reference


def main():
    global TRIREME
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-") and os.path.isfile(sys.argv[1]):
        TRIREME = sys.argv.pop(1)
    TRIREME = os.path.abspath(TRIREME)
    if shutil.which("mpirun") is None or not os.path.exists(TEXT):
        print(f"SKIPPED: needs mpirun and {TEXT}")
        sys.exit(77)
    unittest.main(module="__main__", verbosity=2)
