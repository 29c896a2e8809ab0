"""PyTorch tensor parallelism (parallelize_module, gloo) on N one-thread processes: whole training steps in fp32.

Start with torchrun, as compare.py does:  python -m torch.distributed.run --nproc-per-node 2 tests/bench/tensor_peer.py A
Rank 0 prints one JSON line; peak_memory_bytes is rank 0's above its imports.
"""

import argparse
import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "oracle"))

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.tensor import DTensor

import peer_model
from shapes import BETAS, EPS, LEARNING_RATE, MAX_NORM, SHAPES, WEIGHT_DECAY
from torch_parallel import parallelize


def kinds(parameters):
    """Cut and whole parameters: no fused or stacked operation takes a mixture of the two."""
    parameters = list(parameters)
    split = [p for p in parameters if isinstance(p, DTensor)], [p for p in parameters if not isinstance(p, DTensor)]
    return [kind for kind in split if kind]


def optimizers_of(model):
    """peer_model's fused AdamW, one for each kind."""
    optimizers = []
    for parameters in kinds(model.parameters()):
        decayed, others = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        optimizers.append(torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPS, fused=True))
    return optimizers


def clip(model):
    """clip_grad_norm_ over both kinds."""
    norms = [torch.nn.utils.get_total_norm([p.grad for p in kind]) for kind in kinds(model.parameters())]
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    total = torch.linalg.vector_norm(torch.stack(norms))
    for kind in kinds(model.parameters()):
        torch.nn.utils.clip_grads_with_norm_(kind, MAX_NORM, total)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="per process")
    parser.add_argument("--sequence", action="store_true", help="cut tokens between the matrix products too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dist.init_process_group("gloo")
    ranks, rank = dist.get_world_size(), dist.get_rank()
    shape = SHAPES[args.shape]
    peer_model.reset_peak()
    idle = peer_model.memory("VmRSS")
    model = peer_model.build(shape)
    parallelize(model, dist.init_device_mesh("cpu", (ranks,)), args.sequence)
    optimizers = optimizers_of(model)
    inputs = peer_model.batches(shape, 4, shape.batch)
    positions = torch.arange(shape.length)[None]  # With cut tokens the model cannot count them itself.

    def step(i):
        tokens = inputs[i % len(inputs)]
        logits = model(input_ids=tokens, position_ids=positions).logits
        F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        clip(model)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    peer_model.timed(step, args.warmup)
    dist.barrier()
    name = "sequence" if args.sequence else "tensor"
    result = peer_model.report(name, args.shape, shape, peer_model.timed(step, args.steps), idle)
    if rank == 0:
        print(json.dumps(result), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
