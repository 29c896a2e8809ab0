"""Malformed safetensors and GGUF files. Used by hostile_oracle.py.

Each generator yields (category, bytes), the same at every run.
"""

import json
import random
import struct

RANDOM_FILES = 600


def u32(value):
    return struct.pack("<I", value)


def u64(value):
    return struct.pack("<Q", value)


def mutated(generator, base, number):
    """Damage without regard to the format: bits, ends, parts gone, repeated or exchanged, sizes that cannot be."""
    for _ in range(number):
        data = bytearray(generator.choice(base))
        for _ in range(generator.choice((1, 1, 1, 2, 3))):
            at = generator.randrange(max(1, len(data)))
            length = generator.randint(1, 24)
            kind = generator.choice(("bit", "byte", "cut", "gone", "twice", "size", "digit"))
            if kind == "bit" and data:
                data[at] ^= 1 << generator.randrange(8)
            elif kind == "byte" and data:
                data[at] = generator.randrange(256)
            elif kind == "cut":
                del data[at:]
            elif kind == "gone":
                del data[at : at + length]
            elif kind == "twice":
                data[at:at] = data[at : at + length]
            elif kind == "size":
                data[at : at + 8] = u64(generator.choice((0, 1, 2, 31, 33, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)))
            elif kind == "digit":
                digits = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
                if digits:
                    data[generator.choice(digits)] = generator.randrange(48, 58)
        yield "damaged at random", bytes(data)


# safetensors


