"""llama.cpp's own converter on Hugging Face directories that we exported, against the GGUF files that we write: every tensor's bytes, and the metadata.

The converter comes with the source archive of llama-cpp-python 0.3.36 (vendor/llama.cpp), whose folder the caller names:
    tests/oracle/gguf_converter_oracle.py --llama-cpp FOLDER [--trireme build/bin/trireme]
It knows published vocabularies only, so its look-up of splitting rules is told "gpt-2", or reads a SentencePiece model of mistral-common 1.13.1.
"""

import argparse
import os
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

# What it leaves to defaults, or says of the files' origin.
OURS_ALONE = {
    "attention.head_count_kv", "attention.sliding_window_pattern", "vocab_size", "rope.dimension_count", "rope.freq_base", "rope.freq_base_swa", "attention.key_length", "attention.value_length",
}  # fmt: skip
CONVERT = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
import convert_hf_to_gguf
from conversion.base import ModelBase, TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
load_hparams = ModelBase.load_hparams
def as_published(*arguments, **named):
    # Keys that published files have, and today's Transformers does not write or writes otherwise.
    config = load_hparams(*arguments, **named)
    kind = config["model_type"]
    if kind == "gpt2":
        config["n_ctx"] = config["n_positions"]
    if kind in ("gpt_neox", "cohere2"):
        config["rotary_pct"] = (config.get("rope_parameters") or {}).get("partial_rotary_factor", 1.0)
    if kind == "falcon" and config["multi_query"] and not config["new_decoder_architecture"]:
        config["num_kv_heads"] = 1
    if kind in ("deepseek_v2", "deepseek_v3"):
        config["scoring_func"] = "softmax" if kind == "deepseek_v2" else "sigmoid"
    if kind == "glm4_moe":  # has no layers behind the last here
        config.pop("num_nextn_predict_layers", None)
    return config
ModelBase.load_hparams = staticmethod(as_published)
sys.argv = ["convert_hf_to_gguf.py", sys.argv[2], "--outfile", sys.argv[3], "--outtype", sys.argv[4]]
convert_hf_to_gguf.main()
"""


def contents(file):
    import gguf

    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return fields, {t.name: (t.tensor_type.name, [int(n) for n in t.shape], t.data.tobytes()) for t in reader.tensors}


def as_gemma(source, output):
    """A SentencePiece model that puts no space before a text; the converter says so of every Gemma."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    with open(source, "rb") as file:
        model.ParseFromString(file.read())
    model.normalizer_spec.add_dummy_prefix = False
    with open(output, "wb") as file:
        file.write(model.SerializeToString())


# Of these, what the converter writes is another file's, or none.
UNLIKE = {
    "glm": "the converter takes context, epsilon and base of ChatGLM's own files",
    "hunyuan_v1_dense": "the converter says that the context is 262144 whatever the model says",
    "stablelm with normed heads": "the converter loses these norms",
}
# Keys that llama.cpp does not read, or whose values the converter makes up.
MADE_UP = {
    "gpt2.feed_forward_length", "phi2.feed_forward_length", "falcon.feed_forward_length", "bloom.feed_forward_length", "phi2.attention.head_count_kv",
    "falcon.context_length", "nemotron.attention.layer_norm_rms_epsilon", "olmo2.rope.freq_base_swa",
}  # fmt: skip
# Ids of tokens that the converter knows by the family.
GLM_IDS = ("bos", "eos", "eot", "eom", "unknown", "padding")
MADE_UP_IDS = {"gemma": ("prefix", "suffix", "middle", "fsep", "eot"), "glm4": GLM_IDS, "glm4_moe": GLM_IDS, "nemotron": ("padding", "unknown")}


