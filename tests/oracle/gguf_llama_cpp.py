"""llama.cpp, by the package xllamacpp, as what GGUF files are checked against. Used by gguf_oracle.py."""

import contextlib
import json
import urllib.request

import gguf
import numpy as np
import torch
import xllamacpp


@contextlib.contextmanager
def served(file):
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx = 512
    params.n_parallel = 1
    params.warmup = False
    params.verbosity = -1
    params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = 2
    params.port = 0
    yield xllamacpp.Server(params)


@contextlib.contextmanager
def rounded_inputs(model, kind):
    """The inputs of all linear layers take the form that llama.cpp gives them when weights are stored as `kind`."""
    kind = gguf.GGMLQuantizationType[kind]

    def round_input(_, arguments):
        values = np.ascontiguousarray(arguments[0].numpy())
        return torch.from_numpy(gguf.dequantize(gguf.quantize(values, kind), kind).reshape(values.shape))

    hooks = [m.register_forward_pre_hook(round_input) for m in model.modules() if isinstance(m, torch.nn.Linear)]
    yield
    for hook in hooks:
        hook.remove()


def log_probabilities(model, ids):
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1).numpy()


def difference_and_rounding(file, model, kind, trained, ids):
    """Root mean square over the vocabulary: of llama.cpp against the model, and of the model with rounded inputs against the model."""
    exact = log_probabilities(model, ids)
    with rounded_inputs(model, kind):
        rounded = log_probabilities(model, ids)
    # Where an end of text or half a character is next, the answer holds no probabilities.
    next_tokens = [trained.id_to_token(best) or "" for best in exact.argmax(-1).tolist()]
    last = max(i for i, token in enumerate(next_tokens) if token.isalpha() and token.isascii())
    with served(file) as server:
        answer = server.handle_completions({"prompt": ids[: last + 1], "n_predict": 1, "n_probs": len(exact[0]), "temperature": 0.0, "cache_prompt": False})
    answer = json.loads(answer) if isinstance(answer, str) else answer
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    if len(top) != len(exact[0]):
        raise RuntimeError(f"llama.cpp gave {len(top)} log-probabilities")
    theirs = np.empty(len(exact[0]))
    for token in top:
        theirs[token["id"]] = token["logprob"]
    return [float(np.sqrt(np.mean((other - exact[last]) ** 2))) for other in (theirs, rounded[last])]


def tokenize(server, text):
    body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
    request = urllib.request.Request(server.listening_address + "/tokenize", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())["tokens"]