def entry(dtype="F32", shape=(2,), begin=0, end=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def file_of(header, data=b"\1" * 8, length=None):
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return u64(len(text) if length is None else length) + text + data


GOOD_SAFETENSORS = [
    file_of({"a": entry()}),
    file_of({"__metadata__": {"format": "pt"}, "b": entry("I64", (1, 0, 4), 0, 0), "a": entry("BF16", (2, 2))}),
    file_of({"x.weight": entry("U8", (3,), 0, 3), "x.bias": entry("F8_E4M3", (), 3, 4), "y": entry("F16", (2,), 4, 8)}),
    file_of('{"é\\u0041": ' + json.dumps(entry()) + "}    "),
]


def safetensors_files():
    for file in GOOD_SAFETENSORS:
        yield "good", file
    a, b = entry("F32", (1,), 0, 4), entry("F32", (1,), 4, 8)
    for begin, end in ((0, 4), (2, 6), (3, 7)):
        yield "overlap", file_of({"a": a, "b": entry("F32", (1,), begin, end)})
    yield "overlap", file_of({"a": entry(), "b": entry()})
    yield "hole", file_of({"a": a, "b": entry("F32", (1,), 5, 9)}, b"\1" * 9)
    yield "hole", file_of({"a": entry("F32", (2,), 8, 16)}, b"\1" * 16)
    yield "hole", file_of({"a": entry("F32", (0,), 4, 4), "b": entry()})
    yield "data after the end", file_of({"a": a, "b": b}, b"\1" * 9)
    yield "data after the end", file_of({}, b"\1")
    for size in (0, 1, 7):
        yield "truncated", file_of({"a": a, "b": b}, b"\1" * size)
    for file in GOOD_SAFETENSORS:
        for size in range(0, len(file), 7):
            yield "truncated", file[:size]
    for length in (0, 1, 2, 10**8 - 8, 10**8, 10**8 + 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1):
        yield "header length", file_of({"a": entry()}, length=length)
    yield "huge header", file_of("{" + " " * (10**8 - 1) + "}", b"")
    yield "wide header", file_of({f"t{i}": entry("U8", (0,), 0, 0) for i in range(20000)}, b"")
    for shape, end in (((2**62, 4), 0), ((2**32, 2**32), 0), ((2**63,), 0), ((2**64 - 1,), 8), ((2**61, 8, 0), 0), ((0, 2**63, 4), 0),
                       ((0, 2**64 - 1, 2**64 - 1), 0), ((2**62 - 1, 0), 0), ((2**62 + 1, 0), 0), ((2**62 + 2,), 8)):  # fmt: skip
        yield "overflow", file_of({"a": entry("F32", shape, 0, end)}, b"\1" * end)
    for begin, end in ((8, 0), (2**64 - 8, 0), (0, 2**64 - 1), (2**63, 2**63 + 8), (0, 10**30)):
        yield "offsets", file_of({"a": entry("F32", (2,), begin, end)})
    for number in ("-1", "-0", "8.0", "8e0", "0x8", "08", "+8", '"8"', "null", "true", "[8]", "1e400", "NaN", "9" * 400):
        yield "numbers", file_of(json.dumps({"a": entry()}).replace("[0, 8]", f"[0, {number}]"))
        yield "numbers", file_of(json.dumps({"a": entry()}).replace('"shape": [2]', f'"shape": [{number}]'))
    yield "numbers", file_of({"a": {**entry(), "shape": 2}})
    yield "numbers", file_of({"a": {**entry(), "data_offsets": [0, 4, 8]}})
    yield "numbers", file_of({"a": {**entry(), "data_offsets": [8]}})
    for dtype, size in (("F4", 1), ("F6_E2M3", 3), ("F6_E3M2", 3), ("F8_E8M0", 2), ("F8_E5M2", 2), ("F8_E4M3FNUZ", 2), ("F8_E5M2FNUZ", 2), ("C64", 16),
                        ("BOOL", 2), ("U16", 4), ("U32", 8), ("U64", 16), ("F64", 16), ("f32", 8), ("F32 ", 8), ("", 8), ("I4", 1), ("F128", 32), ("C128", 32)):  # fmt: skip
        yield "dtypes", file_of({"a": entry(dtype, (2,), 0, size)}, b"\1" * size)
    one = json.dumps(entry())
    yield "duplicate keys", file_of(f'{{"a": {one}, "a": {one}}}')
    yield "duplicate keys", file_of(f'{{"a": {one}, "\\u0061": {one}}}')
    yield "duplicate keys", file_of(f'{{"a": {one[:-1]}, "dtype": "F32"}}}}')
    yield "duplicate keys", file_of(f'{{"__metadata__": {{"k": "1", "k": "2"}}, "a": {one}}}')
    yield "duplicate keys", file_of(f'{{"__metadata__": {{}}, "__metadata__": {{}}, "a": {one}}}')
    for metadata in ("null", "{}", "[]", "1", '{"k": 1}', '{"k": null}', '{"k": {}}', '{"k": "\\u0000"}', '"x"', '{"": ""}'):
        yield "metadata", file_of(f'{{"__metadata__": {metadata}, "a": {one}}}')
    for depth in (1, 2, 3, 4, 5, 120, 130, 10000):
        yield "deep nesting", file_of('{"a": ' + "[" * depth + "]" * depth + "}")
        yield "deep nesting", file_of('{"a": ' + one[:-1] + ', "more": ' + '{"x":' * depth + "1" + "}" * depth + "}}")
    yield "fields", file_of({"a": {**entry(), "more": 1}})
    yield "fields", file_of('{"a": ["F32", [2], [0, 8]]}')
    for name in entry():
        yield "fields", file_of({"a": {key: value for key, value in entry().items() if key != name}})
    for value in (None, 1, "x", [], {}):
        yield "fields", file_of({"a": value})
    for text in (" " + "{}", "[]", "null", '"{}"', "{}{}", "{},", "{}\0", "\0", "{}\n\t ", "{}x", "{'a': 1}", "{/* */}", "\ufeff{}", '{"a"}', "{,}", "{"):
        yield "not an object", file_of(text, b"")
    for name in ("", "../../etc/passwd", "/etc/passwd", "a/b", "a\\u0000b", "\\ud800", "\\ud83d\\ude00", "\\udc00\\ud800", "\\x", "\\u12", "a\tb", "x" * 70000):
        yield "names", file_of(f'{{"{name}": {one}}}')
    for bad in (b"\xff", b"\xc3", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf0\x9f\x98\x80", b"\x80", b"\xef\xbb\xbf"):
        yield "not UTF-8", file_of(b'{"' + bad + b'": ' + one.encode() + b"}")
        yield "not UTF-8", file_of(bad + b'{"a": ' + one.encode() + b"}")
    yield from mutated(random.Random(1), GOOD_SAFETENSORS, RANDOM_FILES)


# GGUF


def text(value, length=None):
    value = value if isinstance(value, bytes) else value.encode()
    return u64(len(value) if length is None else length) + value


def key(name, kind, value):
    return text(name) + u32(kind) + value


def tensor(name, shape, kind=0, offset=0, dimensions=None):
    return text(name) + u32(len(shape) if dimensions is None else dimensions) + b"".join(map(u64, shape)) + u32(kind) + u64(offset)


def gguf_of(keys=(), tensors=(), data=b"", version=3, num_keys=None, num_tensors=None, alignment=32):
    head = b"GGUF" + u32(version) + u64(len(tensors) if num_tensors is None else num_tensors) + u64(len(keys) if num_keys is None else num_keys)
    head += b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % alignment) + data if tensors else head


ARCHITECTURE = key("general.architecture", 8, text("llama"))
KINDS = [key("k0", 0, b"\1"), key("k3", 3, b"\1\0"), key("k6", 6, b"\0\0\0\0"), key("k7", 7, b"\1"), key("k10", 10, u64(1)), key("k12", 12, u64(0)),
         key("a0", 9, u32(0) + u64(3) + b"abc"), key("a8", 9, u32(8) + u64(2) + text("") + text("é")), key("a7", 9, u32(7) + u64(2) + b"\0\1")]  # fmt: skip
TWO = [tensor("a", (8,)), tensor("b", (3, 2), 0, 32)]
GOOD_GGUF = [
    gguf_of([ARCHITECTURE]),
    gguf_of([ARCHITECTURE] + KINDS, TWO, b"\2" * 56),
    gguf_of([ARCHITECTURE], TWO, b"\2" * 64, version=2),
    gguf_of([key("general.alignment", 4, u32(64))], [tensor("a", (8,), 1), tensor("q", (32, 2), 8, 64)], b"\2" * 132, alignment=64),
]


def gguf_files():
    for file in GOOD_GGUF:
        yield "good", file
        for size in range(0, len(file), 5):
            yield "truncated", file[:size]
        yield "data after the end", file + b"\0" * 200
    for version in (0, 1, 2, 4, 2**24 * 3, 2**32 - 1):
        yield "version", gguf_of([ARCHITECTURE], version=version)
    big_endian = struct.pack(">IQQQ", 3, 0, 1, 1) + b"k" + struct.pack(">I", 0) + b"\1"
    yield "version", b"GGUF" + big_endian
    yield "magic", b"GGML" + GOOD_GGUF[0][4:]
    yield "magic", b"ggml" + b"\0" * 40
    for count in (1, 2, 2**16, 2**31, 2**32, 2**62, 2**63, 2**64 - 1):
        yield "counts", gguf_of([ARCHITECTURE], num_keys=count)
        yield "counts", gguf_of([ARCHITECTURE], TWO, b"\2" * 64, num_tensors=min(count + 1, 2**64 - 1))
    for length in (2**16, 2**31, 2**32, 2**62, 2**63, 2**64 - 8, 2**64 - 1):
        yield "string length", gguf_of([text("k", length) + u32(0) + b"\1"])
        yield "string length", gguf_of([key("k", 8, text("v", length))])
        yield "string length", gguf_of([], [text("a", length) + u32(1) + u64(8) + u32(0) + u64(0)], b"\2" * 32)
        yield "array length", gguf_of([key("k", 9, u32(0) + u64(length) + b"abc")])
        yield "array length", gguf_of([key("k", 9, u32(8) + u64(length) + text("abc"))])
        yield "array length", gguf_of([key("k", 9, u32(12) + u64(length) + u64(1))])
    for kind in (13, 14, 255, 2**31, 2**32 - 1):
        yield "kinds", gguf_of([key("k", kind, b"\0" * 16)])
        yield "kinds", gguf_of([key("k", 9, u32(kind) + u64(1) + b"\0" * 16)])
        yield "kinds", gguf_of([key("k", 9, u32(kind) + u64(0))])
    yield "arrays of arrays", gguf_of([key("k", 9, u32(9) + u64(1) + u32(0) + u64(1) + b"\1")])
    for depth in (10, 1000, 100000):
        yield "arrays of arrays", gguf_of([key("k", 9, (u32(9) + u64(1)) * depth + u32(0) + u64(0))])
    yield "bools", gguf_of([key("k", 7, b"\2")])
    yield "bools", gguf_of([key("k", 9, u32(7) + u64(1) + b"\xff")])
    yield "duplicate keys", gguf_of([ARCHITECTURE, ARCHITECTURE])
    yield "duplicate keys", gguf_of([key("GGUF.version", 4, u32(3))])
    yield "duplicate tensors", gguf_of([], [tensor("a", (8,)), tensor("a", (8,), 0, 32)], b"\2" * 64)
    for name in ("", "x" * 63, "x" * 64, "x" * 65, "x" * 70000, "../a", "a\0b", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", "é"):
        yield "names", gguf_of([key(name, 0, b"\1")])
        yield "names", gguf_of([], [tensor(name, (8,))], b"\2" * 32)
        yield "values", gguf_of([key("k", 8, text(name))])
    for kind, value in ((4, u32(0)), (4, u32(1)), (4, u32(8)), (4, u32(24)), (4, u32(2**20)), (4, u32(2**31)), (5, u32(32)), (10, u64(32)), (8, text("32"))):
        yield "alignment", gguf_of([key("general.alignment", kind, value)], [tensor("a", (8,))], b"\2" * 32)
    yield "alignment", gguf_of([key("general.alignment", 4, u32(2**21))])
    yield "duplicate keys", gguf_of([key("GGUF.other", 4, u32(3))])
    yield "overlap", gguf_of([], [tensor("a", (8,)), tensor("b", (8,))], b"\2" * 64)
    yield "overlap", gguf_of([], [tensor("a", (16,)), tensor("b", (8,), 0, 32)], b"\2" * 64)
    yield "overlap", gguf_of([], [tensor("a", (8,), 0, 32), tensor("b", (8,))], b"\2" * 64)
    yield "hole", gguf_of([], [tensor("a", (8,)), tensor("b", (8,), 0, 64)], b"\2" * 96)
    yield "hole", gguf_of([], [tensor("a", (8,), 0, 32)], b"\2" * 64)
    yield "unaligned", gguf_of([], [tensor("a", (2,)), tensor("b", (8,), 0, 8)], b"\2" * 64)
    for offset in (2**31, 2**62, 2**63, 2**64 - 32, 2**64 - 1):
        yield "offsets past the end", gguf_of([], [tensor("a", (8,), 0, offset)], b"\2" * 32)
    for shape in ((0,), (8, 0), (2**31,), (2**32, 2**32), (2**62, 4), (2**63, 2), (2**64 - 1,), (2**61, 8, 8), (1, 1, 1, 8), (1, 1, 1, 1, 8), ()):
        yield "shapes", gguf_of([], [tensor("a", shape)], b"\2" * 32)
    for dimensions in (0, 2, 5, 2**31, 2**32 - 1):
        yield "shapes", gguf_of([], [tensor("a", (8,), 0, 0, dimensions)], b"\2" * 32)
    for kind in range(45):
        for columns in (31, 32, 256):
            yield "types", gguf_of([], [tensor("a", (columns,), kind)], b"\2" * 2048)
    for kind in (255, 2**31, 2**32 - 1):
        yield "types", gguf_of([], [tensor("a", (32,), kind)], b"\2" * 2048)
    yield from mutated(random.Random(2), GOOD_GGUF, RANDOM_FILES)
