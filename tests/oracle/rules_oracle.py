"""The splitting rules of published tokenizers (published_rules.py): ids of ours, of `tokenizers` and of llama.cpp, in tokenizer.json and in GGUF.

The rules stand around a small vocabulary that was trained without splitting, so that its merges cross every cut, or, where llama.cpp cuts less than the
published rules because their vocabularies never join numbers, around one that was trained with them. Then (1) our ids are those of `tokenizers`; (2) `trireme export` gives the rules llama.cpp's name, and
llama.cpp, where xllamacpp is installed, gives the same ids; (3) the GGUF file as a tokenizer.json again gives the same ids.

Exit code 0: all passed; 1: one failed; 77: not run, and why is printed.
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import unicodedata

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from checks import Checks
from published_rules import PUBLISHED, byte_level

SKIPPED = 77
VOCABULARY = 900
END = "<|endoftext|>"
PROSE = [
    "don't DON'T we'LL I'\u017f it's ''ll 's's \u0130stanbul's CamelCase \u041f\u0440\u0438\u0432\u0435\u0442\u041c\u0438\u0440 \u00c9COLE \u00c9cole x'Re",
    "1234567890 12 3.14159 1,000,000 \u00b2\u00bd\u2167 \u0663\u0664\u0665\u0666 \u4e09\u5343 2024\u5e7412\u6708 v1.2.3 0x1F",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3002\u4e2d\u6587\uff0c\u6587\u672c\uff01 \ud55c\uad6d\uc5b4 \ud14d\uc2a4\ud2b8 \u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22 \u0939\u093f\u0928\u094d\u0926\u0940 \u0627\u0644\u0639\u0631\u0628\u064a\u0629\u060c \u05e2\u05d1\u05e8\u05d9\u05ea",
    "def f(x):\n\treturn {'a': [1, 2], \"b\": x[0]}  # /path/to/file.txt\r\n\r\n    if a!=b && c<=d || e->f():\n\n\n        pass   \n \n\t\n",
    "e\u0301e\u0300\u0323 A\u030a na\u00efve caf\u00e9 \u00a0\u3000\u2028\u2009 x\u200d\U0001f468\u200d\U0001f469 \U0001f44d\U0001f3fd \u2026\u201cquoted\u201d \u2014 \u00bfQu\u00e9? $5 + 6 < 7 = ^~|`",
]  # fmt: skip


def texts_of(seed, count):
    """Short texts dense in what the rules look at; characters that Unicode 14 knows, since llama.cpp knows no newer than 15's."""
    import random

    rng = random.Random(seed)
    dense = list("abCDstrmeld''  019.,-!/_()\r\n\t") + list("\u00a0\u3000\u0301\u0323\u1161\u11a8\u1100\uac00\u00e9\u00c9\u0416\u0436\u017f\u0660\u00b2\u4e00\u3042\u30a2\u0e01\u0e31\u2026\u3002\uff0c\U0001f468")
    known = [c for c in map(chr, range(0x20000)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]
    for _ in range(count):
        pool = dense if rng.random() < 0.7 else known
        yield "".join(rng.choice(pool if rng.random() < 0.8 else dense) for _ in range(rng.randrange(1, 30)))


def has(text, *tests):
    return any(test(c) for c in text for test in tests)


def beyond_ascii(*categories):
    return lambda c: ord(c) > 127 and (unicodedata.category(c) in categories or (" " in categories and c.isspace()))


# Characters of which llama.cpp makes something else, by rule; exports warn of them.
MARKS_AND_CAPITALS = (beyond_ascii("Lu", "Lt"), lambda c: unicodedata.category(c)[0] == "M", lambda c: c == "\u017f")
NOT_ALIKE = {
    "gpt-4o": MARKS_AND_CAPITALS, "tekken": MARKS_AND_CAPITALS, "exaone-moe": (lambda c: c == "\u017f",),
    "deepseek-llm": (beyond_ascii(" ", "Nd", "Nl", "No"),), "deepseek-coder": (beyond_ascii(" "),),
}  # fmt: skip


# Rules that llama.cpp follows only where no merge joins numbers.
NUMBERS_APART = ("falcon", "deepseek-llm")


def with_rules(tokenizer, pre_tokenizer, normalizer=None, ignore_merges=False):
    from tokenizers import Tokenizer

    content = json.loads(tokenizer.to_str()) | {"pre_tokenizer": pre_tokenizer, "normalizer": normalizer}
    content["model"]["ignore_merges"] = ignore_merges
    content["decoder"] = byte_level(True)
    return Tokenizer.from_str(json.dumps(content))


def train(pre_tokenizer, lines):
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = with_rules(Tokenizer(models.BPE()), pre_tokenizer)
    special = [AddedToken(END, special=True, normalized=False)]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def write_model(folder, vocabulary):
    """A Llama of one narrow layer."""
    import numpy as np
    from safetensors.numpy import save_file

    width = 32
    os.makedirs(folder)
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": width, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": True, "hidden_act": "silu",
        "eos_token_id": 0, "torch_dtype": "float32",
    }  # fmt: skip
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file)
    layer = "model.layers.0."
    matrices = [layer + f"self_attn.{x}_proj.weight" for x in "qkvo"] + [layer + f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")]
    tensors = {name: np.zeros((width, width), np.float32) for name in matrices}
    tensors |= {name: np.ones(width, np.float32) for name in ("model.norm.weight", layer + "input_layernorm.weight", layer + "post_attention_layernorm.weight")}
    tensors["model.embed_tokens.weight"] = np.zeros((vocabulary, width), np.float32)
    save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})


