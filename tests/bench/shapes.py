"""The shapes that the benchmarks use, as in configs/recipes/bench_*.textproto."""

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
    experts: int = 0  # 0: a Llama; else a Qwen3-MoE, whose experts are `expert_width` wide
    per_token: int = 0
    expert_width: int = 0

    @property
    def tokens_per_step(self):
        return self.batch * self.length


SMOLLM2_135M = dict(layers=30, hidden=576, heads=9, kv_heads=3, intermediate=1536, vocab=49152, tied=True)
MIXTURE = dict(layers=6, hidden=256, heads=8, kv_heads=4, intermediate=512, vocab=4096, tied=False, batch=4, length=256)

SHAPES = {
    "A": Shape(layers=6, hidden=256, heads=8, kv_heads=4, intermediate=768, vocab=4096, tied=False, batch=8, length=256),
    "B512": Shape(**SMOLLM2_135M, batch=1, length=512),
    "B2048": Shape(**SMOLLM2_135M, batch=1, length=2048),
    "moe32": Shape(**MIXTURE, experts=32, per_token=4, expert_width=128),
    "moe64": Shape(**MIXTURE, experts=64, per_token=8, expert_width=64),
}

# The update rule of every contender.
LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY, MAX_NORM = 3e-4, (0.9, 0.95), 1e-8, 0.1, 1.0
