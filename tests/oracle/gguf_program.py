"""`trireme` with GGUF files: export, import and inspect against gguf, Transformers and llama.cpp. Used by gguf_oracle.py."""

import json
import os

import gguf
from hf_tools import load, read_tensors, recipe, same_bytes, write_tokens

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
NEW_TOKENS = 24


def permuted(weights, heads):
    """As convert_hf_to_gguf permutes."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def wrong_tensors(file, state, config, kind):
    """Names of tensors whose type or bytes are not those of gguf.quantize; state: canonical names."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    data = {t.name: t for t in gguf.GGUFReader(file).tensors if t.name != "rope_freqs.weight"}
    wrong = []
    for canonical, value in state.items():
        if canonical == "lm_head.weight" and config.tie_word_embeddings:
            continue
        value = value.float().numpy()
        if "q_proj" in canonical or "k_proj" in canonical:
            value = permuted(value, config.num_attention_heads if "q_proj" in canonical else config.num_key_value_heads)
        tensor = data.pop(names.get_name(canonical, try_suffixes=(".weight",)))
        sensitive = "embed" in canonical or "lm_head" in canonical
        want = "F32" if value.ndim == 1 else "Q8_0" if kind == "Q4_0" and sensitive else kind
        if tensor.tensor_type.name != want or tensor.data.tobytes() != gguf.quantize(value, gguf.GGMLQuantizationType[want]).tobytes():
            wrong.append(tensor.name)
    return wrong + sorted(data)