def compare(checks, label, ours, theirs, kind, made_up):
    import numpy as np

    (ours, our_tensors), (theirs, their_tensors) = contents(ours), contents(theirs)
    # It drops rows of the embedding that have no token in Gemma 3.
    rows = min(our_tensors["token_embd.weight"][1][1], their_tensors["token_embd.weight"][1][1])
    for tensors in (our_tensors, their_tensors):
        kept, (columns, total), data = tensors["token_embd.weight"]
        tensors["token_embd.weight"] = (kept, [columns, rows], data[: len(data) // total * rows])
    # Its rotation factors are computed in 32 bits, ours in 64.
    if "rope_freqs.weight" in our_tensors and "rope_freqs.weight" in their_tensors:
        a, b = (np.frombuffer(tensors.pop("rope_freqs.weight")[2], np.float32) for tensors in (our_tensors, their_tensors))
        checks.within(f"{label}, {kind}: factors of rotation", float(np.abs(a / b - 1).max()), 1e-6)
    checks.equal(f"{label}, {kind}: tensors that differ", sorted(n for n in {*our_tensors, *their_tensors} if our_tensors.get(n) != their_tensors.get(n)), [])
    architecture = theirs["general.architecture"]
    mine = {k: v for k, v in ours.items() if k.startswith(architecture + ".")}
    # Of no meaning without factors that depend on it.
    idle = {"phi3.rope.scaling.original_context_length"} if "rope_factors_long.weight" not in our_tensors else set()
    other = {k: v for k, v in theirs.items() if k.startswith(architecture + ".") and k not in MADE_UP | idle}
    checks.equal(f"{label}, {kind}: what the converter says and we do not, or otherwise", {k: (v, mine.get(k)) for k, v in other.items() if mine.get(k) != v}, {})
    more = {k[len(architecture) + 1 :] for k in mine.keys() - other.keys() - MADE_UP - idle}
    checks.equal(f"{label}, {kind}: what we say alone, beside the expected", sorted(more - OURS_ALONE), [])
    same = [k for k in theirs if k.startswith("tokenizer.") and k not in made_up or k in ("general.architecture", "general.file_type", "general.quantization_version")]
    checks.equal(f"{label}, {kind}: metadata of tokenizer and file that differ", {k: str(theirs[k])[:80] for k in same if ours.get(k) != theirs[k]}, {})


def convert(llama_cpp, folder, output, kind):
    return subprocess.run([sys.executable, "-c", CONVERT, llama_cpp, folder, output, kind], capture_output=True, text=True)


def check_published_mxfp4(checks, trireme, llama_cpp, folder):
    """gpt-oss as published, in MXFP4: the file that the converter makes of it means what the directory means."""
    import torch
    from gguf_families import GPT_OSS, build
    from gguf_oracle import train_tokenizer
    from hf_tools import read_tensors
    from packed_files import MXFP4, write_packed

    path = os.path.join(folder, "mxfp4")
    write_packed(build("gpt_oss", GPT_OSS, 1.0), MXFP4, None, path)
    train_tokenizer(os.path.join(path, "tokenizer.json"), 633)
    done = convert(llama_cpp, path, path + ".gguf", "bf16")
    checks.equal(f"MXFP4: the converter ends well: {done.stderr[-600:] if done.returncode else ''}", done.returncode, 0)
    kinds = {name: kind for name, (kind, _, _) in contents(path + ".gguf")[1].items()}
    checks.equal("MXFP4: tensors of it in the converter's file", sum(kind == "MXFP4" for kind in kinds.values()), 3 * GPT_OSS["num_hidden_layers"])
    for source, output in ((path + ".gguf", "-gguf"), (path, "-hf")):
        trireme("export", source, "--format", "hf", "--dtype", "f32", "--output", path + output)
    ours, theirs = read_tensors(path + "-gguf"), read_tensors(path + "-hf")
    checks.equal("MXFP4: tensors whose values differ by file and by directory", sorted(n for n in {*ours, *theirs} if n not in ours or n not in theirs or not torch.equal(ours[n], theirs[n])), [])


def run(checks, trireme, llama_cpp, folder, only):
    from gguf_families import MODELS, MORE, build
    from gguf_oracle import train_tokenizer
    from gguf_sentencepiece import published_models

    for number, (family, sizes) in enumerate(MODELS + MORE):
        path = lambda name: os.path.join(folder, f"model{number}{name}")  # noqa: B023, E731
        label = f"{family} {number}"
        if only not in family:
            continue
        kind_of = "stablelm with normed heads" if sizes.get("qk_layernorm") else family
        if kind_of in UNLIKE:
            print(f"skipped: {label}: {UNLIKE[kind_of]}")
            continue
        sentencepiece = family in ("gemma", "gemma2", "phi3", "ernie4_5", "nemotron")
        published = published_models() if sentencepiece else []
        if sentencepiece and not published:
            print(f"skipped: {label}: its converter takes SentencePiece models only; `pip install --no-deps mistral-common==1.13.1 sentencepiece` brings some")
            continue
        model = build(family, {**sizes, "vocab_size": 32000} if published else sizes, 1.0)
        model.save_pretrained(path(""))
        if published:
            as_gemma(published[-1], os.path.join(path(""), "tokenizer.model"))
        else:
            tokenizer = train_tokenizer(os.path.join(path(""), "tokenizer.json"), 633)
            if family.startswith("glm4"):
                tokenizer.add_special_tokens(["<|user|>", "<|observation|>", "[gMASK]"])
                tokenizer.save(os.path.join(path(""), "tokenizer.json"))
        trireme("export", path(""), "--format", "hf", "--output", path("-hf"))
        for kind in ("f32", "bf16", "q8_0") if number < len(MODELS) else ("bf16",):
            trireme("export", path("-hf"), "--format", "gguf", "--dtype", kind, "--output", path(f"-{kind}.gguf"))
            done = convert(llama_cpp, path("-hf"), path(f"-{kind}-theirs.gguf"), kind)
            if done.returncode != 0:
                checks.equal(f"{label}, {kind}: the converter ends well: {done.stderr[-600:]}", False, True)
                continue
            made_up = MADE_UP_IDS.get(family, ())
            compare(checks, label, path(f"-{kind}.gguf"), path(f"-{kind}-theirs.gguf"), kind, [f"tokenizer.ggml.{name}_token_id" for name in made_up])
    if only in "gpt_oss":
        check_published_mxfp4(checks, trireme, llama_cpp, folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trireme", default="build/bin/trireme")
    parser.add_argument("--llama-cpp", required=True, help="vendor/llama.cpp of the archive")
    parser.add_argument("--only", default="", help="part of a family's name")
    args = parser.parse_args()
    import gguf_oracle
    import torch
    import transformers
    from checks import Checks
    from hf_tools import Program

    transformers.utils.logging.disable_progress_bar()
    gguf_oracle.torch = torch
    checks = Checks()
    with tempfile.TemporaryDirectory(prefix="trireme_converter_") as folder:
        run(checks, Program(args.trireme), os.path.abspath(args.llama_cpp), folder, args.only)
    return checks.conclude()


if __name__ == "__main__":
    sys.exit(main())
