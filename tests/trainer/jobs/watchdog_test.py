# A job that hangs ends by itself, saying which rank keeps which other waiting.
import ctypes
import os
import signal
import time

import job

LIMIT = 3
# Until the report, beyond the limit: ranks fall silent one after another, and those that do not answer are waited for.
GRACE = 8

PTRACE_SEIZE, PTRACE_INTERRUPT, WALL = 0x4206, 0x4207, 0x40000000


def freeze_main_thread(pid):
    """Stops the main thread of a process while its others run: what a rank looks like that sleeps, or spins, inside a step."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
        if ptrace(request, pid, None, None) != 0:
            return os.strerror(ctypes.get_errno())
    return None


def reap_traced(pid):
    """A process that its tracer does not wait for stays a zombie."""
    try:
        os.waitpid(pid, os.WNOHANG | WALL)
    except ChildProcessError:
        pass


class Hangs(job.JobTest):
    def start(self, *arguments):
        started = job.start_train(self.folder, 2, "--set", f"launch.watchdog_seconds={LIMIT}", *arguments)
        started.wait_for(lambda: self.run_dir.exists() and job.steps(self.run_dir), "the first checkpoint")
        ranks = started.ranks()
        self.assertEqual(len(ranks), 2)
        return started, ranks

    def reported(self, started, ranks, stuck, since):
        deadline = since + LIMIT + GRACE + 5
        while started.process.poll() is None:
            self.assertLess(time.monotonic(), deadline, f"no end; output:\n{started.output()}")
            reap_traced(ranks[stuck])
            time.sleep(0.02)
        result = started.wait(1)
        self.assertCode(result, job.HANG)
        self.assertLess(time.monotonic() - since, LIMIT + GRACE)
        # Both sides: who keeps whom waiting, in what.
        report = result.output[result.output.index("error") :]
        self.assertIn(f"rank {stuck}", report)
        self.assertIn(f"rank {1 - stuck}", report)
        self.assertIn("on group", report)
        self.assertEqual(result.output.count("launch.watchdog_seconds"), 1, result.output)
        self.assertGone(ranks)
        print(report.splitlines()[0], flush=True)
        # What was saved before stands.
        self.assertCode(job.train(self.folder, 2), 0)
        self.assertSameEnd(self.run_dir, self.uninterrupted())

    def test_a_stopped_rank(self):
        # A stopped process runs no watchdog: the report comes from the other.
        for stuck in (0, 1):
            with self.subTest(stuck=stuck):
                self.setUp()
                started, ranks = self.start()
                since = time.monotonic()
                os.kill(ranks[stuck], signal.SIGSTOP)
                self.reported(started, ranks, stuck, since)

    def test_a_rank_that_sleeps_in_a_step(self):
        started, ranks = self.start()
        since = time.monotonic()
        problem = freeze_main_thread(ranks[1])
        if problem is not None:
            started.process.kill()
            self.skipTest(f"cannot stop a thread of another process here: {problem}")
        self.reported(started, ranks, 1, since)

    def test_a_short_pause_is_no_hang(self):
        started, ranks = self.start()
        os.kill(ranks[1], signal.SIGSTOP)
        time.sleep(LIMIT / 2)
        os.kill(ranks[1], signal.SIGCONT)
        self.assertCode(started.wait(), 0)
        self.assertSameEnd(self.run_dir, self.uninterrupted())


if __name__ == "__main__":
    job.main()
