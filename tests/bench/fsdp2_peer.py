"""PyTorch FSDP2 (fully_shard per block, gloo) on N one-thread processes: whole training steps in fp32.

Start with torchrun, as compare.py does:  python -m torch.distributed.run --nproc-per-node 2 tests/bench/fsdp2_peer.py A
Rank 0 prints one JSON line; tokens_per_second counts all ranks' tokens, peak_memory_bytes is rank 0's above its imports.
"""

import argparse
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

import peer_model
from shapes import MAX_NORM, SHAPES


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="per process")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dist.init_process_group("gloo")
    ranks, rank = dist.get_world_size(), dist.get_rank()
    mesh = dist.init_device_mesh("cpu", (ranks,))
    shape = SHAPES[args.shape]
    assert shape.batch % ranks == 0, f"{shape.batch} sequences do not divide among {ranks} ranks"
    peer_model.reset_peak()
    idle = peer_model.memory("VmRSS")
    model = peer_model.build(shape)
    for block in model.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = peer_model.optimizer_of(model)
    own = shape.batch // ranks
    inputs = [tokens[rank * own : (rank + 1) * own] for tokens in peer_model.batches(shape, 4, shape.batch)]

    def step(i):
        tokens = inputs[i % len(inputs)]
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    peer_model.timed(step, args.warmup)
    dist.barrier()
    result = peer_model.report("fsdp2", args.shape, shape, peer_model.timed(step, args.steps), idle)
    if rank == 0:
        print(json.dumps(result), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
