"""Every model family against Transformers: tiny random models imported as they are, on one rank and on tensor 2 x pipeline 2.

Losses, every gradient tensor, exports byte for byte, config.json as Transformers reads it.
Runs alone: tests/oracle/families_oracle.py --trireme build/bin/trireme --probe build/bin/trireme_probe [--only NAME]
"""

import argparse
import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

from hf_oracle import check_config, check_training  # noqa: E402
from hf_tools import LENGTH, Program, batch_of, edit_config, read_tensors, same_bytes, write_tokens  # noqa: E402

SKIPPED = 77

LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
LINEAR = dict(rope_type="linear", rope_theta=10000.0, factor=4.0)
YARN = dict(rope_type="yarn", rope_theta=20000.0, factor=4.0, original_max_position_embeddings=32)
YARN_FULL = dict(YARN, beta_fast=16.0, beta_slow=2.0, attention_factor=1.2)
QWEN_WINDOW = dict(use_sliding_window=True, sliding_window=20, max_window_layers=1)
# Without a padding id: its row of the embedding would get no gradient.
GEMMA = dict(head_dim=24, query_pre_attn_scalar=20, sliding_window=20, pad_token_id=None)


# Where layer_types and no_rope_layers say it all.
WITHOUT_EFFECT = ("no_rope_layer_interval", "_sliding_window_pattern", "max_window_layers")


def gemma3_rope(**full):
    return {"full_attention": {"rope_type": "default", "rope_theta": 50000.0, **full}, "sliding_attention": {"rope_type": "default", "rope_theta": 9000.0}}


# LENGTH is beyond every window and original_max_position_embeddings here.
FAMILIES = {
    "llama": [
        ("linear rope", dict(rope_parameters=LINEAR)),
        ("yarn rope, tied", dict(rope_parameters=YARN, tie_word_embeddings=True)),
        ("yarn rope, all its numbers", dict(rope_parameters=YARN_FULL)),
        ("biases", dict(attention_bias=True)),
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
    ],
    "gpt_neox": [
        ("parallel, a quarter turns", dict()),
        ("sequential, old dialect", dict(use_parallel_residual=False, rope_parameters=dict(rope_type="default", rope_theta=9000.0, partial_rotary_factor=0.5))),
        ("all turns, no biases, tied", dict(attention_bias=False, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=1.0))),
        ("linear rope, tanh gelu, old dialect", dict(hidden_act="gelu_new", layer_norm_eps=1e-3, rope_parameters=dict(LINEAR, partial_rotary_factor=0.375))),
        ("yarn rope, three layers", dict(num_hidden_layers=3, rope_parameters=dict(YARN, partial_rotary_factor=0.5))),
    ],
}  # fmt: skip


GPT2_SIZES = {"num_hidden_layers": "n_layer", "hidden_size": "n_embd", "num_attention_heads": "n_head", "intermediate_size": "n_inner", "max_position_embeddings": "n_positions"}
GPT2_DROPOUT = ("attn_pdrop", "embd_pdrop", "resid_pdrop")


def sizes_of(family, base):
    """The sizes under the family's names, without dropout."""
    if family == "gpt2":
        return {**{GPT2_SIZES.get(key, key): value for key, value in base.items() if key != "num_key_value_heads"}, **{key: 0.0 for key in GPT2_DROPOUT}}
    if family == "gpt_neox":
        return {key: value for key, value in base.items() if key != "num_key_value_heads"}
    return base


def old_file(path, family):
    """Names and buffers as published files of the family have them."""
    import torch
    from safetensors.torch import load_file, save_file

    if not family.startswith("gpt"):
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
    rope = config.pop("rope_parameters")
    if config["model_type"] == "gpt_neox":
        config["rotary_pct"], config["rotary_emb_base"] = rope.pop("partial_rotary_factor"), rope.pop("rope_theta")
        config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
        return
    local = rope.pop("sliding_attention", None)
    if local:
        rope = rope["full_attention"]
        config["rope_local_base_freq"] = local["rope_theta"]
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
    return reference


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
                own = os.path.join(folder, f"{family}{index}")
                path = os.path.join(own, "model")
                reference = build(family, model, 100 + index)
                reference.save_pretrained(path)
                direct = os.path.join(own, "direct")
                trireme("export", path, "--output", direct)
                checks.equal(f"{name}: tensors changed by export", same_bytes(read_tensors(direct), read_tensors(path)), [])
                check_config(checks, name, direct, path, but=WITHOUT_EFFECT)
                if index % 2 == 1:
                    edit_config(path, old_dialect)
                    old_file(path, family)
                check_training(checks, ref, trireme, own, name, path, reference, corpus, batch)


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
