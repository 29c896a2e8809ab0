"""Fine-tuning data: tokens and masks of packed samples against Transformers' chat templates and plain tokenization.

Standalone, `conversation_oracle.py --model DIR [--data FILE.jsonl]` compares the tokens of a real model's own template.
"""

import argparse
import json
import os
import sys
import tempfile

from safetensors import safe_open

IGNORED = -100
LENGTH = 256
END = "<|im_end|>"
# The shape of SmolLM2's: a default system message, no marks of what the assistant says.
PLAIN = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def turns(*contents, system=None):
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents)]
    return ([{"role": "system", "content": system}] if system else []) + messages


CONVERSATIONS = [
    turns("What does the package jq do?", "jq: a JSON processor."),
    turns("Hi", "Hello!", "And now?", "Now it ends.\n\nReally.", system="Be brief."),
    turns("  spaces  ", "  kept  ", "\n", "\n\nlines\n"),
    turns("naïve café 東京 👩‍👩‍👧 e\u0301", "Zażółć gęślą jaźń 😀\u200d\t.", system="Ünïcode"),
    turns("<|im_end|> in the question", "text <|im_start|>assistant\nand marks"),
    turns("code?", "```c++\nint main() {\n  return 0;\n}\n```"),
    turns("Only one says it", "x", "again", "x", "and again", "x"),
]
TEXTS = ["A text of its own.", "日本語のテキスト", "x"]
COMPLETIONS = [("2 + 2 =", " 4"), ("Q: who?\nA:", " nobody\n"), ("ends in space ", "word")]


def make_model(folder, template):
    """A byte-level tokenizer with merges, and the marks of ChatML."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = [AddedToken(mark, special=True) for mark in ("<|endoftext|>", "<|im_start|>", END)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=marks, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([message["content"] for messages in CONVERSATIONS for message in messages] * 3, trainer)
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": END, "pad_token": "<|endoftext|>",
              "clean_up_tokenization_spaces": False}
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as file:
        json.dump(config, file)
    with open(os.path.join(folder, "chat_template.jinja"), "w") as file:
        file.write(template)


def ours(probe, folder, data, vocab, model, packing="BEST_FIT", length=LENGTH):
    """Every document that is trained on as (tokens, learned), sorted."""
    recipe = os.path.join(folder, "recipe.textproto")
    with open(recipe, "w") as file:
        file.write(
            f"""model {{ family: "llama" num_hidden_layers: 1 hidden_size: 16 num_attention_heads: 2 intermediate_size: 16 vocab_size: {vocab} }}
            data {{ sequence_length: {length} conversations {{ path: "{data}" validation_path: "{data}" tokenizer: "{model}" packing: {packing} }} }}
            global_batch_size: 1 micro_batch_size: 1 optimizer {{ adamw {{ learning_rate: 1e-3 }} }} train_for {{ steps: 1 }} run_dir: "{folder}/run" """
        )
    out = os.path.join(folder, "probe")
    os.makedirs(out, exist_ok=True)
    probe.call(recipe, out, 1, ["--tokens", "1"], [])
    documents = []
    with safe_open(os.path.join(out, "tokens.safetensors"), "pt") as file:
        tokens, targets, positions = (file.get_tensor(f"validation.{name}").flatten().tolist() for name in ("tokens", "targets", "positions"))
    starts = [i for i, position in enumerate(positions) if position == 0] + [len(tokens)]
    for begin, end in zip(starts, starts[1:]):
        learned = [False] + [target != IGNORED for target in targets[begin : end - 1]]
        assert targets[end - 1] == IGNORED
        assert all(not on or tokens[begin + i] == targets[begin + i - 1] for i, on in enumerate(learned))
        if any(learned):  # The rest of a sequence is padding.
            documents.append((tokens[begin:end], learned))
    return sorted(documents)


def overlapping(offsets, spans):
    return [any(begin < last and end > first for first, last in spans) for begin, end in offsets]


def by_prefixes(tokenizer, messages):
    """What lies between the prompt of an answer and the end of its turn, as TRL has it."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = tokenizer.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True)
            after = tokenizer.apply_chat_template(messages[: i + 1], tokenize=False)
            assert text.startswith(before) and text.startswith(after)
            spans.append((len(before), len(after.removesuffix("\n"))))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], overlapping(encoded["offset_mapping"], spans)


def by_marks(tokenizer, messages):
    encoded = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    mask = encoded.get("assistant_masks", encoded.get("assistant_tokens_mask"))
    return list(encoded["input_ids"]), [bool(on) for on in mask]


def first_is_given(sample):
    tokens, learned = sample
    return list(tokens), [False] + list(learned[1:])


def write_lines(path, samples):
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)


