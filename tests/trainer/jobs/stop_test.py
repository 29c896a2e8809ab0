# Asked to stop: the run finishes its step, saves, says so by its exit code, and goes on later as if nothing had happened.
import json
import os
import signal
import time

import job

# Steps long enough to fall between two signals.
LONG_STEPS = ["--set", "global_batch_size=256", "--set", "train_for.steps=6"]




def adapter(base):
    """On a base in 4 bits that `export` wrote."""
    return ["--set", f'model {{ from: "{base}" quantization {{ method: NF4 }} }}', "--set", "adapter { r: 2 lora_dropout: 0.1 }"]


class Stops(job.JobTest):
    def test_log_checkpoint_and_metrics_say_which_program_wrote_them(self):
        version = job.run(self.folder, job.TRIREME, "--version").output.strip()
        self.assertRegex(version, r"^trireme \d+\.\d+\.\d+ \(")
        result = job.train(self.folder, 1, "--stop-at", "2")
        self.assertSays(result, version + ": training", times=1)
        self.assertSays(job.run(self.folder, job.TRIREME, "inspect", "run"), "written by " + version)
        self.assertEqual("trireme " + json.loads((self.run_dir / "metrics.jsonl").read_text().splitlines()[0])["version"], version)

    def stop_and_resume(self, send):
        started = job.start_train(self.folder, 2)
        started.wait_for(lambda: self.run_dir.exists() and job.steps(self.run_dir), "the first checkpoint")
        send(started)
        result = started.wait(30)
        stopped_at = max(job.steps(self.run_dir))
        self.assertLess(stopped_at, 60)
        self.assertEqual(max(job.metrics(self.run_dir)), stopped_at, "the last step that was computed is the one saved")
        self.assertCode(job.train(self.folder, 2), 0)
        self.assertSameEnd(self.run_dir, self.uninterrupted())
        return result

    def test_usr1_to_mpirun(self):
        result = self.stop_and_resume(lambda started: started.process.send_signal(signal.SIGUSR1))
        self.assertCode(result, job.PREEMPTED)
        self.assertSays(result, "and saved; start the same command again to go on", times=1)

    def test_term_to_every_rank(self):
        result = self.stop_and_resume(lambda started: [os.kill(rank, signal.SIGTERM) for rank in started.ranks()])
        self.assertCode(result, job.PREEMPTED)

    def test_usr1_to_one_rank_stops_all(self):
        result = self.stop_and_resume(lambda started: os.kill(started.ranks()[1], signal.SIGUSR1))
        self.assertCode(result, job.PREEMPTED)

    def test_term_to_mpirun_saves(self):
        # mpirun waits before it hands it on, and then has an exit code of its own (1, Open MPI 4.1): SIGUSR1 is the better signal.
        started = job.start_train(self.folder, 2, "--set", "train_for.steps=4000", env={"OMPI_MCA_odls_base_sigkill_timeout": "3"})
        started.wait_for(lambda: self.run_dir.exists() and job.steps(self.run_dir), "the first checkpoint")
        ranks = started.ranks()
        started.process.send_signal(signal.SIGTERM)
        self.assertIn(started.wait(30).code, (1, 143, job.PREEMPTED))
        self.assertGone(ranks)
        last = max(job.metrics(self.run_dir))
        self.assertEqual(max(job.steps(self.run_dir)), last, "the last step that was computed is the one saved")
        resumed = job.train(self.folder, 2, "--set", "train_for.steps=4000", "--stop-at", str(last + 1))
        self.assertCode(resumed, job.PREEMPTED)
        self.assertSays(resumed, f"resumed from run/checkpoints/step-{last:08d}", times=1)

    def test_without_mpirun(self):
        started = job.start_train(self.folder, 0)
        started.wait_for(lambda: self.run_dir.exists() and job.steps(self.run_dir), "the first checkpoint")
        started.process.send_signal(signal.SIGTERM)
        self.assertCode(started.wait(30), job.PREEMPTED)
        self.assertCode(job.train(self.folder, 0), 0)
        self.assertSameEnd(self.run_dir, self.uninterrupted(0))

    def test_stop_at_and_resume_on_other_numbers_of_ranks(self):
        self.assertCode(job.train(self.folder, 2, "--stop-at", "20"), job.PREEMPTED)
        self.assertCode(job.train(self.folder, 4, "--stop-at", "40"), job.PREEMPTED)
        self.assertCode(job.train(self.folder, 0), 0)
        got, expected = job.metrics(self.run_dir), job.metrics(self.uninterrupted())
        self.assertEqual(list(got), list(expected))
        for step in expected:
            self.assertAlmostEqual(got[step]["loss"] / expected[step]["loss"], 1, delta=1e-5 if step <= 30 else 1e-3, msg=f"step {step}")

    def test_a_quantized_base_is_imported_again(self):
        self.assertCode(job.run(self.folder, job.TRIREME, "export", self.uninterrupted().name, "--output", "base"), 0)
        self.assertCode(job.train(self.folder, 2, *adapter("base"), "--stop-at", "30"), job.PREEMPTED)
        self.assertCode(job.train(self.folder, 2, *adapter("base")), 0)
        self.assertSameEnd(self.run_dir, self.uninterrupted(2, *adapter("base")))

    def test_an_adapter_goes_on_on_other_numbers_of_ranks(self):
        self.assertCode(job.run(self.folder, job.TRIREME, "export", self.uninterrupted().name, "--output", "another_base"), 0)
        self.assertCode(job.train(self.folder, 2, *adapter("another_base"), "--stop-at", "20"), job.PREEMPTED)
        self.assertCode(job.train(self.folder, 4, *adapter("another_base"), "--stop-at", "40"), job.PREEMPTED)
        self.assertCode(job.train(self.folder, 0, *adapter("another_base")), 0)
        got, expected = job.metrics(self.run_dir), job.metrics(self.uninterrupted(2, *adapter("another_base")))
        self.assertEqual(list(got), list(expected))
        for step in expected:
            self.assertAlmostEqual(got[step]["loss"] / expected[step]["loss"], 1, delta=1e-5 if step <= 30 else 1e-3, msg=f"step {step}")

    def test_an_adapter_does_not_go_on_with_another_base(self):
        for seed in (1, 2):
            self.assertCode(job.train(self.folder, 0, "--set", f"seed={seed}", "--set", "train_for.steps=2", "--set", f'run_dir="other{seed}"'), 0)
            self.assertCode(job.run(self.folder, job.TRIREME, "export", f"other{seed}", "--output", f"base{seed}"), 0)
        (self.folder / "base1").rename(self.folder / "here")
        self.assertCode(job.train(self.folder, 0, *adapter("here"), "--stop-at", "4"), job.PREEMPTED)
        (self.folder / "here").rename(self.folder / "base1")
        (self.folder / "base2").rename(self.folder / "here")
        result = job.train(self.folder, 0, *adapter("here"))
        self.assertCode(result, job.CHECKPOINT)
        self.assertSays(result, "model.from: the files there are not those that the adapter was trained on", times=1)

    def second_signal(self, first, second):
        started = job.start_train(self.folder, 2, *LONG_STEPS)
        started.wait_for(lambda: "step 1/6" in started.output(), "the first step")
        ranks = started.ranks()
        for rank in ranks:
            os.kill(rank, first)
        time.sleep(0.05)
        begin = time.monotonic()
        for rank in ranks:
            os.kill(rank, second)
        result = started.wait(15)
        self.assertCode(result, job.INTERRUPTED)
        self.assertLess(time.monotonic() - begin, 5)
        self.assertGone(ranks)

    def test_a_second_signal_ends_at_once(self):
        self.second_signal(signal.SIGUSR1, signal.SIGUSR1)

    def test_term_after_usr1_ends_at_once(self):
        self.second_signal(signal.SIGUSR1, signal.SIGTERM)


if __name__ == "__main__":
    job.main()
