"""Directories whose matrices have blocks of few bits with scales, as gpt-oss, DeepSeek and Qwen publish them, against Transformers' dequantization."""

import json
import os

MXFP4, FP8 = "mxfp4", "fp8"
BLOCK = 32
KINDS = {
    "gpt_oss, MXFP4": ("gpt_oss", MXFP4, "float32", dict(num_local_experts=4, num_experts_per_tok=2, intermediate_size=96, head_dim=16)),
    "deepseek_v3, FP8": ("deepseek_v3", FP8, "float32", dict(moe_intermediate_size=32, q_lora_rank=32, kv_lora_rank=24, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16, num_key_value_heads=4, n_routed_experts=8, num_experts_per_tok=3, n_group=2, topk_group=1, first_k_dense_replace=1, pad_token_id=None)),
    "qwen3, FP8, scales of 16 bits": ("qwen3", FP8, "bfloat16", dict(head_dim=16, intermediate_size=96, tie_word_embeddings=True)),
}  # fmt: skip


def to_mxfp4(tensors, generator):
    import torch

    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        tensors[name + "_blocks"] = torch.randint(0, 256, (experts, outputs, inputs // BLOCK, 16), generator=generator, dtype=torch.uint8)
        tensors[name + "_scales"] = torch.randint(120, 124, (experts, outputs, inputs // BLOCK), generator=generator, dtype=torch.uint8)


def to_fp8(tensors, dtype):
    import torch

    def is_linear(name, value):
        return value.ndim == 2 and "_proj" in name and all(size % BLOCK == 0 for size in value.shape)

    for name in [name for name, value in tensors.items() if is_linear(name, value)]:
        rows, columns = tensors[name].shape
        blocks = tensors[name].float().view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
        scales = (blocks.abs().amax((1, 3)) / 448).to(getattr(torch, dtype))
        codes = (blocks / scales.float()[:, None, :, None]).clamp(-448, 448).view(rows, columns)
        tensors[name] = codes.to(torch.float8_e4m3fn)
        tensors[name.removesuffix(".weight") + ".weight_scale_inv"] = scales


def write_packed(reference, kind, scales, folder):
    """A directory of `reference` with other numbers where they are packed."""
    import torch
    from safetensors.torch import load_file, save_file

    reference.to(torch.bfloat16).save_pretrained(folder)
    name = os.path.join(folder, "model.safetensors")
    tensors = load_file(name)
    if kind == MXFP4:
        to_mxfp4(tensors, torch.Generator().manual_seed(3))
        config = {"quant_method": MXFP4, "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    else:
        to_fp8(tensors, scales)
        config = {"quant_method": FP8, "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
        if "deepseek" in reference.config.model_type:  # what predicts a further token
            tensors["model.layers.2.eh_proj.weight"] = torch.ones(4, 4)
    save_file(tensors, name, {"format": "pt"})
    path = os.path.join(folder, "config.json")
    with open(path) as file:
        content = json.load(file)
    with open(path, "w") as file:
        json.dump({**content, "quantization_config": config}, file)


def dequantized(folder, kind, dtype):
    """What Transformers makes of it, as a model that knows nothing of its past: the one that was loaded is saved with the names of codes."""
    from transformers import AutoConfig, AutoModelForCausalLM, FineGrainedFP8Config, Mxfp4Config

    how = Mxfp4Config(dequantize=True) if kind == MXFP4 else FineGrainedFP8Config(dequantize=True, weight_block_size=(BLOCK, BLOCK))
    loaded = AutoModelForCausalLM.from_pretrained(folder, quantization_config=how, dtype=dtype)
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    plain.load_state_dict(loaded.state_dict())
    return plain


def check_packed(checks, trireme, folder, corpus, batch, build, check_lora):
    """Values bit for bit in 16 and 32 bits; LoRA on them as on the dequantized model."""
    import torch
    from hf_tools import read_tensors, same_bytes

    for index, (name, (family, kind, scales, model)) in enumerate(KINDS.items()):
        own = os.path.join(folder, f"packed{index}")
        packed = os.path.join(own, "packed")
        write_packed(build(family, model, 300 + index), kind, scales, packed)
        for dtype, flags in ((torch.bfloat16, []), (torch.float32, ["--dtype", "f32"])):
            theirs, ours = os.path.join(own, f"theirs_{dtype}"), os.path.join(own, f"ours_{dtype}")
            reference = dequantized(packed, kind, dtype)
            reference.save_pretrained(theirs)
            trireme("export", packed, *flags, "--output", ours)
            checks.equal(f"{name}: tensors other than Transformers' as {dtype}", same_bytes(read_tensors(ours), read_tensors(theirs)), [])
        check_lora(checks, trireme, own, name, packed, reference, corpus, batch, "attention", dora=False, plain=theirs)
        if kind == MXFP4:  # held as it is, it is the same numbers
            check_lora(checks, trireme, own, f"{name}, held packed", packed, reference, corpus, batch, "attention", dora=False, quantization="quantization { method: MXFP4 }")


def there_and_back(weight, method):
    """A matrix quantized and dequantized by bitsandbytes."""
    import bitsandbytes.functional as functional
    import torch

    if method == "INT8":
        codes, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
        return functional.int8_vectorwise_dequant(codes, scales).float()
    codes, state = functional.quantize_4bit(weight.contiguous(), blocksize=64, quant_type="nf4", compress_statistics=False)
    return functional.dequantize_4bit(codes, state).float()


def check_quantized_experts(checks, trireme, folder, corpus, batch, build, check_lora, parameters):
    """LoRA on experts that are held quantized, each gate, up and down by itself, against PEFT on what bitsandbytes makes of each."""
    import torch

    for index, method in enumerate(("NF4", "INT8")):
        own = os.path.join(folder, f"quantized_experts{index}")
        path = os.path.join(own, "model")
        reference = build("qwen3_moe", dict(moe_intermediate_size=64, num_experts=8, head_dim=32, num_experts_per_tok=2), 400 + index)
        reference.save_pretrained(path)
        with torch.no_grad():
            for name, weight in reference.named_parameters():
                if weight.ndim == 3:
                    halves = 2 if "gate_up" in name else 1
                    weight.copy_(torch.stack([torch.cat([there_and_back(half, method) for half in expert.chunk(halves)]) for expert in weight]))
                elif "_proj" in name:
                    weight.copy_(there_and_back(weight, method))
        quantization = f"quantization {{ method: {method} double_quantization: false }}"
        check_lora(checks, trireme, own, f"qwen3_moe in {method}", path, reference, corpus, batch, "attention", dora=False, parameters=parameters, quantization=quantization)
