"""Every model family against Transformers: tiny random models imported as they are, on one rank and on tensor 2 x pipeline 2.

Losses, every gradient tensor, exports byte for byte, config.json as Transformers reads it.
Runs alone: tests/oracle/families_oracle.py --trireme build/bin/trireme --probe build/bin/trireme_probe [--only NAME]
"""

import argparse
import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

from generate_oracle import comma, compare, greedy, last_line  # noqa: E402
from hf_oracle import check_config, check_training  # noqa: E402
from packed_files import check_packed, check_quantized_experts  # noqa: E402
from hf_tools import LENGTH, Program, batch_of, edit_config, first_loss, read_tensors, recipe, same_bytes, write_tokens  # noqa: E402

SKIPPED = 77
LORA_RATE = 16.0

LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
LINEAR = dict(rope_type="linear", rope_theta=10000.0, factor=4.0)
YARN = dict(rope_type="yarn", rope_theta=20000.0, factor=4.0, original_max_position_embeddings=32)
YARN_FULL = dict(YARN, beta_fast=16.0, beta_slow=2.0, attention_factor=1.2)
LONGROPE = dict(rope_type="longrope", rope_theta=10000.0, short_factor=[1.0 + 0.05 * i for i in range(8)], long_factor=[1.0 + 0.5 * i for i in range(8)])
NO_PAD = dict(pad_token_id=None)
EXPERTS = dict(moe_intermediate_size=48)
DEEPSEEK = dict(moe_intermediate_size=48, q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16, num_key_value_heads=4, pad_token_id=None)
# DeepSeek's names too: PEFT takes those that a model has.
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"]
MIXTURES = ("qwen3_moe", "mixtral", "olmoe", "qwen2_moe", "glm4_moe", "granitemoe", "gpt_oss", "deepseek_v2", "deepseek_v3")
EXPERT_PARAMETERS = ["experts.gate_up_proj", "experts.down_proj"]
EXPERT_MESHES = ((4, "tensor: 2 expert: 4"), (4, "expert: 2 shard: OPTIMIZER"))
QWEN_WINDOW = dict(use_sliding_window=True, sliding_window=20, max_window_layers=1)
# Without a padding id: its row of the embedding would get no gradient.
GEMMA = dict(head_dim=24, query_pre_attn_scalar=20, sliding_window=20, pad_token_id=None)


# Where layer_types and no_rope_layers say it all.
WITHOUT_EFFECT = ("no_rope_layer_interval", "_sliding_window_pattern", "max_window_layers", "partial_rotary_factor")


def gemma3_rope(**full):
    return {"full_attention": {"rope_type": "default", "rope_theta": 50000.0, **full}, "sliding_attention": {"rope_type": "default", "rope_theta": 9000.0}}


