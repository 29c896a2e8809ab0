"""What the PyTorch contenders share: the Transformers model of a shape, its optimizer, and measuring."""

import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from shapes import BETAS, EPS, LEARNING_RATE, WEIGHT_DECAY


def build(shape, experts="eager"):
    """The model of a shape; experts: how Transformers multiplies by experts, where the shape has some."""
    settings = dict(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=max(2048, shape.length),
        tie_word_embeddings=shape.tied,
        use_cache=False,
    )
    torch.manual_seed(1)
    if shape.experts == 0:
        return LlamaForCausalLM(LlamaConfig(**settings)).float().train()
    mixture = dict(
        num_experts=shape.experts,
        num_experts_per_tok=shape.per_token,
        moe_intermediate_size=shape.expert_width,
        head_dim=shape.hidden // shape.heads,
        norm_topk_prob=True,
        experts_implementation=experts,
    )
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**settings, **mixture)).float().train()
    assert model.config._experts_implementation == experts
    return model


def adapted(model, in_4_bits):
    """LoRA of rank 16 on every linear layer of the blocks."""
    import tempfile

    from peft import LoraConfig, get_peft_model
    from transformers import BitsAndBytesConfig

    if in_4_bits:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32)
            model = LlamaForCausalLM.from_pretrained(folder, quantization_config=quantization, device_map="cpu", dtype=torch.float32)
        model.config.use_cache = False
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")).train()


def optimizer_of(model):
    """Fused AdamW that decays matrices only, as Trireme does."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPS, fused=True)


def batches(shape, count, sequences):
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(shape.vocab, (sequences, shape.length), generator=generator) for _ in range(count)]


def memory(field):
    """VmRSS (resident now) or VmHWM (the most since reset_peak) of this process, in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":"))


def reset_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def timed(step, count):
    """Seconds of each of `count` calls."""
    seconds = []
    for i in range(count):
        start = time.perf_counter()
        step(i)
        seconds.append(time.perf_counter() - start)
    return seconds


def report(name, shape_name, shape, seconds, idle_bytes):
    median = statistics.median(seconds)
    return {
        "contender": name,
        "shape": shape_name,
        "tokens_per_second": shape.tokens_per_step / median,
        "step_ms": {"median": 1e3 * median, "min": 1e3 * min(seconds)},
        "peak_memory_bytes": memory("VmHWM") - idle_bytes,
        "steps": len(seconds),
    }
