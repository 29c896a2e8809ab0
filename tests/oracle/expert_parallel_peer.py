"""One of two ranks of Transformers' expert parallelism over gloo, which exchanges tokens by all-to-all: writes the gradients and the loss of one step.

  torchrun --nproc-per-node 2 expert_parallel_peer.py MODEL STREAM OUT     STREAM: safetensors with `stream`, [sequences x length + 1] tokens in `shape`
"""

import sys


def main():
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM
    from transformers.distributed.configuration_utils import DistributedConfig

    path, stream_file, out = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    file = load_file(stream_file)
    shape = tuple(file["shape"].tolist())
    own = slice(rank * shape[0] // ranks, (rank + 1) * shape[0] // ranks)
    tokens, targets = file["stream"][:-1].view(shape)[own], file["stream"][1:].view(shape)[own]
    config = DistributedConfig(fsdp_size=ranks, ep_size=ranks, ep_implementation="all_to_all")
    model = AutoModelForCausalLM.from_pretrained(path, distributed_config=config, dtype=torch.float32, attn_implementation="eager").train()
    # Gradients are averaged over the ranks, which have equally many targets.
    loss = F.cross_entropy(model(input_ids=tokens).logits.flatten(0, 1), targets.flatten())
    loss.backward()
    held = {name: tuple(parameter.grad.to_local().shape) for name, parameter in model.named_parameters()}
    gradients = {name: parameter.grad.full_tensor().contiguous() for name, parameter in model.named_parameters()}
    whole = {name: tuple(gradient.shape) for name, gradient in gradients.items()}
    assert all(held[name][0] * ranks == whole[name][0] for name in held if "experts" in name), "experts are not shared out"
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    gradients["loss"] = mean / ranks
    if rank == 0:
        save_file(gradients, out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