def with_pre(source, name, output):
    """A copy of a GGUF file whose tokenizer.ggml.pre is another."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(output, "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = name if key == "tokenizer.ggml.pre" else field.contents()
        writer.add_key_value(key, value, field.types[0], field.types[1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_small(checks, trireme, folder, make_model, train_tokenizer, texts, llama_cpp):
    """Directories to files of every type and back; tokenizers by every name of splitting rules."""
    from tokenizers import Tokenizer

    path = lambda name: os.path.join(folder, name)  # noqa: E731
    for scaled in (False, True):
        label = "llama3 rope, tied" if scaled else "untied"
        source = path(f"small{scaled}")
        model = make_model(640, scaled, scaled)
        model.save_pretrained(source)
        train_tokenizer(os.path.join(source, "tokenizer.json"), 636)
        with open(os.path.join(source, "chat_template.jinja"), "w") as file:
            file.write("{{ messages }}")
        for kind in ("F32", "F16", "BF16", "Q8_0", "Q4_0"):
            output = path(f"small{scaled}-{kind}.gguf")
            trireme("export", source, "--format", "gguf", "--dtype", kind, "--output", output)
            wrong = wrong_tensors(output, model.state_dict(), model.config, kind)
            checks.equal(f"export, {label}, {kind}: tensors whose type or bytes differ from gguf.quantize", wrong, [])
        output = path(f"small{scaled}-F32.gguf")
        trireme("export", output, "--output", path(f"back{scaled}"))
        checks.equal(f"export, {label}: tensors changed by a GGUF file in between", same_bytes(read_tensors(path(f"back{scaled}")), read_tensors(source)), [])
        loaded, complaints = load(path(f"back{scaled}"))
        checks.equal(f"export, {label}: Transformers' complaints about the way back", complaints, [])
        checks.equal(f"export, {label}: rope on the way back", loaded.config.rope_parameters, model.config.rope_parameters)
        fields = gguf.GGUFReader(output).fields
        checks.equal(f"export, {label}: rules and template", [fields[f"tokenizer.{k}"].contents() for k in ("ggml.pre", "chat_template")], ["gpt-2", "{{ messages }}"])
        trireme("export", path(f"small{scaled}-Q8_0.gguf"), "--format", "gguf", "--dtype", "q8_0", "--output", path(f"again{scaled}.gguf"))
        again = {t.name: t.data.tobytes() for t in gguf.GGUFReader(path(f"again{scaled}.gguf")).tensors}
        changed = [t.name for t in gguf.GGUFReader(path(f"small{scaled}-Q8_0.gguf")).tensors if again.get(t.name) != t.data.tobytes()]
        checks.equal(f"export, {label}: tensors changed by quantizing Q8_0 again", changed, [])
    refusal = trireme("export", source, "--dtype", "q8_0", "--output", path("refused"), fails=True)
    checks.equal("export to a directory refuses Q8_0", "is one of GGUF" in refusal, True)
    refusal = trireme("export", source, "--format", "gguf", "--output", output, fails=True)
    checks.equal("export refuses an existing file", "exists already" in refusal, True)

    ids = {}
    for name in ("gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "default", "superbpe"):
        file, out = path(f"pre-{name}.gguf"), path(f"pre-{name}")
        with_pre(output, name, file)
        if name == "superbpe":
            checks.equal("import: unknown splitting rules are named", '"superbpe" names' in trireme("export", file, "--output", out, fails=True), True)
            continue
        trireme("export", file, "--output", out)
        tokenizer = Tokenizer.from_file(os.path.join(out, "tokenizer.json"))
        ids[name] = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        if llama_cpp:
            # NFC is Qwen's own; llama.cpp leaves it out.
            kept = [i for i, text in enumerate(texts) if name != "qwen2" or "\u0301" not in text]
            with llama_cpp.served(file) as server:
                wrong = [texts[i] for i in kept if llama_cpp.tokenize(server, texts[i]) != ids[name][i]]
            checks.equal(f"import: {name}: texts that llama.cpp splits otherwise than the tokenizer.json made", wrong, [])
    checks.above("import: ways of splitting the texts", len({str(i) for i in ids.values()}), 4)
    checks.equal("temporaries left", [name for name in os.listdir(folder) if ".tmp" in name], [])


def check_real(checks, trireme, folder, real, llama_cpp):
    """SmolLM2-135M-Instruct, Q4_1: imported by one, three and four ranks, exported, asked."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = lambda name: os.path.join(folder, name)  # noqa: E731
    where, name = os.path.split(os.path.abspath(real))
    theirs = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32).eval()
    state = {k: v for k, v in theirs.state_dict().items() if k != "lm_head.weight"}
    fields = gguf.GGUFReader(real).fields
    shown = trireme("inspect", real)
    for text in ("llama, 30 blocks of width 576", "134515008", "Q4_1", "gpt2/smollm, 49152 tokens", "chat template"):
        checks.equal(f"SmolLM2: inspect says {text}", text in shown, True)

    trireme("export", real, "--output", path("direct"))
    checks.equal("SmolLM2: tensors that differ from Transformers'", same_bytes(read_tensors(path("direct")), state), [])
    loaded, complaints = load(path("direct"))
    checks.equal("SmolLM2: complaints about the directory", complaints, [])
    tokenizer = AutoTokenizer.from_pretrained(path("direct"))
    checks.equal("SmolLM2: chat template", tokenizer.chat_template, fields["tokenizer.chat_template"].contents())
    checks.equal("SmolLM2: special ids", [loaded.config.bos_token_id, loaded.config.eos_token_id, loaded.config.pad_token_id], [1, 2, 2])

    write_tokens(path("tokens.bin"), [(i * 7919) % 49152 for i in range(4096)])
    for ranks, mesh in ((1, ""), (3, "tensor: 3"), (4, "pipeline: 2 data_shard: 2")):  # it has 9 heads on 3
        more = f'export {{ format: GGUF dtype: Q8_0 output: "{path(f"run{ranks}.gguf")}" }}'
        config, run_dir = recipe(folder, f"real{ranks}", f'from: "{real}"', path("tokens.bin"), rate=0, mesh=mesh, more=more, length=48)
        trireme("train", config, ranks=ranks)
        checks.equal(f"SmolLM2, {ranks} ranks: tensors of the GGUF at the end that differ from gguf.quantize", wrong_tensors(path(f"run{ranks}.gguf"), state, theirs.config, "Q8_0"), [])
    trireme("export", run_dir, "--format", "gguf", "--dtype", "f32", "--output", path("f32.gguf"))
    checks.equal("SmolLM2: tensors of the checkpoint's F32 GGUF that differ", wrong_tensors(path("f32.gguf"), state, theirs.config, "F32"), [])
    again = gguf.GGUFReader(path("f32.gguf")).fields
    ignored = {"tokenizer.ggml.add_space_prefix", "tokenizer.ggml.unknown_token_id"}  # of no use to byte-level BPE
    keys = [k for k in fields if (k.startswith("tokenizer.") or k.startswith("llama.")) and k not in ignored]
    checks.equal("SmolLM2: metadata that differ after the run", [k for k in keys if k not in again or again[k].contents() != fields[k].contents()], [])
    shown = trireme("inspect", run_dir)
    for text in ("30 blocks of width 576", "134515008", "F32", "step 1"):
        checks.equal(f"SmolLM2: inspect of the run says {text}", text in shown, True)
    if not llama_cpp:
        print("skipped: SmolLM2: answers by llama.cpp: xllamacpp is not installed (pip install --no-deps xllamacpp)")
        return
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        answer = theirs.generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    expected = tokenizer.decode(answer, skip_special_tokens=True)
    trireme("export", run_dir, "--format", "gguf", "--dtype", "bf16", "--output", path("bf16.gguf"))
    # Of its 8-bit products this model makes nonsense in llama.cpp, of the published Q4_1 file too; Q8_0 is measured on small models.
    for file in ("f32.gguf", "bf16.gguf"):
        with llama_cpp.served(path(file)) as server:
            reply = server.handle_chat_completions({"messages": QUESTION, "temperature": 0.0, "max_tokens": NEW_TOKENS})
        reply = json.loads(reply) if isinstance(reply, str) else reply
        checks.equal(f"SmolLM2: greedy answer of llama.cpp from {file}", reply["choices"][0]["message"]["content"], expected)
