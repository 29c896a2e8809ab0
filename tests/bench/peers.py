"""One PyTorch contender on one shape: whole training steps (forward, backward, clip, fused AdamW) in fp32 on 2 threads.

Prints one JSON line: tokens_per_second (median step), step_ms, peak_memory_bytes (the most resident above the process
after its imports). Contenders: peft (LoRA of rank 16 on every linear layer); peft-nf4 (the same on bitsandbytes' NF4 with double quantization); eager; grouped_mm (a mixture's experts multiplied by one call, Transformers' default); malloc (eager on a glibc that keeps and reuses freed pages); compile; trainer.
"""

import argparse
import json
import os
import sys

# A malloc that neither maps large blocks one by one nor gives memory back, so that pages are faulted in once.
TUNED_MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(64 << 20)}


def run_loop(args, shape, compiled):
    import torch

    import peer_model
    from shapes import MAX_NORM

    torch.set_num_threads(args.threads)
    peer_model.reset_peak()
    idle = peer_model.memory("VmRSS")
    model = peer_model.build(shape, experts="grouped_mm" if args.contender == "grouped_mm" else "eager")
    if args.contender.startswith("peft"):
        model = peer_model.adapted(model, in_4_bits=args.contender == "peft-nf4")
    optimizer = peer_model.optimizer_of(model)
    forward = torch.compile(model) if compiled else model
    inputs = peer_model.batches(shape, 4, shape.batch)

    def step(i):
        tokens = inputs[i % len(inputs)]
        forward(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    peer_model.timed(step, args.warmup)
    return peer_model.report(args.contender, args.shape, shape, peer_model.timed(step, args.steps), idle)


def run_trainer(args, shape):
    import tempfile
    import time

    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    import peer_model
    from shapes import BETAS, EPS, LEARNING_RATE, MAX_NORM, WEIGHT_DECAY

    torch.set_num_threads(args.threads)
    peer_model.reset_peak()
    idle = peer_model.memory("VmRSS")
    model = peer_model.build(shape)
    rows = torch.cat(peer_model.batches(shape, 4, shape.batch))
    samples = [{"input_ids": row, "labels": row} for row in rows] * (args.warmup + args.steps)
    ends = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            max_steps=args.warmup + args.steps,
            per_device_train_batch_size=shape.batch,
            optim="adamw_torch_fused",
            learning_rate=LEARNING_RATE,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            adam_epsilon=EPS,
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=MAX_NORM,
            lr_scheduler_type="constant",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        Trainer(model=model, args=settings, train_dataset=samples, callbacks=[Clock()]).train()
    seconds = [after - before for before, after in zip(ends, ends[1:])][args.warmup - 1 :]
    return peer_model.report(args.contender, args.shape, shape, seconds, idle)


def main():
    from shapes import SHAPES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contender", choices=["peft", "peft-nf4", "eager", "malloc", "compile", "trainer", "grouped_mm"])
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2, help="untimed steps first; at least 1")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    wanted = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(args.threads)}
    if args.contender == "malloc":
        wanted.update(TUNED_MALLOC)
    if any(os.environ.get(key) != value for key, value in wanted.items()):
        # These are read when a process starts.
        os.execve(sys.executable, [sys.executable] + sys.argv, {**os.environ, **wanted})
    shape = SHAPES[args.shape]
    if args.contender == "trainer":
        result = run_trainer(args, shape)
    else:
        result = run_loop(args, shape, compiled=args.contender == "compile")
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
