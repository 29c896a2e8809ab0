"""Compares Trireme's tokenizer with real vocabularies, which the caller has fetched (oracles.md names the packages).

--json FILE...     tokenizer.json files, against `tokenizers`
--model FILE...    SentencePiece models, against `sentencepiece`
--tekken FILE...   Mistral's tekken.json as the tokenizer.json that its Hugging Face directories hold, against `tokenizers`
--trained          SentencePiece models trained here, with every setting that is supported, against `sentencepiece`
--vectors FOLDER   llama.cpp's `models` folder: its vocabulary-only GGUFs as tokenizer.json, against the ids beside them
--text FILE...     what to encode beside the hard cases of tokenizer_oracle.py
"""

import argparse
import base64
import json
import os
import sys
import tempfile

from tokenizer_oracle import GPT2, LLAMA3, NASTY, QWEN2, invalid_texts, random_texts, run_encoder

# llama.cpp's name of the splitting rules to those rules.
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = [r"\p{N}", GPT2]
SPLIT_BY = {
    "gpt-2": [GPT2], "mpt": [GPT2], "llama-bpe": [LLAMA3], "qwen2": [QWEN2], "starcoder": DIGITS, "refact": DIGITS, "command-r": DIGITS,
    "qwen35": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ],
    "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}"],
}  # fmt: skip


def texts_of(args):
    texts = [t.encode() for t in NASTY] + [t.encode() for t in random_texts(3000, 5)] + invalid_texts(6)
    for name in args.text:
        with open(name, "rb") as file:
            texts.append(file.read())
    return texts


def compare(name, expected, ours, texts):
    wrong = [i for i in range(len(texts)) if expected[i] != ours[i]]
    for i in wrong[:3]:
        print(f"  {texts[i][:60]!r}: ids {ours[i][:12]}, expected {expected[i][:12]}")
    total = sum(map(len, texts)) / 1e6
    print(f"{name}: {len(texts) - len(wrong)} of {len(texts)} texts, {total:.1f} MB")
    return len(wrong)


def check_json(binary, path, texts):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    expected = [tokenizer.encode(t.decode(errors="replace"), add_special_tokens=False).ids for t in texts]
    failures = compare(path, expected, run_encoder(binary, path, texts), texts)
    decoded = [t.decode(errors="replace") for t in run_encoder(binary, path, texts, decode=True)]
    return failures + sum(a != tokenizer.decode(b, skip_special_tokens=False) for a, b in zip(decoded, expected))


def check_model(binary, path, texts):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=path)
    expected = [processor.encode(t.decode(errors="replace")) for t in texts]
    ours = run_encoder(binary, path, texts)
    failures = compare(path, expected, ours, texts)
    decoded = [t.decode(errors="replace") for t in run_encoder(binary, path, texts, decode=True)]
    wrong = [a for a, b in zip(decoded, expected) if a != processor.decode(b)]
    for text in wrong[:3]:
        print(f"  decoded otherwise: {text[:60]!r}")
    return failures + len(wrong)


