"""Trireme against its peers, interleaved (A B C A B C ...) in one go, since a machine's speed drifts. Prints tables of ratios.

Groups: A, B512, B2048 (one process, 2 threads, against Transformers eager, with a tuned malloc, compiled, Trainer), lora and
qlora (B512 with adapters of rank 16 on every linear layer, on an fp32 or NF4 base, against PEFT and bitsandbytes), fsdp2 and tensor (shape A on two one-thread ranks, PARAMETERS or tensor: 2, against PyTorch's FSDP2 or tensor parallelism over gloo), moe32 and moe64 (mixtures of 32 and 64 experts against our own model without experts that does as much for each token, and Transformers).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
RECIPES = os.path.join(HERE, "..", "..", "configs", "recipes")

LORA = ["adapter.r=16", "adapter.lora_alpha=32"]

# Trireme's recipe and overrides, and its ranks.
TRIREME = {
    "A": ("bench_shape_a", [], 1),
    "B512": ("bench_smollm2_135m", [], 1),
    "B2048": ("bench_smollm2_135m", ["data.sequence_length=2048"], 1),
    "lora": ("bench_smollm2_135m", LORA, 1),
    "qlora": ("bench_smollm2_135m", LORA + ["model.quantization.method=NF4"], 1),
    "fsdp2": ("bench_shape_a", ["micro_batch_size=4", "parallel.shard=PARAMETERS"], 2),
    "tensor": ("bench_shape_a", ["parallel.tensor=2"], 2),
    "moe32": ("bench_moe_32", [], 1),
    "moe64": ("bench_moe_64", [], 1),
    "moe_dense": ("bench_moe_dense", [], 1),
}
# Contenders on two ranks: script and options.
ON_TWO_RANKS = {
    "fsdp2": ["fsdp2_peer.py", "A"],
    "tensor": ["tensor_peer.py", "A"],
    "sequence": ["tensor_peer.py", "A", "--sequence"],
}
CONTENDERS = {"lora": ["peft"], "qlora": ["peft-nf4"], "fsdp2": ["fsdp2"], "tensor": ["tensor", "sequence"], **{name: ["dense twin", "grouped_mm", "eager"] for name in ("moe32", "moe64")}}  # the other groups': --peers
STEPS = {"A": (10, 3), "B512": (4, 1), "B2048": (2, 1), "lora": (4, 1), "qlora": (4, 1), "fsdp2": (10, 3), "tensor": (10, 3), "moe32": (10, 3), "moe64": (10, 3)}  # timed, warm-up

# What Trireme must reach: times a contender's tokens per second, and at most this part of its memory.
REQUIRED_SPEED = {
    ("A", "eager"): 1.4,
    ("B512", "eager"): 1.3,
    ("B2048", "eager"): 1.3,
    ("lora", "peft"): 1.4,
    ("qlora", "peft-nf4"): 2.0,
    ("fsdp2", "fsdp2"): 1.3,
    ("tensor", "tensor"): 1.3,
    ("tensor", "sequence"): 1.3,
    ("moe32", "dense twin"): 0.85,
    ("moe32", "grouped_mm"): 1.3,
    ("moe64", "dense twin"): 0.7,
    ("moe64", "grouped_mm"): 1.3,
}
REQUIRED_MEMORY = {("A", "eager"): 0.5}


def busy_seconds():
    """Processor time spent so far (by everyone, by finished children of this process)."""
    with open("/proc/stat") as file:
        user, nice, system = map(int, file.readline().split()[1:4])
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (user + nice + system) / os.sysconf("SC_CLK_TCK"), own.ru_utime + own.ru_stime


def undisturbed(run, args, label):
    """Runs until other processes used at most args.disturbance of the processors meanwhile; gives up after args.retries."""
    for attempt in range(args.retries + 1):
        everyone, own = busy_seconds()
        start = time.monotonic()
        result = run()
        everyone_after, own_after = busy_seconds()
        others = (everyone_after - everyone) - (own_after - own)
        result["disturbance"] = max(0.0, others / (time.monotonic() - start) / os.cpu_count())
        text = f"{label}: {result['tokens_per_second']:.0f} tokens/s, others used {100 * result['disturbance']:.0f} % of the processors"
        print(text, file=sys.stderr, flush=True)
        if result["disturbance"] <= args.disturbance:
            break
    return result


def last_json(command, environment):
    done = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])


def run_trireme(binary, group, steps, warmup):
    name, overrides, ranks = TRIREME[group]
    command = [binary, "bench", os.path.join(RECIPES, name + ".textproto"), "--steps", str(steps), "--warmup", str(warmup)]
    for override in overrides + ["launch.device=CPU"]:
        command += ["--set", override]
    if ranks > 1:
        command = ["mpirun", "--bind-to", "none", "--oversubscribe", "-np", str(ranks)] + command
    environment = {"OMP_NUM_THREADS": str(2 // ranks), "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    result = last_json(command, environment)
    result["peak_memory_bytes"] -= result["idle_memory_bytes"]
    return result


def run_peer(contender, group):
    steps, warmup = STEPS[group]
    options = ["--steps", str(steps), "--warmup", str(warmup)]
    if contender in ON_TWO_RANKS:
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
        script, *arguments = ON_TWO_RANKS[contender]
        return last_json([sys.executable, *launcher, os.path.join(HERE, script), *arguments, *options], {"OMP_NUM_THREADS": "1"})
    return last_json([sys.executable, os.path.join(HERE, "peers.py"), contender, "B512" if "peft" in contender else group, *options], {})


def summarize(results):
    """Medians over the rounds."""
    median = lambda values: statistics.median(list(values))
    return {
        name: {
            "tokens_per_second": median(r["tokens_per_second"] for r in rounds),
            "lowest": min(r["tokens_per_second"] for r in rounds),
            "highest": max(r["tokens_per_second"] for r in rounds),
            "disturbance": max(r["disturbance"] for r in rounds),
            "memory_bytes": median(r["peak_memory_bytes"] for r in rounds),
        }
        for name, rounds in results.items()
    }


def verdict(group, name, speed, memory):
    bound = REQUIRED_SPEED.get((group, name), 1.0)
    notes = [f"at least {bound:.2f}x: {'met' if speed >= bound else 'MISSED'}"]
    if (group, name) in REQUIRED_MEMORY:
        bound = REQUIRED_MEMORY[group, name]
        notes.append(f"memory at most {bound:.2f}x: {'met' if memory <= bound else 'MISSED'}")
    return ", ".join(notes)


def print_table(group, summary):
    ours = summary["trireme"]
    worst = max(row["disturbance"] for row in summary.values())
    if worst > 0.1:
        print(f"\nwarning: other processes used up to {100 * worst:.0f} % of the processors during these runs")
    print(f"\n{group}: median of the runs' median steps (lowest to highest run); memory: most resident above idle")
    print(f"{'':10} {'tokens/s':>9} {'range':>15} {'memory MiB':>11} {'speed':>8} {'memory':>8}")
    for name, row in summary.items():
        line = f"{name:10} {row['tokens_per_second']:9.0f} {row['lowest']:7.0f}-{row['highest']:<7.0f} {row['memory_bytes'] / 2**20:11.0f}"
        if name != "trireme":
            speed, memory = ours["tokens_per_second"] / row["tokens_per_second"], ours["memory_bytes"] / row["memory_bytes"]
            line += f" {speed:7.2f}x {memory:7.2f}x  {verdict(group, name, speed, memory)}"
        print(line)
    print(flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trireme", default="build/bin/trireme")
    parser.add_argument("--groups", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--peers", nargs="+", default=["eager", "malloc", "compile", "trainer"], help="for A and B")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--disturbance", type=float, default=0.1, help="repeat a run while others used more than this part of the processors")
    parser.add_argument("--retries", type=int, default=3, help="at most so often")
    parser.add_argument("--output", help="also write all numbers here, as JSON")
    args = parser.parse_args()
    everything = {}
    for group in args.groups:
        contenders = ["trireme"] + CONTENDERS.get(group, args.peers)
        results = {name: [] for name in contenders}
        for number in range(args.rounds):
            for name in contenders:
                run = {"trireme": lambda: run_trireme(args.trireme, group, *STEPS[group]), "dense twin": lambda: run_trireme(args.trireme, "moe_dense", *STEPS[group])}.get(name, lambda: run_peer(name, group))
                results[name].append(undisturbed(run, args, f"{group} round {number + 1} {name}"))
        everything[group] = {"runs": results, "summary": summarize(results)}
        print_table(group, everything[group]["summary"])
    if args.output:
        with open(args.output, "w") as file:
            json.dump(everything, file, indent=1)


if __name__ == "__main__":
    main()