def ids_of(tokenizer, texts):
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def unlike(texts, ours, theirs):
    return [text for text, a, b in zip(texts, ours, theirs) if a != b]


def check(checks, args, folder, name, lines, unsplit, texts, llama_cpp):
    from hf_tools import Program
    from tokenizer_oracle import run_encoder
    from tokenizers import Tokenizer

    path = lambda suffix: os.path.join(folder, name + suffix)  # noqa: E731
    write_model(path(""), VOCABULARY)
    for trained in [unsplit] + [train(PUBLISHED[name][0], lines)] * (name in NUMBERS_APART):
        tokenizer = with_rules(trained, *PUBLISHED[name])
        tokenizer.save(os.path.join(path(""), "tokenizer.json"))
        expected = ids_of(tokenizer, texts)
        ours = run_encoder(args.encode_main, os.path.join(path(""), "tokenizer.json"), [text.encode() for text in texts])
        checks.equal(f"{name}: texts with other ids than those of tokenizers", unlike(texts, ours, expected)[:3], [])

    trireme = Program(args.trireme)
    said = trireme("export", path(""), "--format", "gguf", "--output", path(".gguf"))
    checks.equal(f"{name}: the export says that llama.cpp cuts some text otherwise", "otherwise than the tokenizer" in said, name in NOT_ALIKE)
    trireme("export", path(".gguf"), "--output", path("-again"))
    again = os.path.join(path("-again"), "tokenizer.json")
    checks.equal(f"{name}: texts with other ids after GGUF", unlike(texts, ids_of(Tokenizer.from_file(again), texts), expected)[:3], [])
    if not llama_cpp:
        return
    import gguf

    checks.equal(f"{name}: tokenizer.ggml.pre", gguf.GGUFReader(path(".gguf")).fields["tokenizer.ggml.pre"].contents(), name)
    with llama_cpp.served(path(".gguf")) as server:
        theirs = [llama_cpp.tokenize(server, text) for text in texts]
    wrong = unlike(texts, theirs, expected)
    excused = [t for t in wrong if has(t, *NOT_ALIKE.get(name, ())) or (PUBLISHED[name][1] and unicodedata.normalize("NFC", t) != t)]
    checks.equal(f"{name}: texts with other ids by llama.cpp", [t for t in wrong if t not in excused][:3], [])
    print(f"{name}: llama.cpp gives {len(texts) - len(wrong)} of {len(texts)} texts the same ids")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trireme", default="build/bin/trireme")
    parser.add_argument("--encode-main", default="build/bin/encode_main", help="the binary of tests/data/encode_main.cc")
    parser.add_argument("--texts", type=int, default=600, help="number of random texts")
    parser.add_argument("--only", nargs="+", default=list(PUBLISHED), help="names of rules")
    args = parser.parse_args()
    try:
        import safetensors  # noqa: F401
        import tokenizers  # noqa: F401
    except ImportError as error:
        print(f"skipped: {error}; `launch/setup.sh` installs it into .venv")
        return SKIPPED
    llama_cpp = None
    if importlib.util.find_spec("xllamacpp"):
        import gguf_llama_cpp as llama_cpp
    else:
        print("skipped: llama.cpp itself: xllamacpp is not installed (pip install --no-deps xllamacpp)")
    for binary in (args.trireme, args.encode_main):
        if not os.path.exists(binary):
            print(f"skipped: {binary} is not built")
            return SKIPPED
    from tokenizer_oracle import NASTY

    checks = Checks()
    texts = [t for t in NASTY if "[" not in t and "\U00031350" not in t] + PROSE + list(texts_of(7, args.texts))
    lines = [line for text in PROSE * 3 for line in text.splitlines(True)] + texts
    unsplit = train(byte_level(False), lines)
    alike = {}
    for name in PUBLISHED:
        alike.setdefault(str(ids_of(with_rules(unsplit, *PUBLISHED[name]), texts)), []).append(name)
    # Every token here is a merge's, so whole words make no difference; Ling's rules are Qwen's, written otherwise.
    checks.equal("rules that are alike on these texts", [names for names in alike.values() if len(names) > 1], [["llama-bpe", "dbrx"], ["stablelm2", "bailingmoe"]])
    with tempfile.TemporaryDirectory(prefix="trireme_rules_") as folder:
        for name in args.only:
            check(checks, args, folder, name, lines, unsplit, texts, llama_cpp)
    return checks.conclude()


if __name__ == "__main__":
    sys.exit(main())
