"""SentencePiece models (tokenizer.model) through `trireme export` to GGUF and back: llama.cpp, `tokenizers` and `sentencepiece` agree. Used by gguf_oracle.py.

The models are those of mistral-common 1.13.1.
"""

import glob
import importlib.util
import os
import shutil

import gguf


def published_models():
    spec = importlib.util.find_spec("mistral_common")
    found = sorted(glob.glob(os.path.join(os.path.dirname(spec.origin), "data", "*.model*"))) if spec else []
    return [found[0], found[1], found[-1]] if len(found) == 5 else found  # without user-defined tokens, with, of version 1


def check(checks, trireme, folder, make_model, texts, llama_cpp):
    import sentencepiece
    from tokenizers import Tokenizer

    for number, source in enumerate(published_models()):
        label = os.path.basename(source)
        path = lambda name: os.path.join(folder, f"sentencepiece{number}{name}")  # noqa: B023, E731
        processor = sentencepiece.SentencePieceProcessor(model_file=source)
        model = make_model(processor.vocab_size(), True, False)
        model.config.bos_token_id, model.config.eos_token_id = processor.bos_id(), processor.eos_id()
        model.save_pretrained(path(""))
        shutil.copy(source, os.path.join(path(""), "tokenizer.model"))
        # llama.cpp and tokenizer.json find control tokens in a text, sentencepiece does not.
        texts = [t for t in texts if "<" not in t and t] + [" leading", "trailing  ", "[REF]x[/REF] y"]
        expected = [processor.encode(t) for t in texts]
        trireme("export", path(""), "--format", "gguf", "--output", path(".gguf"))
        fields = gguf.GGUFReader(path(".gguf")).fields
        pieces = range(processor.vocab_size())
        checks.equal(f"{label}: scores", fields["tokenizer.ggml.scores"].contents() == [processor.get_score(i) for i in pieces], True)
        trireme("export", path(".gguf"), "--output", path("-json"))
        tokenizer = Tokenizer.from_file(os.path.join(path("-json"), "tokenizer.json"))
        ours = [tokenizer.encode(t, add_special_tokens=False).ids for t in texts]
        checks.equal(f"{label}: texts that the tokenizer.json made splits otherwise", [t for t, a, b in zip(texts, ours, expected) if a != b], [])
        checks.equal(f"{label}: it begins with <s>", tokenizer.encode("x").ids[0], processor.bos_id())
        trireme("export", path("-json"), "--format", "gguf", "--output", path("-again.gguf"))
        if not llama_cpp:
            continue
        for name in (".gguf", "-again.gguf"):
            with llama_cpp.served(path(name)) as server:
                theirs = [llama_cpp.tokenize(server, t) for t in texts]
            checks.equal(f"{label}: texts that llama.cpp splits otherwise, from {name[1:]}", [t for t, a, b in zip(texts, theirs, expected) if a != b], [])