# LENGTH is beyond every window and original_max_position_embeddings here.
FAMILIES = {
    "llama": [
        ("linear rope", dict(rope_parameters=LINEAR)),
        ("yarn rope, tied", dict(rope_parameters=YARN, tie_word_embeddings=True)),
        ("yarn rope, all its numbers", dict(rope_parameters=YARN_FULL)),
        ("biases", dict(attention_bias=True, mlp_bias=True)),
        ("longrope, a factor of attention", dict(rope_parameters=dict(LONGROPE, original_max_position_embeddings=32, factor=8.0, attention_factor=1.3))),
        ("dynamic rope, within its context", dict(rope_parameters=dict(rope_type="dynamic", rope_theta=10000.0, factor=4.0))),
    ],
    "qwen2": [
        ("tied", dict(tie_word_embeddings=True)),
        ("untied, one kv head, yarn", dict(num_key_value_heads=1, rope_parameters=YARN)),
        ("window in the later layers", dict(QWEN_WINDOW, num_hidden_layers=3)),
    ],
    "qwen3": [
        ("tied, head_dim 32", dict(head_dim=32, tie_word_embeddings=True)),
        ("untied, biases, no groups", dict(head_dim=16, num_key_value_heads=4, attention_bias=True)),
        ("window, yarn", dict(QWEN_WINDOW, head_dim=16, rope_parameters=YARN)),
    ],
    "smollm3": [
        ("each second without rope", dict(no_rope_layer_interval=2, pad_token_id=None)),
        ("untied, four layers", dict(num_hidden_layers=4, tie_word_embeddings=False, pad_token_id=None)),
        ("window where no rope", dict(no_rope_layer_interval=2, use_sliding_window=True, sliding_window=20, pad_token_id=None)),
    ],
    "gemma2": [
        ("tied, soft caps", dict(GEMMA, attn_logit_softcapping=3.0, final_logit_softcapping=2.0)),
        ("no soft caps, untied", dict(GEMMA, attn_logit_softcapping=None, final_logit_softcapping=None, tie_word_embeddings=False)),
    ],
    "gemma3_text": [
        ("two rope bases", dict(GEMMA, num_hidden_layers=4, rope_parameters=gemma3_rope(), layer_types=["sliding_attention", "full_attention"] * 2)),
        ("linear rope, all layers global", dict(GEMMA, num_key_value_heads=1, layer_types=["full_attention"] * 2, rope_parameters=gemma3_rope(rope_type="linear", factor=4.0))),
    ],
    "gpt2": [
        ("tied", dict()),
        ("tied, old names", dict(n_inner=None, layer_norm_epsilon=1e-3)),
        ("untied, exact gelu, three layers", dict(tie_word_embeddings=False, activation_function="gelu", n_layer=3)),
        ("untied, old names, two heads", dict(tie_word_embeddings=False, n_head=2, n_inner=88)),
        ("scores by layer", dict(scale_attn_by_inverse_layer_idx=True, n_layer=3)),
    ],
    "gpt_neox": [
        ("parallel, a quarter turns", dict()),
        ("sequential, old dialect", dict(use_parallel_residual=False, rope_parameters=dict(rope_type="default", rope_theta=9000.0, partial_rotary_factor=0.5))),
        ("all turns, no biases, tied", dict(attention_bias=False, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=1.0))),
        ("linear rope, tanh gelu, old dialect", dict(hidden_act="gelu_new", layer_norm_eps=1e-3, rope_parameters=dict(LINEAR, partial_rotary_factor=0.375))),
        ("yarn rope, three layers", dict(num_hidden_layers=3, rope_parameters=dict(YARN, partial_rotary_factor=0.5))),
    ],
    "gemma": [
        ("tied", dict(head_dim=24, **NO_PAD)),
        ("untied, one kv head, biases", dict(head_dim=32, num_key_value_heads=1, tie_word_embeddings=False, attention_bias=True, **NO_PAD)),
    ],
    "ministral": [
        ("windows in some layers", dict(sliding_window=20, head_dim=16, layer_types=["sliding_attention", "full_attention"])),
        ("windows in all, tied", dict(sliding_window=20, tie_word_embeddings=True, head_dim=32)),
    ],
    "phi": [
        ("half turns", dict()),
        ("normed heads, no groups", dict(qk_layernorm=True, num_key_value_heads=4, rope_parameters=dict(rope_type="default", rope_theta=9000.0, partial_rotary_factor=0.25))),
        ("tied, gelu, linear rope", dict(tie_word_embeddings=True, hidden_act="gelu", rope_parameters=dict(LINEAR, partial_rotary_factor=0.5))),
    ],
    "phi3": [
        ("fused", dict(**NO_PAD)),
        ("window, partial, tied", dict(sliding_window=20, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.75), **NO_PAD)),
        ("longrope, beyond its context", dict(original_max_position_embeddings=32, rope_parameters=dict(LONGROPE, partial_rotary_factor=1.0), **NO_PAD)),
        ("longrope, within its context", dict(original_max_position_embeddings=4096, num_key_value_heads=1, rope_parameters=dict(LONGROPE, partial_rotary_factor=1.0), **NO_PAD)),
    ],
    "olmo": [
        ("clipped", dict(clip_qkv=0.6, **NO_PAD)),
        ("biases, tied", dict(attention_bias=True, tie_word_embeddings=True, **NO_PAD)),
    ],
    "olmo2": [
        ("grouped", dict(**NO_PAD)),
        ("one kv head, biases, tied", dict(num_key_value_heads=1, attention_bias=True, tie_word_embeddings=True, **NO_PAD)),
    ],
    "olmo3": [
        ("windows by pattern", dict(num_hidden_layers=4, sliding_window=20, **NO_PAD)),
        ("yarn in global layers", dict(num_hidden_layers=3, sliding_window=20, layer_types=["full_attention", "sliding_attention", "full_attention"], rope_parameters=gemma3_rope(**YARN), **NO_PAD)),
    ],
    "granite": [
        ("multipliers", dict(embedding_multiplier=6.0, attention_multiplier=0.2, residual_multiplier=0.3, logits_scaling=3.0)),
        ("biases, tied", dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True, residual_multiplier=0.5)),
    ],
    "cohere": [
        ("tied", dict(logit_scale=0.25, **NO_PAD)),
        ("normed heads, untied, biases", dict(use_qk_norm=True, tie_word_embeddings=False, attention_bias=True, num_key_value_heads=4, **NO_PAD)),
        ("normed heads, one kv head", dict(use_qk_norm=True, num_key_value_heads=1, **NO_PAD)),
    ],
    "cohere2": [
        ("windows by pattern", dict(num_hidden_layers=4, sliding_window=20, logit_scale=0.5, **NO_PAD)),
        ("windows listed", dict(sliding_window=20, layer_types=["full_attention", "sliding_attention"], tie_word_embeddings=False, **NO_PAD)),
    ],
    "glm": [
        ("half turns", dict(head_dim=16, **NO_PAD)),
        ("no biases, all turns, tied", dict(head_dim=32, attention_bias=False, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=9000.0, partial_rotary_factor=1.0), **NO_PAD)),
    ],
    "glm4": [
        ("half turns", dict(head_dim=16, **NO_PAD)),
        ("one kv head, biases", dict(head_dim=32, num_key_value_heads=1, attention_bias=True, **NO_PAD)),
    ],
    "ernie4_5": [
        ("tied", dict(head_dim=32, **NO_PAD)),
        ("biases, untied", dict(head_dim=16, use_bias=True, tie_word_embeddings=False, **NO_PAD)),
    ],
    "helium": [
        ("untied", dict(head_dim=16, **NO_PAD)),
        ("biases, tied", dict(head_dim=16, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, num_key_value_heads=1, **NO_PAD)),
    ],
    "seed_oss": [
        ("biases of q, k, v", dict(head_dim=32, attention_dropout=0.0, residual_dropout=0.0, **NO_PAD)),
        ("other biases, tied", dict(head_dim=16, attention_bias=False, attention_out_bias=True, mlp_bias=True, tie_word_embeddings=True, attention_dropout=0.0, residual_dropout=0.0, **NO_PAD)),
    ],
    "arcee": [
        ("untied", dict()),
        ("biases, tied, yarn", dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True, rope_parameters=YARN)),
    ],
    "exaone4": [
        ("windows by pattern", dict(num_hidden_layers=4, sliding_window=20, tie_word_embeddings=True)),
        ("no windows, llama3 rope", dict(sliding_window=None, layer_types=["full_attention"] * 2, rope_parameters=LLAMA3, head_dim=32)),
        ("a window that no layer has", dict(sliding_window=20, layer_types=["full_attention"] * 2)),
    ],
    "hunyuan_v1_dense": [
        ("tied", dict(tie_word_embeddings=True, head_dim=32, **NO_PAD)),
        ("biases, one kv head, alpha", dict(attention_bias=True, num_key_value_heads=1, head_dim=16, rope_parameters=dict(rope_type="dynamic", rope_theta=10000.0, factor=1.0, alpha=1000.0), **NO_PAD)),
    ],
    "stablelm": [
        ("one after the other", dict(use_qkv_bias=True)),
        ("parallel, normed heads", dict(use_parallel_residual=True, qk_layernorm=True, num_key_value_heads=2)),
        ("half turns, tied", dict(tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=9000.0, partial_rotary_factor=0.5))),
    ],
    "nemotron": [
        ("half turns", dict()),
        ("biases, tied", dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True, head_dim=32)),
    ],
    "apertus": [
        ("llama3 rope", dict(rope_parameters=LLAMA3, **NO_PAD)),
        ("biases, tied, one kv head", dict(**NO_PAD, attention_bias=True, tie_word_embeddings=True, num_key_value_heads=1, rope_parameters=dict(rope_type="default", rope_theta=9000.0))),
    ],
    "qwen3_moe": [
        ("two of eight, not normed", dict(EXPERTS, num_experts=8, head_dim=16, num_experts_per_tok=2)),
        ("normed, one dense layer, tied", dict(EXPERTS, num_experts=4, num_experts_per_tok=3, norm_topk_prob=True, num_hidden_layers=3, mlp_only_layers=[0], decoder_sparse_step=1, head_dim=32, tie_word_embeddings=True)),
        ("one expert", dict(EXPERTS, num_experts=8, num_experts_per_tok=1, decoder_sparse_step=2, head_dim=16)),
        ("all experts", dict(EXPERTS, num_experts=4, num_experts_per_tok=4, norm_topk_prob=True, head_dim=16)),
    ],
    "mixtral": [
        ("two of four", dict(num_local_experts=4, num_experts_per_tok=2, intermediate_size=48)),
        ("window, tied, one of eight", dict(num_local_experts=8, num_experts_per_tok=1, sliding_window=20, tie_word_embeddings=True, intermediate_size=48, head_dim=32)),
    ],
    "olmoe": [
        ("two of eight, clipped", dict(num_experts=8, num_experts_per_tok=2, intermediate_size=48, clip_qkv=0.8, **NO_PAD)),
        ("normed, biases", dict(num_experts=4, num_experts_per_tok=2, intermediate_size=48, norm_topk_prob=True, attention_bias=True, num_key_value_heads=4, **NO_PAD)),
    ],
    "qwen2_moe": [
        ("shared expert", dict(EXPERTS, num_experts=8, num_experts_per_tok=2, shared_expert_intermediate_size=80)),
        ("normed, dense layers", dict(EXPERTS, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True, shared_expert_intermediate_size=32, num_hidden_layers=4, decoder_sparse_step=2)),
    ],
    "glm4_moe": [
        ("two groups, correction", dict(EXPERTS, n_routed_experts=8, num_experts_per_tok=3, n_group=2, topk_group=1, routed_scaling_factor=1.5, num_hidden_layers=3, head_dim=16, use_qk_norm=True, **NO_PAD)),
        ("one group, not normed, biases", dict(EXPERTS, n_routed_experts=4, num_experts_per_tok=2, norm_topk_prob=False, n_shared_experts=2, first_k_dense_replace=0, attention_bias=True, head_dim=32, **NO_PAD)),
    ],
    "granitemoe": [
        ("two of four", dict(num_local_experts=4, num_experts_per_tok=2, intermediate_size=48, embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.5, logits_scaling=2.0)),
        ("all of four, biases, tied", dict(num_local_experts=4, num_experts_per_tok=4, intermediate_size=48, attention_bias=True, tie_word_embeddings=True)),
    ],
    "gpt_oss": [
        ("two of four, sinks, windows", dict(num_local_experts=4, num_experts_per_tok=2, intermediate_size=48, head_dim=16, sliding_window=20, num_hidden_layers=3, rope_parameters=dict(YARN, truncate=False))),
        ("all of four, limits reached, tied", dict(num_local_experts=4, num_experts_per_tok=4, intermediate_size=40, head_dim=32, sliding_window=20, layer_types=["full_attention", "full_attention"], swiglu_limit=0.4, swiglu_alpha=1.3, tie_word_embeddings=True, attention_bias=False)),
    ],
    "deepseek_v2": [
        ("two groups, dense first", dict(DEEPSEEK, n_routed_experts=8, num_experts_per_tok=3, n_group=2, topk_group=1, topk_method="group_limited_greedy", routed_scaling_factor=1.5, first_k_dense_replace=1, num_hidden_layers=3)),
        ("greedy, no rank of queries, yarn", dict(DEEPSEEK, q_lora_rank=None, n_routed_experts=4, num_experts_per_tok=2, attention_bias=True, first_k_dense_replace=0, rope_parameters=dict(YARN, mscale=0.707, mscale_all_dim=0.9))),
    ],
    "deepseek_v3": [
        ("two groups, dense first, yarn", dict(DEEPSEEK, n_routed_experts=8, num_experts_per_tok=3, n_group=2, topk_group=1, routed_scaling_factor=1.5, first_k_dense_replace=1, num_hidden_layers=3, rope_parameters=dict(YARN, mscale=1.0, mscale_all_dim=1.0))),
        ("halves turn, one group, not normed, tied", dict(DEEPSEEK, q_lora_rank=None, rope_interleave=False, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, norm_topk_prob=False, n_shared_experts=2, first_k_dense_replace=0, v_head_dim=24, attention_bias=True, tie_word_embeddings=True)),
    ],
    "starcoder2": [
        ("window, tied", dict(sliding_window=20)),
        ("no biases, untied, linear rope", dict(use_bias=False, tie_word_embeddings=False, rope_parameters=LINEAR)),
    ],
    "falcon": [
        ("7B's", dict(multi_query=True)),
        ("new layout", dict(new_decoder_architecture=True, num_kv_heads=2)),
        ("new layout, one norm, biases, untied", dict(new_decoder_architecture=True, num_kv_heads=4, num_ln_in_parallel_attn=1, bias=True, tie_word_embeddings=False)),
        ("one after the other, biases", dict(multi_query=False, parallel_attn=False, bias=True, num_kv_heads=None)),
    ],
    "opt": [
        ("tied", dict(**NO_PAD)),
        ("no biases, untied, gelu", dict(enable_bias=False, tie_word_embeddings=False, activation_function="gelu", **NO_PAD)),
    ],
    "bloom": [
        ("tied", dict()),
        ("untied, two heads", dict(tie_word_embeddings=False, n_head=2)),
    ],
}  # fmt: skip


