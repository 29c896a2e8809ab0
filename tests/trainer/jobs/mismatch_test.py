# Ranks whose collectives do not match end their job within the watchdog's time, naming both sides, and never go on with wrong numbers.
import os
import pathlib
import shutil
import sys
import tempfile
import unittest

import job

LIMIT = 2  # kWatchdogSeconds in mismatch.cc
# Until the end, beyond the limit: start-up of all ranks, and those that fall silent one after another.
GRACE = 8
SMALL = 64
# Beyond what MPI sends without asking the receiver first, and beyond where an all_reduce goes in two halves.
LARGE = 262144
PROGRAM = "build/bin/mismatch_job"


class Mismatch(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="trireme-mismatch-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    tearDown = job.JobTest.tearDown
    assertGone = job.JobTest.assertGone

    def end(self, mode, size, ranks, code):
        command = ["mpirun", "--quiet", "--bind-to", "none", "--oversubscribe", "-np", str(ranks), PROGRAM, str(self.folder), mode, str(size)]
        started = job.Job(self.folder, command)
        pids = []
        started.wait_for(lambda: len(found := started.ranks()) == ranks and not pids.extend(found), "the start of all ranks")
        result = started.wait(60)
        self.assertEqual(result.code, code, result.output)
        self.assertLess(result.seconds, LIMIT + GRACE)
        self.assertGone(pids)
        return result.output

    def differ(self, mode, size, calls, number=7):
        """The odd rank's neighbour in group data_shard is rank 0; `calls`: what rank 0 and the odd rank called."""
        for ranks, odd in ((2, 1), (4, 2)):
            with self.subTest(mode=mode, size=size, ranks=ranks):
                output = self.end(mode, size, ranks, job.PEER_LOST)
                self.assertIn(f"ranks called different collectives as #{number} of group data_shard: ", output)
                # Both see it; which of them gets to tell is a matter of chance.
                for pair in ((0, calls[0], odd, calls[1]), (odd, calls[1], 0, calls[0])):
                    if "rank {}: {}; rank {}: {}".format(*pair) in output:
                        break
                else:
                    self.fail(f"{calls} are not told apart in:\n{output}")
                self.assertIn("lately: in step", output)
                self.assertNotIn("ended in peace", output)

    def test_matching_calls_pass(self):
        for ranks in (2, 4):
            for size in (SMALL, LARGE):
                self.assertIn("ended in peace", self.end("none", size, ranks, 0))

    def test_another_order(self):
        for size in (SMALL, LARGE):
            self.differ("order", size, (f"all_gather of {2 * size} B Float in step 2", f"reduce_scatter of {2 * size} B Float in step 2"))

    def test_another_kind_that_moves_the_same_bytes(self):
        self.differ("kind", SMALL, (f"all_gather of {2 * SMALL} B Float in step 2", f"all_reduce(sum) of {SMALL} B Float in step 2"))

    def test_another_size(self):
        for size in (SMALL, LARGE):
            self.differ("size", size, (f"all_gather of {2 * size} B Float in step 2", f"all_gather of {size} B Float in step 2"))

    def test_another_root(self):
        self.differ("root", SMALL, (f"broadcast(root 0) of {SMALL} B Float in step 2", f"broadcast(root 1) of {SMALL} B Float in step 2"))

    def test_another_dtype(self):
        self.differ("dtype", SMALL, (f"all_reduce(sum) of {SMALL} B Float in step 2", f"all_reduce(sum) of {SMALL} B Int in step 2"))

    def test_waited_for_in_another_order(self):
        half = f"all_reduce's second half (of #{{}}) of {LARGE} B Float in step 2"
        self.differ("wait_order", LARGE, (half.format(7), half.format(8)), number=8)

    def test_one_left_out_before_the_next_step(self):
        for size in (SMALL, LARGE):
            self.differ("skip", size, (f"all_gather of {2 * size} B Float in step 2", f"all_gather of {2 * size} B Float in step 3"))

    def test_one_left_out_for_good(self):
        for ranks, odd in ((2, 1), (4, 2)):
            output = self.end("skip_last", SMALL, ranks, job.HANG)
            self.assertIn(f"hang: rank {odd} never entered all_gather #7 of group data_shard", output)
            self.assertIn(f"rank 0 waits in all_gather #7 of group data_shard ({2 * SMALL} B)", output)

    def test_groups_that_cross(self):
        for size, human in ((SMALL, "64 B"), (LARGE, "262.1 kB")):
            output = self.end("cross", size, 4, job.HANG)
            self.assertIn("hang: ranks wait for each other in different collectives: ", output)
            for rank, place in ((0, "#3 of group tensor"), (1, "#7 of group data_shard"), (2, "#7 of group data_shard"), (3, "#3 of group tensor")):
                self.assertIn(f"rank {rank} waits in all_reduce {place} ({human})", output)

    def test_messages_of_another_size(self):
        for ranks, odd in ((2, 1), (4, 2)):
            output = self.end("exchange", SMALL, ranks, job.PEER_LOST)
            self.assertIn(f"exchange on group data_shard in step 2: rank {odd} expects {SMALL // 2} B from rank 0, which sends more", output)
            for size in (SMALL, LARGE):
                output = self.end("short_exchange", size, ranks, job.PEER_LOST)
                self.assertIn(f"exchange on group data_shard in step 2: rank {odd} expects {2 * size} B from rank 0, which sends {size} B", output)


if __name__ == "__main__":
    if len(sys.argv) > 1 and os.path.isfile(sys.argv[1]):
        PROGRAM = sys.argv.pop(1)
    PROGRAM = os.path.abspath(PROGRAM)
    if shutil.which("mpirun") is None:
        print("SKIPPED: needs mpirun")
        sys.exit(77)
    unittest.main(verbosity=2)
