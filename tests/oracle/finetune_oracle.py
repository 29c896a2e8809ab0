"""Fine-tuning of real weights against PEFT and Transformers: the same tokens in the same order, first values, AdamW, schedule and clipping.

tokens      every conversation's tokens and mask, as Transformers' template and tokenizer give them
LoRA        configs/recipes/lora_chat.textproto on 2 ranks and PEFT: each step's loss, and that of held-out answers at the end
QLoRA       configs/recipes/qlora_chat.textproto likewise, and PEFT over bitsandbytes' NF4
full        lora_chat.textproto without its adapter likewise, and Transformers
use         our LoRA in PEFT: the same loss, answers and log-probabilities; most answers are in style and end by themselves
control     LoRA on questions with each other's answers: what it learns is not enough for the held-out ones

By hand, some 40 minutes on 2 cores. Needs SmolLM2-135M-Instruct in Hugging Face's format and conversations:
    launch/package_chat.py --train 240 --heldout 60 --output runs/package_chat_240
    .venv/bin/python tests/oracle/finetune_oracle.py --model DIR [--data runs/package_chat_240] [--trireme ...] [--probe ...] [--quick]
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin are slow where others use the cores

from generate_oracle import compare, greedy, last_line  # noqa: E402

SKIPPED = 77
STEPS, QUICK_STEPS = 20, 6
RANKS = 2
LENGTH = 512
FULL_RATE = 1e-4  # where adapters learn with 1e-3
# Measured: 4e-7, 3e-4, 5e-7. Some 0.2 % of the codes of NF4's scales are other ones: bitsandbytes takes them from a table on the CPU.
STEP_TOLERANCE = {"LoRA": 1e-5, "QLoRA": 2e-3, "full": 1e-5}  # relative
END_TOLERANCE = 0.01  # relative, of the loss of held-out answers
SAME_LOSS = 1e-6  # relative, of one set of values in both programs
LOG_PROBABILITIES = 1e-4
LEARNED = 0.5  # nats below the base model
MARGIN = 0.1  # nats by which the control stays behind
QUESTIONS = 10
IN_STYLE = QUESTIONS // 2  # more answers than these are: two passes over 240 conversations teach manners, not every name
MOST_TOKENS = 60
STYLE = re.compile(r"(\S+): .+\. It belongs to the section \S+; install it with `apt install \1`\.")
FILES = ("train", "heldout", "shuffled")


class Finetuning:
    """The recipes with this model and these conversations."""

    def __init__(self, args, folder):
        from hf_tools import Program
        from probe import Probe

        self.trireme, self.probe, self.folder = Program(args.trireme), Probe(args.probe), folder
        self.model, self.steps = os.path.abspath(args.model), QUICK_STEPS if args.quick else STEPS
        self.files = {name: os.path.join(os.path.abspath(args.data), name + ".jsonl") for name in FILES}
        self.first = os.path.join(folder, "first")  # the adapter that all begin with

    def run_dir(self, name):
        return os.path.join(self.folder, name)

    def config(self, name, samples="train"):
        """(file, overrides) of a run."""
        with open(f"configs/recipes/{'qlora' if name == 'QLoRA' else 'lora'}_chat.textproto") as file:
            lines = file.readlines()
        settings = {
            "model.from": self.model,
            "data.conversations.path": self.files[samples],
            "data.conversations.validation_path": self.files["heldout"],
            "train_for.steps": self.steps,
            "run_dir": self.run_dir(name),
        }
        if name == "full":
            lines = [line for line in lines if not line.startswith("adapter ")]
            settings["optimizer.adamw.learning_rate"] = FULL_RATE
        else:
            settings["adapter.from"] = self.first
        path = self.run_dir(name) + ".textproto"
        with open(path, "w") as file:
            file.writelines(lines)
        return path, [f"{key}={value}" for key, value in settings.items()]

    def train(self, name, samples="train"):
        """The loss of every step and that of the held-out answers at the end."""
        from quickstart_curve import read_metrics

        path, overrides = self.config(name, samples)
        self.trireme("train", path, *(word for override in overrides for word in ("--set", override)), ranks=RANKS)
        losses, evaluations = read_metrics(self.run_dir(name))
        return [losses[step + 1] for step in range(self.steps)], evaluations[self.steps]

    def read(self, name):
        """The recipe's numbers, and the microbatches that `trireme train` reads: each step's, and the held-out ones."""
        from safetensors.torch import load_file

        path, overrides = self.config(name)
        recipe = self.probe.call(path, self.folder, flags=["--tokens", str(self.steps)], overrides=overrides)
        data = load_file(os.path.join(self.folder, "tokens.safetensors"))
        return recipe, [microbatches(data, "train", step) for step in range(self.steps)], microbatches(data, "validation", slice(None))

    def evaluate(self, *flags):
        return last_line(self.trireme("evaluate", self.model, "--data", self.files["heldout"], "--sequence-length", str(LENGTH), "--json", *flags))["loss"]

    def answer(self, question, *flags):
        system, user = (message["content"] for message in question)
        flags = ["--chat", "--system", system, "--prompt", user, "--max-tokens", str(MOST_TOKENS), "--json", *flags]
        return last_line(self.trireme("generate", self.model, *flags))

    def conversations(self, name):
        with open(self.files[name], encoding="utf-8") as file:
            return [json.loads(line)["messages"] for line in file]


def microbatches(data, split, index):
    """One per sequence; where positions restart, a document begins."""
    from probe import Microbatch

    found = []
    for tokens, targets, positions in zip(*(data[f"{split}.{field}"][index] for field in ("tokens", "targets", "positions"))):
        starts = (positions == 0).nonzero().flatten().tolist() + [len(tokens)]
        found.append(Microbatch(tokens, targets, [end - begin for begin, end in zip(starts, starts[1:])]))
    return found


def load(path, adapter=None, trainable=False, **options):
    """Transformers' model, with a PEFT directory's adapter on it. train() matters to bitsandbytes alone: it takes no short cut through bfloat16."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options)
    # torch's embedding gives the pad token's row no gradient; here it is also the token that ends a turn, which is learned.
    model.get_input_embeddings().padding_idx = None
    return (model if adapter is None else PeftModel.from_pretrained(model, adapter, is_trainable=trainable)).train()