GPT2_SIZES = {"num_hidden_layers": "n_layer", "hidden_size": "n_embd", "num_attention_heads": "n_head", "intermediate_size": "n_inner", "max_position_embeddings": "n_positions"}
GPT2_DROPOUT = ("attn_pdrop", "embd_pdrop", "resid_pdrop")
# What the classes of other families call the sizes; None: they have no such key.
SIZES = {
    "gpt2": {**GPT2_SIZES, "num_key_value_heads": None},
    "gpt_neox": {"num_key_value_heads": None},
    "falcon": {"num_key_value_heads": None, "intermediate_size": "ffn_hidden_size"},
    "opt": {"num_key_value_heads": None, "intermediate_size": "ffn_dim", "initializer_range": "init_std"},
    "bloom": {"num_key_value_heads": None, "intermediate_size": None, "num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "max_position_embeddings": "seq_length"},
}
NO_DROPOUT = {"gpt2": {key: 0.0 for key in GPT2_DROPOUT}, "opt": {"dropout": 0.0, "word_embed_proj_dim": 64}}


def sizes_of(family, base):
    """The sizes under the family's names, without dropout."""
    names = SIZES.get(family, {})
    return {**{names.get(key, key): value for key, value in base.items() if names.get(key, key) is not None}, **NO_DROPOUT.get(family, {})}


def old_file(path, family):
    """Names and buffers as published files of the family have them."""
    import torch
    from safetensors.torch import load_file, save_file

    if family not in ("gpt2", "gpt_neox"):
        return
    name = os.path.join(path, "model.safetensors")
    tensors = load_file(name)
    mask = torch.tril(torch.ones(LENGTH, LENGTH, dtype=torch.uint8))[None, None]
    if family == "gpt2":
        tensors = {key.removeprefix("transformer."): value for key, value in tensors.items()}
        tensors.update({"h.0.attn.bias": mask, "h.0.attn.masked_bias": torch.tensor(-1e4)})
        if "lm_head.weight" not in tensors:
            tensors["lm_head.weight"] = tensors["wte.weight"].clone()
    else:
        layer = "gpt_neox.layers.0.attention."
        tensors.update({layer + "bias": mask, layer + "masked_bias": torch.tensor(-1e9), layer + "rotary_emb.inv_freq": torch.ones(4)})
    save_file(tensors, name, {"format": "pt"})


def old_dialect(config):
    """rope_parameters as Transformers 4 wrote them; GPT-2's dropout, which published files have."""
    if config["model_type"] == "gpt2":
        config.update({key: 0.1 for key in GPT2_DROPOUT}, n_ctx=LENGTH)
        return
    rope = config.pop("rope_parameters", None)
    if rope is None:
        return
    if config["model_type"] == "gpt_neox":
        config["rotary_pct"], config["rotary_emb_base"] = rope.pop("partial_rotary_factor"), rope.pop("rope_theta")
        config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
        return
    local = rope.pop("sliding_attention", None)
    if local:
        rope = rope["full_attention"]
        if config["model_type"] == "olmo3":  # has no key for them: both have the default
            return config.update(rope_parameters={"full_attention": rope, "sliding_attention": local})
        config["rope_local_base_freq"] = local["rope_theta"]
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")


def build(family, model, seed):
    import torch
    from cases import BASE
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    base = {**BASE, "max_position_embeddings": LENGTH, "initializer_range": 0.12, "bos_token_id": 1, "eos_token_id": 2}
    sizes = {**sizes_of(family, base), **model}
    config = AutoConfig.for_model(family, **sizes)
    config._attn_implementation = "eager"
    reference = AutoModelForCausalLM.from_config(config).float().train()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in reference.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.add_(0.1 * torch.randn_like(buffer))
    return reference


def lora_of(peft):
    """What of a PEFT model is trained, by its names in files."""
    names = {key.replace(".default", ""): value for key, value in peft.named_parameters() if value.requires_grad}
    return {key if "magnitude" not in key else key.replace("_vector.weight", "_vector"): value for key, value in names.items()}


def check_lora(checks, trireme, folder, name, path, reference, corpus, batch, targets, dora, plain="", parameters=None, quantization=""):
    """A directory of PEFT continued by us, written again, merged: gradients, values and logits. plain: path as Transformers loads it, where it does not."""
    import copy

    import reference as ref
    import torch
    from peft import PeftModel
    from peft_oracle import wrap
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    name = f"{name}, {'DoRA' if dora else 'LoRA'}{' of experts' if parameters else ''}"
    folder = os.path.join(folder, f"{'of_experts' if parameters else 'of_linears'}{len(quantization)}")
    os.makedirs(folder)
    adapter, out = os.path.join(folder, "adapter"), os.path.join(folder, "adapter_again")
    peft = wrap(copy.deepcopy(reference), dict(r=4, lora_alpha=8, target_modules=ATTENTION if targets == "attention" else targets, target_parameters=parameters, use_dora=dora), 7).train()
    peft.save_pretrained(adapter)
    loss = ref.forward_backward(peft, batch)
    expected = {key: value.grad.clone() for key, value in lora_of(peft).items()}
    before = load_file(os.path.join(adapter, "adapter_model.safetensors"))
    checks.equal(f"{name}: tensors of the directory that are not trained", sorted(set(before) ^ set(expected)), [])
    trireme("export", path, "--adapter", adapter, "--format", "peft", "--output", out)
    checks.equal(f"{name}: tensors changed by writing the directory again", same_bytes(read_tensors(out), read_tensors(adapter)), [])
    for ranks, mesh in ((1, ""), (4, "tensor: 2 pipeline: 2"), *(EXPERT_MESHES if parameters else ())):
        label = f"{name}, {ranks} ranks {mesh}"
        config, run_dir = recipe(folder, f"lora{ranks}{mesh}", f'from: "{path}" {quantization}', corpus, mesh=mesh, rate=LORA_RATE, more=f'adapter {{ from: "{adapter}" }}')
        trireme("train", config, ranks=ranks)
        checks.within(f"{label}: loss against PEFT's", abs(first_loss(run_dir) / loss - 1), 1e-5)
        trained = os.path.join(folder, f"lora_out{ranks}{mesh}")
        trireme("export", run_dir, "--format", "peft", "--output", trained)
        after = load_file(os.path.join(trained, "adapter_model.safetensors"))
        errors = {}
        for key, gradient in expected.items():
            ours = (before[key].double() - after[key].double()) / LORA_RATE
            rounding = 2.0**-23 * before[key].abs().max().item() / LORA_RATE
            errors[key] = (ours - gradient.double()).abs().max().item() / (1e-5 * gradient.abs().max().item() + rounding + 1e-9)
        worst = max(errors, key=errors.get)
        checks.within(f"{label}: gradients of {len(expected)} tensors ({worst}), of the tolerance", errors[worst], 1.0)
    if quantization:  # the reference is the quantized model, path the plain one
        return
    merged = os.path.join(folder, "merged")
    trireme("export", path, "--adapter", adapter, "--merge", "--dtype", "f32", "--output", merged)
    ids = torch.arange(24)[None] * 5 % 97
    with torch.no_grad():
        logits = peft.eval()(ids).logits
        ours = AutoModelForCausalLM.from_pretrained(merged, attn_implementation="eager").eval()(ids).logits
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(plain or path, attn_implementation="eager"), out).eval()(ids).logits
    checks.within(f"{name}: merged, in Transformers", (ours - logits).abs().max().item() / logits.abs().max().item(), 1e-5)
    checks.within(f"{name}: written again, in PEFT", (theirs - logits).abs().max().item() / logits.abs().max().item(), 1e-6)


