"""Block types against the package gguf. Used by gguf_oracle.py."""

import json

import gguf
import numpy as np

READ_ONLY = ["Q4_1", "Q4_K", "Q6_K", "MXFP4"]


def same_bits(a, b):
    """Equal bit for bit, any NaN being equal to any other."""
    return a.shape == b.shape and bool(np.all((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))))


def check_types(checks, tool):
    ours = json.loads(tool("types"))
    theirs = {t.name: [int(t), *gguf.GGML_QUANT_SIZES[t]] for t in gguf.GGMLQuantizationType if t in gguf.GGML_QUANT_SIZES}
    checks.equal("types that differ from gguf's", [n for n, sizes in ours.items() if theirs.get(n) != sizes], [])
    checks.equal("types not known to us", sorted(set(theirs) - set(ours)), ["NVFP4", "Q1_0", "Q8_1"])


def hard_values(generator):
    """Blocks that meet every branch of the encoders, and many random ones."""
    blocks = [np.zeros(32), np.full(32, -0.0), np.arange(-16, 16) / 2, np.arange(32) * 1.0, -np.arange(32) * 1.0]
    blocks += [np.linspace(-127, 127, 32) + 0.5, np.array([1.0, -1.0] * 16), np.array([-1.0, 1.0] * 16)]
    blocks += [generator.standard_normal(32) * 10.0**e for e in range(-9, 4) for _ in range(50)]
    # Products that land next to a rounding boundary.
    blocks += [np.round(generator.standard_normal(32) * 8) / 2 + s for s in (0, 1e-7, -1e-7) for _ in range(200)]
    blocks += [np.append(generator.integers(-254, 255, 31) / 2, 127) for _ in range(500)]
    blocks += [np.append(generator.integers(-16, 17, 31) / 2, -8) for _ in range(500)]
    return np.concatenate([b.astype(np.float32) for b in blocks])


def check_blocks(checks, tool):
    generator = np.random.default_rng(1)
    values = hard_values(generator)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = halves[np.isfinite(halves)]
    ties = ((finite[:-1].astype(np.float64) + finite[1:]) / 2).astype(np.float32)
    tiny = (generator.standard_normal(5000) * 2.0 ** generator.integers(-40, -10, 5000)).astype(np.float32)
    numbers = np.concatenate([finite, ties[np.abs(ties) < 65520], np.nextafter(ties, 0), tiny])
    numbers = np.append(numbers, np.zeros(-len(numbers) % 32, np.float32))
    wide = generator.integers(0, 1 << 32, 100000, dtype=np.uint32).view(np.float32)
    inputs = {"F16": numbers, "BF16": np.concatenate([wide, numbers]), "F32": wide, "Q8_0": values, "Q4_0": values}
    for name, data in inputs.items():
        kind = gguf.GGMLQuantizationType[name]
        expected = np.frombuffer(np.ascontiguousarray(gguf.quantize(data, kind)).tobytes(), np.uint8)
        wrong = np.count_nonzero(tool.encode(name, data) != expected)
        checks.equal(f"blocks: {name}: bytes of {len(data)} values that differ from gguf.quants", wrong, 0)
    for name in [*inputs, *READ_ONLY]:
        kind = gguf.GGMLQuantizationType[name]
        size, num_bytes = gguf.GGML_QUANT_SIZES[kind]
        raw = generator.integers(0, 256, (64, 4096 // size * num_bytes), dtype=np.uint8)
        writer = gguf.GGUFWriter(tool.path("blocks.gguf"), "llama")
        if name in ("F32", "F16"):
            writer.add_tensor("x", raw.view({"F32": np.float32, "F16": np.float16}[name]))
        else:
            writer.add_tensor("x", raw, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with np.errstate(all="ignore"):
            expected = gguf.dequantize(np.frombuffer(raw.tobytes(), np.uint8), kind)
        checks.equal(f"blocks: {name}: random blocks decoded as by gguf.quants", same_bits(tool.decode(tool.path("blocks.gguf")), expected.ravel()), True)
