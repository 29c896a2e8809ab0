# A rank killed at any moment: the job ends at once, and the same command brings the run to the end it would have had.
import os
import random
import resource
import shutil
import signal
import time

import job

KILLS, DURING_SAVE = 20, 5


class Kills(job.JobTest):
    def temporaries(self):
        return {f.name for f in (self.run_dir / "checkpoints").glob("*.tmp-*")}

    def newest(self):
        return max(job.steps(self.run_dir), default=0) if (self.run_dir / "checkpoints").exists() else 0

    def kill_once(self, rng, in_save):
        """One job and one killed rank. Returns (whether it struck before the end, whether it struck in a save, seconds until the job was gone)."""
        started = job.start_train(self.folder, 2)
        started.wait_for(lambda: len(started.ranks()) == 2, "the ranks' start")
        ranks, before = started.ranks(), self.temporaries()
        if in_save:
            for _ in range(rng.randint(1, 3)):
                started.wait_for(lambda: started.process.poll() is not None or self.temporaries() - before, "a save", pause=0)
                seen = self.temporaries() - before
                before |= seen
            before -= seen
        else:
            time.sleep(rng.uniform(0.05, 1.2))
        begin = time.monotonic()
        if started.process.poll() is None:
            try:
                os.kill(rng.choice(ranks), signal.SIGKILL)
            except ProcessLookupError:
                pass
        result = started.wait(15)
        took = time.monotonic() - begin
        self.assertGone([*ranks, started.process.pid])
        if result.code == 0:
            return False, False, 0
        self.assertCode(result, job.KILLED)
        # A save cut short leaves its temporary folder behind.
        return True, bool(self.temporaries() - before), took

    def test_killed_at_random_moments(self):
        rng = random.Random(7)
        reference = self.uninterrupted()
        kills = in_save = resumes = 0
        slowest = 0.0
        while kills < KILLS or in_save < DURING_SAVE:
            self.assertLess(kills, 3 * KILLS, f"only {in_save} kills struck a save")
            newest = self.newest()
            struck, saving, took = self.kill_once(rng, in_save=kills % 2 == 0 or kills >= KILLS)
            if not struck:
                # The run got to its end first: another one.
                self.assertSameEnd(self.run_dir, reference)
                self.setUp()
                continue
            kills, in_save, slowest = kills + 1, in_save + saving, max(slowest, took)
            resumes += newest > 0
            self.assertGreaterEqual(self.newest(), newest, "a finished checkpoint is lost")
        self.assertGreater(resumes, 5)
        self.assertCode(job.train(self.folder, 2), 0)
        self.assertSameEnd(self.run_dir, reference)
        self.assertEqual(self.temporaries(), set(), "leftovers of killed saves")
        print(f"{kills} kills, {in_save} of them in a save; the slowest job was gone {slowest:.1f} s after", flush=True)

    def test_killed_on_a_mesh_of_all_axes(self):
        self.kill_at_checkpoints(8, ["--set", "parallel={tensor: 2 pipeline: 2 context: 2}", "--set", "train_for.steps=12"])

    def test_killed_with_experts(self):
        steps = [*job.MIXTURE, "--set", "train_for.steps=12"]
        self.kill_at_checkpoints(4, [*steps, "--set", "parallel={tensor: 2 expert: 2 shard: OPTIMIZER}"])
        # On from the middle with other expert ranks: the order of sums differs, and AdamW's root enlarges round-off.
        reference = job.metrics(self.run_dir)
        for step in job.steps(self.run_dir)[1:]:
            shutil.rmtree(job.checkpoint(self.run_dir, step))
        first = job.steps(self.run_dir)[0]
        half = self.folder / "half"
        shutil.rmtree(half, ignore_errors=True)
        self.run_dir.rename(half)
        for ranks, mesh in ((1, "expert: 1"), (4, "expert: 4 shard: PARAMETERS"), (2, "pipeline: 2 expert: 1"), (4, "pipeline: 2 expert: 2 shard: NONE")):
            with self.subTest(mesh=mesh):
                shutil.rmtree(self.run_dir, ignore_errors=True)
                shutil.copytree(half, self.run_dir)
                self.assertCode(job.train(self.folder, ranks, *steps, "--set", f"parallel={{{mesh}}}"), 0)
                after = job.metrics(self.run_dir)
                self.assertEqual(set(after), set(reference))
                for step in range(first + 1, max(reference) + 1):
                    self.assertAlmostEqual(after[step]["loss"] / reference[step]["loss"], 1, delta=1e-4)

    def kill_at_checkpoints(self, ranks, mesh):
        """Ends with self.run_dir as a run that nobody killed."""
        reference = self.uninterrupted(ranks, *mesh)
        rng, kills = random.Random(11), 0
        for _ in range(8):
            if kills == 3:
                break
            newest = self.newest()
            started = job.start_train(self.folder, ranks, *mesh)
            started.wait_for(lambda: started.process.poll() is not None or self.newest() > newest, "a checkpoint", pause=0)
            pids = started.ranks()
            try:
                os.kill(rng.choice(pids), signal.SIGKILL)
                kills += 1
            except (IndexError, ProcessLookupError):
                pass
            started.wait(15)
            self.assertGone([*pids, started.process.pid])
        self.assertGreaterEqual(kills, 2)
        self.assertCode(job.train(self.folder, ranks, *mesh), 0)
        self.assertSameEnd(self.run_dir, reference)

    def test_mpirun_killed_takes_its_ranks_along(self):
        started = job.start_train(self.folder, 2)
        started.wait_for(lambda: self.newest() > 0, "the first checkpoint")
        ranks = started.ranks()
        self.assertEqual(len(ranks), 2)
        started.process.kill()
        started.wait(5)
        self.assertGone(ranks, seconds=5)
        self.assertCode(job.train(self.folder, 2), 0)
        self.assertSameEnd(self.run_dir, self.uninterrupted())

    def test_out_of_memory_on_one_rank(self):
        # The exception must reach the user before anything waits for the other rank, which knows of nothing.
        large = ("model.num_hidden_layers=8", "model.hidden_size=512", "model.intermediate_size=4096", "parallel.shard=PARAMETERS")
        started = job.start_train(self.folder, 2, *(word for field in large for word in ("--set", field)))
        started.wait_for(lambda: len(started.ranks()) == 2, "the ranks' start")
        ranks = started.ranks()
        started.wait_for(lambda: job.memory(ranks[1], "VmRSS") > 200 << 20, "the model's start", pause=0)
        limit = job.memory(ranks[1], "VmSize")
        resource.prlimit(ranks[1], resource.RLIMIT_AS, (limit, limit))
        begin = time.monotonic()
        result = started.wait(30)
        self.assertLess(time.monotonic() - begin, 15)
        self.assertCode(result, job.OUT_OF_MEMORY)
        self.assertSays(result, "[rank 1] error: out of host memory", times=1)
        self.assertGone(ranks)


if __name__ == "__main__":
    job.main()