def nf4():
    import torch
    from bnb_oracle import VARIANTS
    from transformers import BitsAndBytesConfig

    return {"quantization_config": BitsAndBytesConfig(bnb_4bit_compute_dtype=torch.float32, **VARIANTS["NF4, double"]), "device_map": {"": "cpu"}}


def loss_of(model, batch):
    """The mean over the targets of all microbatches."""
    import reference as ref
    import torch
    import torch.nn.functional as F

    with torch.no_grad():
        total = sum(F.cross_entropy(ref.logits_of(model, part), part.targets, ignore_index=-100, reduction="sum").item() for part in batch)
    return total / sum(part.num_targets for part in batch)


def check_tokens(checks, tuning):
    import conversation_oracle as conversation
    from tokenizers import processors
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tuning.model)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)  # offsets with the spaces that belong to a token
    for name, path in tuning.files.items():
        ours = conversation.ours(tuning.probe, tuning.folder, path, len(tokenizer), tuning.model, length=LENGTH)
        conversation.compare(checks, f"tokens, {name}", ours, [conversation.by_prefixes(tokenizer, messages) for messages in tuning.conversations(name)])


def check_run(checks, tuning, name, base):
    """Trains both; returns the loss that our held-out answers end with."""
    import reference as ref
    import torch

    start = time.monotonic()
    ours, our_end = tuning.train(name)
    middle = time.monotonic()
    recipe, steps, heldout = tuning.read(name)
    model = load(tuning.model, None if name == "full" else tuning.first, trainable=True, **(nf4() if name == "QLoRA" else {}))
    adamw = recipe["adamw"]
    optimizer = torch.optim.AdamW(ref.decay_groups(model, adamw["weight_decay"]), betas=adamw["betas"], eps=adamw["eps"])
    theirs = ref.train(model, optimizer, steps, recipe["learning_rate"], clip=recipe["clip_grad_norm"])
    their_end = loss_of(model, heldout)
    print(f"{name}: {middle - start:.0f} s here, {time.monotonic() - middle:.0f} s there; losses {ours[0]:.4f} to {ours[-1]:.4f}, there {theirs[0]:.4f} to {theirs[-1]:.4f}")
    worst, step = max((abs(a / b - 1), i + 1) for i, (a, b) in enumerate(zip(ours, theirs)))
    checks.within(f"{name}: worst loss of {tuning.steps} steps (step {step})", worst, STEP_TOLERANCE[name])
    checks.within(f"{name}: loss of held-out answers ({our_end:.4f}, there {their_end:.4f})", abs(our_end / their_end - 1), END_TOLERANCE)
    checks.above(f"{name}: nats that held-out answers gain over the base model's {base:.4f}", base - our_end, LEARNED)
    if name == "QLoRA":
        exported = os.path.join(tuning.folder, "nf4")
        tuning.trireme("export", tuning.model, "--format", "hf", "--quantize", "nf4", "--dtype", "f32", "--output", exported)
        same = loss_of(load(exported, tuning.first), steps[0])
        checks.within("QLoRA: first loss where bitsandbytes has our codes", abs(ours[0] / same - 1), SAME_LOSS)
    return our_end


