"""Every family's GGUF file in llama.cpp: exported by `trireme` from tiny random models of Transformers. Used by gguf_oracle.py."""

import contextlib
import os

import gguf
import torch
from hf_tools import load, read_tensors, same_bytes

ARCHITECTURES = {"gemma3_text": "gemma3", "mistral": "llama"}
COMMON = dict(
    vocab_size=640, hidden_size=96, intermediate_size=160, num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5,
    bos_token_id=0, eos_token_id=0, pad_token_id=None,
)  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 2000.0, "factor": 4.0}
# Windows are shorter than the text, layers reach beyond a period.
MODELS = [
    ("mistral", dict(num_hidden_layers=2, head_dim=32, sliding_window=None)),
    ("llama", dict(num_hidden_layers=2, head_dim=16, rope_parameters=LINEAR)),
    ("qwen2", dict(num_hidden_layers=2)),
    ("qwen2", dict(num_hidden_layers=2, tie_word_embeddings=True, rope_parameters=LINEAR)),
    ("qwen3", dict(num_hidden_layers=2, head_dim=32, tie_word_embeddings=True)),
    ("smollm3", dict(num_hidden_layers=5, tie_word_embeddings=True)),
    ("smollm3", dict(num_hidden_layers=4, tie_word_embeddings=False, num_key_value_heads=6)),
    ("gemma2", dict(num_hidden_layers=3, head_dim=32, query_pre_attn_scalar=32, sliding_window=20, attn_logit_softcapping=4.0, final_logit_softcapping=6.0)),
    ("gemma3_text", dict(num_hidden_layers=7, head_dim=32, query_pre_attn_scalar=32, sliding_window=20, rope_parameters={
        "full_attention": {"rope_type": "linear", "rope_theta": 50000.0, "factor": 4.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 9000.0}})),
]  # fmt: skip


# Gates so large that GELU's table is hardly used. Small ones differ by steps of the table.
BEYOND_TABLE = 1024.0


def build(family, sizes, gates):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(17)
    config = AutoConfig.for_model(family, **{**COMMON, **sizes})
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            one = 1.0 if parameter.dim() == 1 and "norm" in name and "gemma" not in family else 0.0
            # Coarse enough that 1 + w, which Gemma's norms are stored as, is exact.
            values = torch.randn_like(parameter) * 0.1 + one
            parameter.copy_((values * 2**20).round() / 2**20 * (gates if "gate_proj" in name else 1.0))
    return model


@contextlib.contextmanager
def half_precision_gelu(model):
    """llama.cpp looks GELU up in a table of 16-bit numbers, between -10 and 10."""
    hooks = []
    for layer in model.model.layers:
        if "gelu" in getattr(model.config, "hidden_activation", ""):
            hooks.append(layer.mlp.act_fn.register_forward_pre_hook(lambda _, x: (torch.where(x[0].abs() < 10, x[0].half().float(), x[0]),)))
            hooks.append(layer.mlp.act_fn.register_forward_hook(lambda _, x, y: torch.where(x[0].abs() < 10, y.half().float(), y)))
    yield
    for hook in hooks:
        hook.remove()


def rms(a, b):
    return float(((a - b) ** 2).mean() ** 0.5)


def check(checks, trireme, folder, train_tokenizer, text, llama_cpp):
    cases = [(family, sizes, 1.0) for family, sizes in MODELS] + [(family, sizes, BEYOND_TABLE) for family, sizes in MODELS if "gemma" in family]
    for number, (family, sizes, gates) in enumerate(cases):
        label = f"{family} {number}"
        path = lambda name: os.path.join(folder, f"family{number}{name}")  # noqa: B023, E731
        model = build(family, sizes, gates)
        model.save_pretrained(path(""))
        trained = train_tokenizer(os.path.join(path(""), "tokenizer.json"), 636)
        for kind in ("F32", "BF16", "Q8_0"):
            trireme("export", path(""), "--format", "gguf", "--dtype", kind, "--output", path(f"-{kind}.gguf"))
        fields = gguf.GGUFReader(path("-F32.gguf")).fields
        checks.equal(f"{label}: architecture", fields["general.architecture"].contents(), ARCHITECTURES.get(family, family))
        trireme("export", path("-F32.gguf"), "--output", path("-back"))
        checks.equal(f"{label}: tensors changed by a GGUF file in between", same_bytes(read_tensors(path("-back")), read_tensors(path(""))), [])
        back, complaints = load(path("-back"))
        checks.equal(f"{label}: Transformers' complaints about the way back", complaints, [])
        ids = trained.encode(text).ids[:100]
        with torch.no_grad():
            worst = (back(torch.tensor([ids])).logits - model(torch.tensor([ids])).logits).abs().max().item()
        checks.within(f"{label}: logits after the way back", worst, 0)
        if not llama_cpp:
            continue
        for kind in ("F32", "BF16", "Q8_0") if gates == 1.0 else ("F32",):
            trireme("export", path(f"-{kind}.gguf"), "--dtype", "f32", "--output", path(f"-{kind}"))
            stored, _ = load(path(f"-{kind}"))
            with half_precision_gelu(stored):
                difference, rounding = llama_cpp.difference_and_rounding(path(f"-{kind}.gguf"), stored, kind, trained, ids)
            # As in check_models of gguf_oracle.py.
            bound = 4 * 2**-20 if kind == "F32" else 2 * rounding
            if kind == "F32" and "gemma" in family and gates == 1.0:
                exact = llama_cpp.log_probabilities(stored, ids)
                with half_precision_gelu(stored):
                    bound = rms(llama_cpp.log_probabilities(stored, ids), exact)
            checks.within(f"{label}: {kind}: log-probabilities of llama.cpp against Transformers", difference, bound)
