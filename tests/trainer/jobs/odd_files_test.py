# Slow file systems are no hangs, hanging ones are; and file systems that lack locks, or die at a bad moment.
import os
import pathlib
import shutil
import tempfile
import unittest

import job

# LD_PRELOAD is cut at spaces, which the path of a checkout may have: the library is named by a link.
LIBRARY = os.path.join(tempfile.mkdtemp(prefix="trireme-odd-files-"), "libodd_files.so")
os.symlink(os.path.abspath(os.environ.get("TRIREME_ODD_FILES", "build/tests/trainer/libodd_files.so")), LIBRARY)
unittest.addModuleCleanup(shutil.rmtree, os.path.dirname(LIBRARY))
SLOW = "launch.watchdog_seconds={}"


def odd(path, **how):
    """The environment in which files whose path contains `path` are odd."""
    return {"LD_PRELOAD": LIBRARY, "ODD_FILES_PATH": path, **{f"ODD_FILES_{name}": str(value) for name, value in how.items()}}


def settings(*fields):
    return [word for field in fields for word in ("--set", field)]


def model(width):
    return settings(f"model.hidden_size={width}", f"model.intermediate_size={3 * width}", "model.num_hidden_layers=4", "global_batch_size=2", "micro_batch_size=1",
                    "train_for.steps=2", "checkpoint.every_steps=0")


class SlowFiles(job.JobTest):
    LIMIT = 3

    def test_a_save_longer_than_the_watchdog_waits(self):
        # Some 7 and 14 MB a rank; a piece takes half a second.
        started = job.start_train(self.folder, 2, *model(256), *settings(SLOW.format(self.LIMIT)), env=odd(".safetensors", WRITE=2.5e6))
        result = started.wait(60)
        self.assertCode(result, 0)
        self.assertEqual(job.steps(self.run_dir), [2])
        self.assertGreater(result.seconds, self.LIMIT)
        # The same when what was saved is verified.
        resumed = job.train(self.folder, 2, *model(256), *settings(SLOW.format(self.LIMIT)), "--set", "train_for.steps=2", "--allow-change", env=odd(".safetensors", READ=5e6))
        self.assertCode(resumed, 0)
        self.assertSays(resumed, "resumed from run/checkpoints/step-00000002", times=1)
        self.assertGreater(resumed.seconds, self.LIMIT)

    def test_slow_syncing(self):
        # 100 MB in one file: synced at its end alone it would be silent for five seconds.
        result = job.train(self.folder, 0, *model(512), *settings(SLOW.format(3)), env=odd(".safetensors", SYNC=20e6))
        self.assertCode(result, 0)
        self.assertGreater(result.seconds, 6)

    def test_a_save_that_hangs_is_ended(self):
        result = job.train(self.folder, 2, *model(256), *settings(SLOW.format(self.LIMIT)), env=odd("shard-00001-0.safetensors", HANG=1))
        self.assertCode(result, job.HANG)
        self.assertSays(result, "launch.watchdog_seconds", times=1)
        self.assertSays(result, "in saving step 2", "rank 1")
        self.assertEqual(job.steps(self.run_dir), [])


class PoorFiles(job.JobTest):
    def test_without_locks(self):
        result = job.train(self.folder, 2, "--stop-at", "2", env=odd("/run/lock", NO_LOCK=1))
        self.assertCode(result, job.PREEMPTED)
        self.assertSays(result, "this file system has no locks", times=1)

    def test_killed_while_a_checkpoint_is_replaced(self):
        # A run that falls back to an older checkpoint saves the newer steps again.
        for exchange in (True, False):
            with self.subTest(exchange=exchange):
                self.setUp()
                self.assertCode(job.train(self.folder, 2, "--stop-at", "4"), job.PREEMPTED)
                folder = job.checkpoint(self.run_dir, 4)
                (folder / "mark").write_text("the old one")
                weights = sorted(folder.glob("weights/*.safetensors"))[0]
                bytes_before = weights.read_bytes()
                weights.write_bytes(bytes_before[:-1] + bytes([bytes_before[-1] ^ 1]))
                poor = {} if exchange else {"NO_EXCHANGE": 1}
                killed = job.train(self.folder, 2, "--stop-at", "4", env=odd("step-00000004", DIE=1, **poor))
                self.assertCode(killed, job.KILLED)
                self.assertSays(killed, "resumed from run/checkpoints/step-00000002", times=1)
                # Whole again (say that reading it had failed): nothing was lost with the new one.
                for place in (folder, pathlib.Path(f"{folder}.tmp-replaced")):
                    if (place / "mark").exists():
                        (place / "weights" / weights.name).write_bytes(bytes_before)
                result = job.train(self.folder, 2, "--stop-at", "5")
                self.assertCode(result, job.PREEMPTED)
                self.assertSays(result, "resumed from run/checkpoints/step-00000004", times=1)
                shutil.rmtree(self.run_dir)


if __name__ == "__main__":
    if not os.path.exists(LIBRARY):
        raise SystemExit(f"{LIBRARY} is not built")
    job.main()