def check_use(checks, tuning, end, heldout, styled):
    from transformers import AutoTokenizer

    adapter = os.path.join(tuning.run_dir("LoRA"), "adapter")
    model, tokenizer = load(tuning.model, adapter), AutoTokenizer.from_pretrained(tuning.model)
    there = loss_of(model, heldout)
    checks.within(f"use: PEFT's loss of held-out answers with our adapter, {there:.6f} for {end:.6f}", abs(end / there - 1), SAME_LOSS)
    checks.within("use: that of `trireme evaluate`", abs(tuning.evaluate("--adapter", adapter) / there - 1), SAME_LOSS)
    good, plain = 0, 0
    for *question, _ in tuning.conversations("heldout")[:QUESTIONS]:
        label, answer = f"use, {question[-1]['content']!r}", tuning.answer(question, "--adapter", adapter)
        prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True)["input_ids"]
        checks.equal(f"{label}: the prompt's tokens are Transformers'", answer["prompt_ids"] == prompt, True)
        ids, log_probabilities = greedy(model, prompt, MOST_TOKENS)
        ids = ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids
        compare(checks, f"{label}: PEFT", answer, (ids, log_probabilities), LOG_PROBABILITIES)
        print(f"      {answer['text']!r} ({answer['finish']})")
        good += answer["finish"] == "end" and STYLE.fullmatch(answer["text"]) is not None
        plain += STYLE.fullmatch(tuning.answer(question)["text"]) is not None
    if styled:
        checks.above(f"use: answers of {QUESTIONS} that end within {MOST_TOKENS} tokens, in style", good, IN_STYLE)
    checks.equal(f"use: the base model's of {QUESTIONS} in style", plain, 0)


def check_control(checks, tuning, end):
    start = time.monotonic()
    losses, control = tuning.train("control", samples="shuffled")
    print(f"control: {time.monotonic() - start:.0f} s; losses {losses[0]:.4f} to {losses[-1]:.4f}")
    checks.above(f"control: nats that held-out answers ({control:.4f}) stay behind those of LoRA ({end:.4f})", control - end, MARGIN)


def run(checks, tuning, only, styled):
    from peft import LoraConfig, get_peft_model

    check_tokens(checks, tuning)
    model, (_, _, heldout) = load(tuning.model), tuning.read("full")
    base, there = tuning.evaluate(), loss_of(model, heldout)
    checks.within(f"base model: loss of held-out answers, {base:.6f} for {there:.6f}", abs(base / there - 1), SAME_LOSS)
    get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")).save_pretrained(tuning.first)
    del model
    for name in only:
        end = check_run(checks, tuning, name, base)
        if name == "LoRA":
            check_use(checks, tuning, end, heldout, styled)
            check_control(checks, tuning, end)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/smollm2", help="SmolLM2-135M-Instruct, a Hugging Face directory (default: %(default)s)")
    parser.add_argument("--data", default="runs/package_chat_240", help="what launch/package_chat.py wrote (default: %(default)s)")
    parser.add_argument("--trireme", default="build/bin/trireme")
    parser.add_argument("--probe", default="build/bin/trireme_probe")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps in place of {STEPS}; answers need no style then")
    parser.add_argument("--only", choices=list(STEP_TOLERANCE), nargs="+", default=list(STEP_TOLERANCE), help="use and control go with LoRA")
    args = parser.parse_args()
    needed = [args.trireme, args.probe, os.path.join(args.model, "config.json")] + [os.path.join(args.data, name + ".jsonl") for name in FILES]
    missing = [path for path in needed if not os.path.exists(path)]
    if missing:
        print(f"skipped: missing: {' '.join(missing)}; see --help")
        return SKIPPED
    try:
        import bitsandbytes
        import peft
        import torch
        import transformers
    except ImportError as error:
        print(f"skipped: {error}; `launch/setup.sh --tests` installs torch, transformers, peft and bitsandbytes into .venv")
        return SKIPPED
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}, bitsandbytes {bitsandbytes.__version__}")

    from checks import Checks

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(1)  # of the first adapter
    checks = Checks()
    with tempfile.TemporaryDirectory(prefix="trireme_finetune_") as folder:
        run(checks, Finetuning(args, folder), args.only, not args.quick)
    return checks.conclude()


if __name__ == "__main__":
    sys.exit(main())