def check_trained(binary, texts):
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    failures = 0
    variants = {
        "bytes": dict(byte_fallback=True, remove_extra_whitespaces=False),
        "unknown": dict(byte_fallback=False, remove_extra_whitespaces=True),
        "no prefix, digits apart": dict(byte_fallback=True, add_dummy_prefix=False, split_digits=True),
        "user defined, as Gemma": dict(
            byte_fallback=True, add_dummy_prefix=False, remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n", "\n\n", "\u2581\u2581", "\u2581\u2581\u2581", "the", "<b>", "é"],
        ),
        "whole sentences": dict(byte_fallback=True, split_by_whitespace=False, remove_extra_whitespaces=False, max_sentencepiece_length=40),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        text = os.path.join(folder, "text.txt")
        with open(__file__) as source, open(text, "w") as out:
            out.write(source.read() + "\n".join(t for t in NASTY if "\0" not in t))
        for name, options in variants.items():
            prefix = os.path.join(folder, name)
            sentencepiece.SentencePieceTrainer.train(
                input=text, model_prefix=prefix, model_type="bpe", vocab_size=900, normalization_rule_name="identity", hard_vocab_limit=False, minloglevel=2, **options
            )
            failures += check_model(binary, prefix + ".model", texts)
            model = sentencepiece_model_pb2.ModelProto()
            with open(prefix + ".model", "rb") as file:
                model.ParseFromString(file.read())
            for piece in model.pieces:
                piece.score = float(piece.score // 9)  # ties
            with open(prefix + ", ties.model", "wb") as file:
                file.write(model.SerializeToString())
            failures += check_model(binary, prefix + ", ties.model", texts)
    return failures


def merges_by_score(tokens, scores):
    """Each token's splits into two tokens, the best tokens first: SentencePiece's scores as merges."""
    known = set(tokens)
    merges = []
    for token, score in zip(tokens, scores):
        parts = [(token[:i], token[i:]) for i in range(1, len(token))]
        merges += [(-score, left, right) for left, right in parts if left in known and right in known]
    merges.sort(key=lambda merge: merge[0])
    return [[left, right] for _, left, right in merges]


def from_gguf(path):
    """A tokenizer.json of a vocabulary-only GGUF; None for rules not spelled out here."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    get = lambda name: fields[name].contents() if name in fields else None
    tokens, types = get("tokenizer.ggml.tokens"), get("tokenizer.ggml.token_type")
    kind, rules = get("tokenizer.ggml.model"), get("tokenizer.ggml.pre")
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        plain | {"id": i, "content": t, "special": k == 3}
        for i, (t, k) in enumerate(zip(tokens, types))
        if k in (2, 3, 4)
    ]
    root = {"version": "1.0", "added_tokens": added, "normalizer": None}
    model = {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}}
    if kind == "gpt2" and rules in SPLIT_BY:
        model |= {"merges": get("tokenizer.ggml.merges"), "ignore_merges": rules == "llama-bpe"}
        split = lambda pattern: {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        steps = [split(pattern) for pattern in SPLIT_BY[rules]] + [BYTE_LEVEL | {"use_regex": False}]
        root["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
        root["decoder"] = BYTE_LEVEL
        if rules == "qwen2":
            root["normalizer"] = {"type": "NFC"}
    elif kind == "llama":
        model |= {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
        model["merges"] = merges_by_score(tokens, get("tokenizer.ggml.scores"))
        replace = lambda a, b: {"type": "Replace", "pattern": {"String": a}, "content": b}
        prepend = {"type": "Prepend", "prepend": "\u2581"}
        root["normalizer"] = {"type": "Sequence", "normalizers": [prepend, replace(" ", "\u2581")]}
        strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        steps = [replace("\u2581", " "), {"type": "ByteFallback"}, {"type": "Fuse"}, strip]
        root["pre_tokenizer"], root["decoder"] = None, {"type": "Sequence", "decoders": steps}
    else:
        return None
    return root | {"model": model}


def from_tekken(path):
    """A tokenizer.json: ranks as merges, special tokens first, as Transformers converts them."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    with open(path, encoding="utf-8") as file:
        tekken = json.load(file)
    config = tekken["config"]
    special = config["default_num_special_tokens"]
    ranks = [base64.b64decode(entry["token_bytes"]) for entry in tekken["vocab"][: config["default_vocab_size"] - special]]
    rank_of = {token: rank for rank, token in enumerate(ranks)}
    bytes_as_text = bytes_to_unicode()
    text = lambda token: "".join(bytes_as_text[byte] for byte in token)
    merges = []
    for token in ranks:
        parts = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in rank_of and token[i:] in rank_of]
        merges += [[text(left), text(right)] for left, right in sorted(parts, key=lambda part: (rank_of[part[0]], rank_of[part[1]]))]
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"] + [f"<SPECIAL_{i}>" for i in range(5, special)]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    split = {"type": "Split", "pattern": {"Regex": config["pattern"]}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "added_tokens": [plain | {"id": i, "content": name} for i, name in enumerate(names)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL | {"use_regex": False}]},
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE", "ignore_merges": True, "merges": merges,
            "vocab": {name: i for i, name in enumerate(names)} | {text(token): special + rank for token, rank in rank_of.items()},
        },
    }  # fmt: skip


def check_tekken(binary, path, texts):
    with tempfile.TemporaryDirectory() as scratch:
        converted = os.path.join(scratch, os.path.basename(path))
        with open(converted, "w") as file:
            json.dump(from_tekken(path), file)
        return check_json(binary, converted, texts)


def check_vectors(binary, folder, texts):
    failures = 0
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if not name.endswith(".gguf") or not os.path.exists(path + ".inp"):
            continue
        root = from_gguf(path)
        if root is None:
            print(f"{name}: skipped, its rules are not those of the families here")
            continue
        with open(path + ".inp", "rb") as file:
            inputs = file.read().split(b"\n__ggml_vocab_test__\n")
        with open(path + ".out") as file:
            expected = [[int(i) for i in line.split()] for line in file.read().splitlines()]
        inputs = inputs[: len(expected)]
        with tempfile.TemporaryDirectory() as scratch:
            converted = os.path.join(scratch, "tokenizer.json")
            with open(converted, "w") as file:
                json.dump(root, file)
            failures += compare(name + ", vectors", expected, run_encoder(binary, converted, inputs), inputs)
            failures += check_json(binary, converted, texts)
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encode-main", required=True, help="the binary of tests/data/encode_main.cc")
    parser.add_argument("--json", nargs="*", default=[])
    parser.add_argument("--model", nargs="*", default=[])
    parser.add_argument("--tekken", nargs="*", default=[])
    parser.add_argument("--trained", action="store_true")
    parser.add_argument("--vectors")
    parser.add_argument("--text", nargs="*", default=[])
    args = parser.parse_args()
    texts = texts_of(args)
    failures = sum(check_json(args.encode_main, path, texts) for path in args.json)
    failures += sum(check_model(args.encode_main, path, texts) for path in args.model)
    failures += sum(check_tekken(args.encode_main, path, texts) for path in args.tekken)
    if args.trained:
        failures += check_trained(args.encode_main, texts)
    if args.vectors:
        failures += check_vectors(args.encode_main, args.vectors, texts)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
