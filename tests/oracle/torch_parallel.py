"""The same model, tokens and steps in Transformers, cut over two gloo ranks by PyTorch's own tensor and pipeline parallelism."""

import os
from dataclasses import dataclass

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

import reference as ref

RANKS = 2


@dataclass
class Case:
    method: str  # "tensor", "sequence" or "pipeline"
    model: dict
    seed: int
    steps: list  # of lists of microbatches
    learning_rate: float


def tensor_plan(sequence):
    """For parallelize_module on a LlamaForCausalLM. sequence: tokens are cut between the matrix products too."""
    between = Shard(1) if sequence else Replicate()
    plan = {
        "model.embed_tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=between),
        "lm_head": ColwiseParallel(input_layouts=between, output_layouts=Replicate()),
    }
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
        plan[f"model.layers.*.{name}"] = ColwiseParallel()
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        plan[f"model.layers.*.{name}"] = RowwiseParallel(output_layouts=between)
    if sequence:
        plan["model.norm"] = SequenceParallel(use_local_output=True)
        for name in ("input_layernorm", "post_attention_layernorm"):
            plan[f"model.layers.*.{name}"] = SequenceParallel()
        plan["model.layers.*.self_attn"] = PrepareModuleInput(
            input_kwarg_layouts={"hidden_states": Shard(1)}, desired_input_kwarg_layouts={"hidden_states": Replicate()}
        )
        plan["model.layers.*.mlp"] = PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate())
    return plan


def parallelize(model, mesh, sequence):
    tied = model.config.tie_word_embeddings
    parallelize_module(model, mesh, tensor_plan(sequence))
    if tied:  # Cutting the two one by one made two parameters of them.
        model.lm_head.weight = model.model.embed_tokens.weight


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def masks_of(microbatches):
    return torch.cat([ref.additive_mask(m.segments, 0, torch.float32) for m in microbatches])


def run_tensor(case):
    reference = ref.build(case.model, case.seed)
    parallelize(reference, dist.init_device_mesh("cpu", (RANKS,)), case.method == "sequence")
    optimizer = torch.optim.SGD(reference.parameters(), lr=case.learning_rate, foreach=False)
    losses, gradients = [], None
    for step in case.steps:
        optimizer.zero_grad(set_to_none=True)
        targets, total = sum(m.num_targets for m in step), 0.0
        for m in step:
            # Positions and mask are given, because with cut tokens the model sees only a part of the embeddings' length.
            inputs = {"position_ids": m.positions[None], "attention_mask": masks_of([m])}
            logits = reference(input_ids=m.tokens[None], **inputs).logits[0]
            loss = F.cross_entropy(logits, m.targets, ignore_index=-100, reduction="sum") / targets
            loss.backward()
            total += loss.item()
        losses.append(total)
        if gradients is None:
            gradients = {name: whole(p.grad) for name, p in reference.named_parameters()}
        optimizer.step()
    own = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in reference.parameters())
    return {"loss": losses, "gradients": gradients, "own_parameters": own}


class LlamaPart(torch.nn.Module):
    """Consecutive blocks; the first part begins with the embedding, the last one ends with norm and head."""

    def __init__(self, whole_model, begin, end):
        super().__init__()
        decoder, last = whole_model.model, len(whole_model.model.layers)
        self.embedding = decoder.embed_tokens if begin == 0 else None
        self.blocks = torch.nn.ModuleList(decoder.layers[begin:end])
        self.rotary = decoder.rotary_emb
        self.norm = decoder.norm if end == last else None
        self.head = whole_model.lm_head if end == last else None

    def forward(self, x, positions, mask):
        if self.embedding is not None:
            x = self.embedding(x)
        rotary = self.rotary(x, position_ids=positions)
        for block in self.blocks:
            x = block(x, attention_mask=mask, position_embeddings=rotary, position_ids=positions)
        return x if self.head is None else self.head(self.norm(x))


def run_pipeline(case):
    rank = dist.get_rank()
    reference = ref.build(case.model, case.seed)
    layers = len(reference.model.layers)
    cut = [0, (layers + 1) // 2, layers]
    part = LlamaPart(reference, cut[rank], cut[rank + 1])
    optimizer = torch.optim.SGD(part.parameters(), lr=case.learning_rate)
    tied = reference.model.embed_tokens.weight if case.model.get("tie_word_embeddings", False) else None
    stage = PipelineStage(part, rank, RANKS, torch.device("cpu"))
    losses, gradients = [], None

    def criterion(logits, expected):
        return F.cross_entropy(logits.flatten(0, 1), expected.flatten(), ignore_index=-100, reduction="sum") / targets

    schedule = Schedule1F1B(stage, len(case.steps[0]), loss_fn=criterion, scale_grads=False)
    for step in case.steps:
        optimizer.zero_grad(set_to_none=True)
        targets, parts = sum(m.num_targets for m in step), []
        given = {"positions": torch.stack([m.positions for m in step]), "mask": masks_of(step)}
        if rank == 0:
            schedule.step(torch.stack([m.tokens for m in step]), **given)
        else:
            schedule.step(target=torch.stack([m.targets for m in step]), losses=parts, **given)
        total = torch.tensor(sum(part_loss.item() for part_loss in parts), dtype=torch.float64)
        dist.all_reduce(total)  # Only the last rank has losses.
        losses.append(total.item())
        if tied is not None:  # PyTorch's pipeline knows no shared weights: its user adds up their gradients.
            dist.all_reduce(tied.grad)
        if gradients is None:
            own = {name: p.grad.clone() for name, p in reference.named_parameters() if p.grad is not None}
            everyone = [None] * RANKS
            dist.all_gather_object(everyone, own)
            gradients = {name: gradient for mine in everyone for name, gradient in mine.items()}
        optimizer.step()
    return {"loss": losses, "gradients": gradients, "own_parameters": sum(p.numel() for p in part.parameters())}


def work(rank, cases, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    results = [run_pipeline(case) if case.method == "pipeline" else run_tensor(case) for case in cases]
    if rank == 0:
        torch.save(results, os.path.join(folder, "results.pt"))
    dist.barrier()
    dist.destroy_process_group()
