"""The models and recipes of the oracle checks."""

BASE = dict(num_hidden_layers=2, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=160, vocab_size=500)

LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)

MODELS = {
    "grouped queries, untied": dict(BASE),
    "no groups, tied": dict(BASE, num_key_value_heads=4, tie_word_embeddings=True),
    "head_dim 32 of hidden 72, one kv head": dict(BASE, hidden_size=72, head_dim=32, num_key_value_heads=1, num_hidden_layers=3),
    "llama3 rope, theta 500000, tied": dict(BASE, head_dim=32, rope_theta=500000.0, rope_scaling=LLAMA3, tie_word_embeddings=True),
}

SGD = "sgd { learning_rate: 0.1 }"
LENGTH = 128  # tokens per sequence


def text(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)


def recipe(model, optimizer=SGD, sequences=4, micro_batch=2, steps=10, run_dir="unused", more=""):
    """more: textproto to append."""
    lines = [f"  {key}: {text(value)}" for key, value in model.items() if key != "rope_scaling"]
    if "rope_scaling" in model:
        scaling = dict(model["rope_scaling"])
        method = scaling.pop("rope_type").upper()
        scaling["original_max_position_embeddings"] = int(scaling["original_max_position_embeddings"])
        lines.append(f"  rope_scaling {{ rope_type: {method} " + " ".join(f"{k}: {v}" for k, v in scaling.items()) + " }")
    clip = "" if "clip_grad_norm" in more else "lr_schedule { clip_grad_norm: 0 }"
    return "\n".join(
        ["model {"]
        + lines
        + [
            "}",
            f"data {{ sequence_length: {LENGTH} }}",
            f"global_batch_size: {sequences}",
            f"micro_batch_size: {micro_batch}",
            f"optimizer {{ {optimizer} }}",
            f"train_for {{ steps: {steps} }}",
            "launch { device: CPU }",
            f'run_dir: "{run_dir}"',
            clip,
            more,
            "",
        ]
    )
