"""The same model, tokens and steps in Transformers and torch.optim."""

import math

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "vocab_size")


def config_of(model, attention="eager"):
    """model: a dictionary with Hugging Face's names; rope_scaling optional."""
    rope = {"rope_type": "default", "rope_theta": model.get("rope_theta", 10000.0)}
    rope.update(model.get("rope_scaling", {}))
    return LlamaConfig(
        **{key: model[key] for key in SIZES if key in model},
        max_position_embeddings=model.get("max_position_embeddings", 2048),
        rms_norm_eps=model.get("rms_norm_eps", 1e-5),
        rope_parameters=rope,
        tie_word_embeddings=model.get("tie_word_embeddings", False),
        initializer_range=model.get("initializer_range", 0.02),
        attn_implementation=attention,
        use_cache=False,
    )


def build(model, seed):
    """Weights large enough that attention is far from uniform, norms away from one."""
    torch.manual_seed(seed)
    reference = LlamaForCausalLM(config_of({"initializer_range": 0.12, **model})).float().train()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return reference


def weights_of(reference):
    return {name: parameter.detach().float().clone() for name, parameter in reference.named_parameters()}


def additive_mask(segments, window, dtype):
    """[1, 1, T, T]: causal inside each segment, minus infinity elsewhere."""
    ids = torch.repeat_interleave(torch.arange(len(segments)), torch.tensor(segments))
    index = torch.arange(len(ids))
    distance = index[:, None] - index[None, :]
    visible = (ids[:, None] == ids[None, :]) & (distance >= 0)
    if window > 0:
        visible &= distance < window
    return torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)[None, None]


def logits_of(reference, microbatch, window=0):
    """[T, vocab]. Equal segments go through Transformers' own causal mask as a batch, others through one block-diagonal 4-D mask."""
    lengths = set(microbatch.segments)
    if len(lengths) == 1 and window == 0:
        return reference(input_ids=microbatch.tokens.view(len(microbatch.segments), -1)).logits.flatten(0, 1)
    mask = additive_mask(microbatch.segments, window, next(reference.parameters()).dtype)
    return reference(input_ids=microbatch.tokens[None], position_ids=microbatch.positions[None], attention_mask=mask).logits[0]


def forward_backward(reference, microbatches, window=0, z_loss=0.0):
    """Mean cross-entropy over all microbatches; gradients (of it plus the z-loss) are in the parameters."""
    reference.zero_grad(set_to_none=True)
    targets = sum(m.num_targets for m in microbatches)
    total = 0.0
    for microbatch in microbatches:
        logits = logits_of(reference, microbatch, window).float()
        loss = F.cross_entropy(logits, microbatch.targets, ignore_index=-100, reduction="sum") / targets
        total += loss.item()
        if z_loss > 0:
            lse = torch.logsumexp(logits, dim=-1)[microbatch.targets >= 0]
            loss = loss + z_loss * lse.square().sum() / targets
        loss.backward()
    return total


def gradients_of(reference):
    return {name: parameter.grad.detach().float().clone() for name, parameter in reference.named_parameters()}


def norm_of(gradients):
    return math.sqrt(sum(g.double().square().sum().item() for g in gradients.values()))


def decay_groups(reference, weight_decay):
    parameters = list(reference.parameters())
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def train(reference, optimizer, steps, learning_rates, clip=0.0, **loss_options):
    """Losses before each update."""
    losses = []
    for microbatches, learning_rate in zip(steps, learning_rates):
        losses.append(forward_backward(reference, microbatches, **loss_options))
        if clip > 0:
            torch.nn.utils.clip_grad_norm_(reference.parameters(), clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
    return losses