def check_text(checks, trireme, name, path, reference, experts):
    """Greedy tokens with their log-probabilities, beyond every window."""
    prompt = [(7 * i + 3) % 97 for i in range(40)]
    expected = greedy(reference.eval(), prompt, 8, eos_token_id=None)
    for ranks, mesh in ((1, ""), (2, "tensor: 2 expert: 2" if experts else "tensor: 2")):
        flags = ["--set", f"parallel {{ {mesh} }}"] if mesh else []
        output = trireme("generate", path, "--prompt-ids", comma(prompt), "--max-tokens", "8", "--ignore-eos", "--json", *flags, ranks=ranks)
        compare(checks, f"{name}, {ranks} ranks {mesh}", last_line(output), expected)
    reference.train()


def run(checks, probe, trireme, only, every):
    import reference as ref
    import torch
    from cases import BASE

    with tempfile.TemporaryDirectory(prefix="trireme_families_") as folder:
        corpus = os.path.join(folder, "corpus.bin")
        generator = torch.Generator().manual_seed(61)
        write_tokens(corpus, torch.randint(BASE["vocab_size"], (20 * LENGTH + 1,), generator=generator).tolist())
        batch = batch_of(probe, folder, corpus, BASE["vocab_size"])
        for position, (family, variants) in enumerate(FAMILIES.items()):
            for index, (variant, model) in enumerate(variants):
                name = f"{family}, {variant}"
                # One of each family; by turns one in today's dialect and one in the old one.
                if only not in name if only else not every and index != position % 2:
                    continue
                experts = family in MIXTURES
                own = os.path.join(folder, f"{family}{index}")
                path = os.path.join(own, "model")
                reference = build(family, model, 100 + index)
                reference.save_pretrained(path)
                direct = os.path.join(own, "direct")
                trireme("export", path, "--output", direct)
                checks.equal(f"{name}: tensors changed by export", same_bytes(read_tensors(direct), read_tensors(path)), [])
                check_config(checks, name, direct, path, but=WITHOUT_EFFECT)
                if index % 2 == 1:
                    if experts:  # all experts of a layer in one tensor
                        reference.save_pretrained(path, save_original_format=False)
                    edit_config(path, old_dialect)
                    old_file(path, family)
                if every or only or index == 0:
                    check_text(checks, trireme, name, path, reference, experts)
                check_training(checks, ref, trireme, own, name, path, reference, corpus, batch, EXPERT_MESHES if experts else ())
                if index < 2 and (every or only or family in ("gpt2", "phi3")):
                    check_lora(checks, trireme, own, name, path, reference, corpus, batch, "attention" if experts else "all-linear", dora=index == 1)
                if index < 2 and experts and (every or only or family == "mixtral"):
                    # All experts, or those of one kind and nothing else.
                    check_lora(checks, trireme, own, name, path, reference, corpus, batch, "attention" if index == 0 else None, dora=False, parameters=[EXPERT_PARAMETERS, ["experts.down_proj"]][index])
        if not only or only == "packed":
            check_packed(checks, trireme, folder, corpus, batch, build, check_lora)
            check_quantized_experts(checks, trireme, folder, corpus, batch, build, check_lora, EXPERT_PARAMETERS)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trireme", default="build/bin/trireme")
    parser.add_argument("--probe", default="build/bin/trireme_probe", help="the binary of tests/oracle/probe.cc")
    parser.add_argument("--only", default="", help="part of a family's and variant's name")
    parser.add_argument("--all", action="store_true", help="every variant, not one of each family")
    args = parser.parse_args()
    try:
        import safetensors  # noqa: F401
        import torch
        import transformers
    except ImportError as error:
        print(f"skipped: {error}; `launch/setup.sh --tests` installs torch, transformers and safetensors into .venv")
        return SKIPPED
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    transformers.utils.logging.disable_progress_bar()

    from checks import Checks
    from probe import Probe

    checks = Checks()
    run(checks, Probe(args.probe), Program(args.trireme), args.only, args.all)
    return checks.conclude()


if __name__ == "__main__":
    sys.exit(main())
