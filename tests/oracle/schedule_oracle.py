"""Pipeline schedules against torch.distributed.pipelining: each side accepts the other's tables, and ours are no slower.

Standalone: schedule_oracle.py [--tool build/bin/schedule_tool]
"""

import argparse
import contextlib
import csv
import io
import os
import random
import subprocess
import sys
import tempfile

# name, stages per rank
OURS = [("GPipe", 1), ("1F1B", 1), ("Interleaved1F1B", 2), ("Interleaved1F1B", 3), ("ZB-H1", 1), ("ZB-V", 2)]
THEIRS = [
    ("1F1B", 1),
    ("Interleaved1F1B", 2),
    ("Interleaved1F1B", 3),
    ("InterleavedZeroBubble", 2),
    ("ZBVZeroBubble", 2),
    ("DualPipeV", 2),
]
RANKS = [1, 2, 3, 4, 5, 8]
MICROBATCHES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 24, 32]


class Tool:
    """The binary of tests/parallel/pipeline/schedule_tool.cc."""

    def __init__(self, path):
        self.path = path

    def __call__(self, *args):
        done = subprocess.run([self.path, *map(str, args)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"schedule_tool {args[0]}: {done.stderr.strip()}")
        return done.stdout


def their_table(name, ranks, stages_per_rank, microbatches):
    """A list of actions (or None) per rank, compute only; None if PyTorch refuses the shape."""
    from torch.distributed.pipelining import schedules
    from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops

    try:
        table = get_schedule_ops(name, ranks, microbatches, stages_per_rank)
    except (ValueError, RuntimeError):
        return None
    table = [[a for a in row if a is None or a.is_compute_op] for row in table]
    if name == "1F1B":
        # PyTorch 2.11 draws the last rank's forwards counted from 1, which its own validator refuses.
        forwards = [a for a in table[-1] if a is not None and a.computation_type == schedules.F]
        first = min(a.microbatch_index for a in forwards)
        table[-1] = [a._replace(microbatch_index=a.microbatch_index - first) if a in forwards else a for a in table[-1]]
    return table


def write_csv(path, table):
    """As PyTorch's _dump_csv."""
    with open(path, "w", newline="") as out:
        csv.writer(out).writerows(table)


def read_csv(path):
    """As PyTorch's _load_csv."""
    from torch.distributed.pipelining.schedules import _Action

    with open(path, newline="") as text:
        return {rank: [_Action.from_str(cell) for cell in row] for rank, row in enumerate(csv.reader(text))}


def dry_run(table, stages, microbatches):
    """PyTorch's validation, lowering and dry run of a compute-only table; the lowered table. Raises what they raise."""
    from torch.distributed.pipelining import schedules

    table = {rank: [a for a in actions if a is not None] for rank, actions in table.items()}
    rank_of = schedules._validate_schedule(table, len(table), stages, microbatches)

    def with_messages(rows):  # Takes the lists it is given apart.
        return schedules._add_send_recv(rows, rank_of.__getitem__, stages)

    if all(a.sub_actions is None for actions in table.values() for a in actions):
        # The dry run knows neither OVERLAP_F_B nor UNSHARD, and prints the table before it refuses it.
        with contextlib.redirect_stdout(io.StringIO()):
            messages = with_messages({rank: list(actions) for rank, actions in table.items()})
            schedules._simulate_comms_compute(messages, rank_of.__getitem__, stages)
    sharded = {rank: schedules._add_unshard_reshard(actions) for rank, actions in table.items()}
    return with_messages({rank: schedules._add_reduce_grad(row, microbatches) for rank, row in sharded.items()})


def check_theirs(checks, tool, folder):
    """Their tables, compute only and with communication, in our reader and validator."""
    for name, stages_per_rank in THEIRS:
        files = []
        for ranks in RANKS:
            for microbatches in MICROBATCHES:
                table = their_table(name, ranks, stages_per_rank, microbatches)
                if table is None:
                    continue
                base = os.path.join(folder, f"{name}-{ranks}-{stages_per_rank}-{microbatches}")
                with_comms = dry_run(dict(enumerate(table)), ranks * stages_per_rank, microbatches)
                for form, content in ("compute_only", table), ("compute_comms", [with_comms[r] for r in range(ranks)]):
                    files.append(f"{base}-{form}.csv")
                    write_csv(files[-1], content)
        answers = tool("validate", *files).splitlines()
        refused = [f"{path}: {answer}" for path, answer in zip(files, answers, strict=True) if answer[:3] != "ok "]
        for line in refused[:5]:
            print(line)
        title = f"schedule: PyTorch's {name}, {stages_per_rank} stages per rank"
        checks.above(f"{title}: tables", len(answers), 50)
        checks.equal(f"{title}: refused by us", len(refused), 0)


def check_ours(checks, tool, folder):
    """Our tables in PyTorch's reader, validator, lowering and dry run."""
    path = os.path.join(folder, "ours.csv")
    for name, stages_per_rank in OURS:
        count, refused = 0, []
        for ranks in RANKS:
            for microbatches in MICROBATCHES:
                with open(path, "w") as out:
                    out.write(tool("make", name, ranks, stages_per_rank, microbatches))
                count += 1
                try:
                    dry_run(read_csv(path), ranks * stages_per_rank, microbatches)
                except (AssertionError, ValueError) as error:
                    refused.append(f"{name}, {ranks} ranks, {microbatches} microbatches: {str(error)[:200]}")
        for line in refused[:5]:
            print(line)
        checks.equal(f"schedule: our {name}, {stages_per_rank} stages per rank: refused of {count}", len(refused), 0)


def check_verdicts(checks, tool, folder):
    """Tables with two actions of a rank swapped: both sides accept the same ones."""
    generator = random.Random(3)
    files, verdicts = [], []
    for trial in range(600):
        name, stages_per_rank = generator.choice(OURS)
        ranks, microbatches = generator.randint(1, 4), generator.randint(2, 6)
        files.append(os.path.join(folder, f"swapped-{trial}.csv"))
        with open(files[-1], "w") as out:
            out.write(tool("make", name, ranks, stages_per_rank, microbatches))
        table = read_csv(files[-1])
        row = table[generator.randrange(ranks)]
        first = generator.randrange(len(row) - 1)
        second = min(len(row) - 1, first + generator.choice([1, 1, 2, 4]))
        row[first], row[second] = row[second], row[first]
        write_csv(files[-1], [table[rank] for rank in range(ranks)])
        try:
            dry_run(table, ranks * stages_per_rank, microbatches)
            verdicts.append(True)
        except (AssertionError, ValueError):
            verdicts.append(False)
    ours = [answer.startswith("ok ") for answer in tool("validate", *files).splitlines()]
    different = [path for path, a, b in zip(files, ours, verdicts, strict=True) if a != b]
    checks.above("schedule: swapped tables that PyTorch accepts", sum(verdicts), 100)
    checks.above("schedule: swapped tables that PyTorch refuses", len(verdicts) - sum(verdicts), 100)
    checks.equal("schedule: swapped tables that one side accepts and the other refuses", len(different), 0)


def check_times(checks, tool, folder):
    """Our tables against theirs under one simulator (ours; its times are checked by pipeline_test against formulas)."""
    pairs = [
        ("1F1B", "1F1B", 1),
        ("Interleaved1F1B", "Interleaved1F1B", 2),
        ("Interleaved1F1B", "Interleaved1F1B", 3),
        ("ZB-V", "ZBVZeroBubble", 2),
    ]
    for ours, theirs, stages_per_rank in pairs:
        our_files, their_files = [], []
        for ranks in range(1, 9):
            for microbatches in [*range(1, 20), 24, 32]:
                table = their_table(theirs, ranks, stages_per_rank, microbatches)
                if table is None:
                    continue
                base = os.path.join(folder, f"{ranks}-{microbatches}")
                their_files.append(base + "-theirs.csv")
                write_csv(their_files[-1], table)
                our_files.append(base + "-ours.csv")
                with open(our_files[-1], "w") as out:
                    out.write(tool("make", ours, ranks, stages_per_rank, microbatches))
        our_times = [float(line) for line in tool("simulate", 1, 1, 1, *our_files).split()]
        their_times = [float(line) for line in tool("simulate", 1, 1, 1, *their_files).split()]
        worst = max(a / b for a, b in zip(our_times, their_times, strict=True))
        faster = sum(a < b for a, b in zip(our_times, their_times))
        print(f"{ours}, {stages_per_rank} stages per rank: {faster} of {len(our_times)} tables take less time")
        # Unit costs are whole numbers: no tolerance.
        checks.within(f"schedule: our {ours}, {stages_per_rank} stages per rank: time over PyTorch's", worst, 1.0)


def run(checks, probe):
    """As run_all.py calls it: the tool lies beside the probe."""
    check(checks, Tool(os.path.join(os.path.dirname(probe.binary), "schedule_tool")))


def check(checks, tool):
    with tempfile.TemporaryDirectory() as folder:
        check_theirs(checks, tool, folder)
        check_ours(checks, tool, folder)
        check_verdicts(checks, tool, folder)
        check_times(checks, tool, folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tool", default="build/bin/schedule_tool")
    args = parser.parse_args()
    from checks import Checks

    checks = Checks()
    check(checks, Tool(args.tool))
    print(f"{checks.total} checks, {len(checks.failed)} failed")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