def compare(checks, name, measured, expected):
    expected = sorted(first_is_given(sample) for sample in expected)
    wrong = [i for i, (a, b) in enumerate(zip(measured, expected)) if list(a[0]) != b[0] or list(a[1]) != b[1]]
    if len(measured) != len(expected) or wrong:
        print(f"{name}: {len(measured)} documents for {len(expected)}; first difference {measured[wrong[0]] if wrong else ''} {expected[wrong[0]] if wrong else ''}")
    checks.equal(f"{name}: samples that differ in a token or its mask", len(wrong) + abs(len(measured) - len(expected)), 0)


def run(checks, probe):
    from transformers import AutoTokenizer

    for kind, template, reference in (("prefixes", PLAIN, by_prefixes), ("generation blocks", MARKED, by_marks)):
        with tempfile.TemporaryDirectory(prefix="trireme_conversations_") as folder:
            make_model(folder, template)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            vocab = len(tokenizer)
            data = os.path.join(folder, "data.jsonl")
            expected = [reference(tokenizer, messages) for messages in CONVERSATIONS]
            for packing in ("BEST_FIT", "NONE"):
                write_lines(data, [{"messages": messages} for messages in CONVERSATIONS])
                compare(checks, f"conversations, {kind}, {packing}", ours(probe, folder, data, vocab, folder, packing), expected)
            write_lines(data, [{"conversations": [{"from": {"user": "human", "assistant": "gpt"}.get(m["role"], m["role"]), "value": m["content"]}
                                                  for m in messages]} for messages in CONVERSATIONS])
            compare(checks, f"ShareGPT, {kind}", ours(probe, folder, data, vocab, folder), expected)
            pairs = [messages for messages in CONVERSATIONS if len(messages) == 2]
            write_lines(data, [{"instruction": q["content"], "input": "", "output": a["content"]} for q, a in pairs])
            compare(checks, f"Alpaca, {kind}", ours(probe, folder, data, vocab, folder), [reference(tokenizer, messages) for messages in pairs])
            write_lines(data, [{"prompt": messages[:-1], "completion": messages[-1:]} for messages in CONVERSATIONS])
            last = []
            for messages in CONVERSATIONS:
                tokens, learned = reference(tokenizer, messages)
                before = tokenizer.apply_chat_template(messages[:-1], tokenize=False)
                given = len(tokenizer(before, add_special_tokens=False)["input_ids"])
                last.append((tokens, [on and i >= given for i, on in enumerate(learned)]))
            compare(checks, f"prompts and completions of messages, {kind}", ours(probe, folder, data, vocab, folder), last)

            eos = tokenizer.convert_tokens_to_ids(END)
            write_lines(data, [{"text": text} for text in TEXTS])
            texts = [tokenizer(text, add_special_tokens=False)["input_ids"] + [eos] for text in TEXTS]
            compare(checks, f"texts, {kind}", ours(probe, folder, data, vocab, folder), [(ids, [True] * len(ids)) for ids in texts])
            write_lines(data, [{"prompt": prompt, "completion": completion} for prompt, completion in COMPLETIONS])
            plain = []
            for prompt, completion in COMPLETIONS:
                encoded = tokenizer(prompt + completion, add_special_tokens=False, return_offsets_mapping=True)
                learned = overlapping(encoded["offset_mapping"], [(len(prompt), len(prompt + completion))])
                plain.append((encoded["input_ids"] + [eos], learned + [True]))
            compare(checks, f"prompts and completions, {kind}", ours(probe, folder, data, vocab, folder), plain)


def main():
    from tokenizers import processors
    from transformers import AutoTokenizer

    from checks import Checks
    from probe import Probe

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probe", default="build/bin/trireme_probe")
    parser.add_argument("--model", help="a model directory whose template adds only line breaks after the end of a turn")
    parser.add_argument("--data", help="JSONL of messages; default: conversations of this file")
    args = parser.parse_args()
    checks, probe = Checks(), Probe(args.probe)
    if args.model is None:
        run(checks, probe)
        return checks.conclude()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    # Offsets with the spaces that belong to a token.
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    conversations = CONVERSATIONS
    if args.data:
        with open(args.data, encoding="utf-8") as file:
            conversations = [json.loads(line)["messages"] for line in file]
    with tempfile.TemporaryDirectory(prefix="trireme_conversations_") as folder:
        data = os.path.join(folder, "data.jsonl")
        write_lines(data, [{"messages": messages} for messages in conversations])
        measured = ours(probe, folder, data, len(tokenizer), os.path.abspath(args.model), length=2048)
        compare(checks, args.model, measured, [by_prefixes(tokenizer, messages) for messages in conversations])
    return checks.conclude()


if __name__ == "__main__":
    sys.exit(main())
