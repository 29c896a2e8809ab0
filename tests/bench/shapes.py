"""The model shapes that the benchmarks use, for Transformers and as a Trireme recipe."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    tied: bool
    batch: int  # sequences per step, over all ranks
    length: int  # tokens per sequence

    @property
    def tokens_per_step(self):
        return self.batch * self.length


SMOLLM2_135M = dict(layers=30, hidden=576, heads=9, kv_heads=3, intermediate=1536, vocab=49152, tied=True)

SHAPES = {
    "A": Shape(layers=6, hidden=256, heads=8, kv_heads=4, intermediate=768, vocab=4096, tied=False, batch=8, length=256),
    "B512": Shape(**SMOLLM2_135M, batch=1, length=512),
    "B2048": Shape(**SMOLLM2_135M, batch=1, length=2048),
}

# The update rule of every contender.
LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY, MAX_NORM = 3e-4, (0.9, 0.95), 1e-8, 0.1, 1.0


def recipe(shape, shard, micro_batch):
    """The textproto of a run of `shape`; micro_batch: sequences that one rank computes at once."""
    return f"""# proto-file: configs/run_config.proto
# proto-message: trireme.RunConfig
model {{
  family: "llama"
  num_hidden_layers: {shape.layers}
  hidden_size: {shape.hidden}
  num_attention_heads: {shape.heads}
  num_key_value_heads: {shape.kv_heads}
  intermediate_size: {shape.intermediate}
  vocab_size: {shape.vocab}
  tie_word_embeddings: {"true" if shape.tied else "false"}
}}
data {{ sequence_length: {shape.length} }}
global_batch_size: {shape.batch}
micro_batch_size: {micro_batch}
parallel {{ shard: {shard} }}
optimizer {{
  adamw {{ learning_rate: {LEARNING_RATE} beta1: {BETAS[0]} beta2: {BETAS[1]} eps: {EPS} weight_decay: {WEIGHT_DECAY} }}
}}
lr_schedule {{ clip_grad_norm: {MAX_NORM} }}
train_for {{ steps: 1000 }}
launch {{ device: CPU }}
run_dir: "unused"
"""
