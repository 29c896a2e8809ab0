"""Experts on ranks against Transformers' own expert parallelism. What evens out their loads, against Transformers and autograd: biases that follow loads, losses
of routers, their values in metrics.jsonl.

Runs alone: tests/oracle/experts_oracle.py --trireme build/bin/trireme --probe build/bin/trireme_probe
"""

import argparse
import json
import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

from families_oracle import EXPERTS, NO_PAD, SKIPPED, build  # noqa: E402
from hf_oracle import compare_gradients  # noqa: E402
from hf_tools import LENGTH, Program, first_loss, load, read_tensors, recipe, write_tokens  # noqa: E402

STEPS, BIAS_RATE, LEARNING_RATE = 20, 0.02, 0.2
AUX, Z = 0.5, 0.05
END_ID = 2  # of conversation_oracle's tokenizer
VALUES = 1e-5  # relative, of losses and loads in metrics.jsonl
QWEN = dict(EXPERTS, num_experts=8, num_experts_per_tok=2, norm_topk_prob=True, head_dim=16)
GLM = dict(EXPERTS, n_routed_experts=8, num_experts_per_tok=3, n_group=2, topk_group=1, num_hidden_layers=3, head_dim=16, **NO_PAD)


def records(run_dir):
    with open(os.path.join(run_dir, "metrics.jsonl")) as file:
        return [record for record in map(json.loads, file) if record["type"] == "train"]


def read_batches(probe, folder, data, vocab, steps, length=LENGTH, batch=4):
    """Of each step its microbatches of one sequence, as the probe says that `trireme train` reads them."""
    import torch
    from probe import Microbatch
    from safetensors import safe_open

    out = os.path.join(folder, "tokens")
    os.makedirs(out)
    path = out + ".textproto"
    with open(path, "w") as file:
        file.write(f"""model {{ family: "llama" num_hidden_layers: 1 hidden_size: 8 num_attention_heads: 1 intermediate_size: 8 vocab_size: {vocab} }}
            data {{ {data} sequence_length: {length} }} global_batch_size: {batch} optimizer {{ adamw {{}} }} train_for {{ steps: 1 }} run_dir: "{out}/run" """)
    probe.call(path, out, flags=["--tokens", str(steps)])
    with safe_open(os.path.join(out, "tokens.safetensors"), "pt") as file:
        tokens, targets, positions = (file.get_tensor(f"train.{name}").long() for name in ("tokens", "targets", "positions"))

    def one(t, y, p):
        starts = torch.nonzero(p == 0).flatten().tolist() + [length]
        return Microbatch(t, y, [b - a for a, b in zip(starts, starts[1:])])

    return [[one(*sequence) for sequence in zip(*step)] for step in zip(tokens, targets, positions)]


def watch_routers(reference):
    """A list that fills with (router, its input [tokens, hidden], its output) as the model runs."""
    seen = []
    for name, module in reference.named_modules():
        if name.endswith("mlp.gate"):
            module.register_forward_hook(lambda module, args, out: seen.append((module, args[0].flatten(0, -2), out)))
    return seen


def check_bias(checks, ref, probe, trireme, folder):
    """Biases of experts after 20 steps equal the rule written down here, with the choices that Transformers makes."""
    import torch
    import torch.nn.functional as F

    reference = build("glm4_moe", GLM, 5)
    path, corpus = os.path.join(folder, "glm"), os.path.join(folder, "glm.bin")
    reference.save_pretrained(path)
    write_tokens(corpus, torch.randint(97, (STEPS * 4 * LENGTH + 1,), generator=torch.Generator().manual_seed(3)).tolist())
    seen, counts = watch_routers(reference), {}
    for step in read_batches(probe, folder, f'source {{ path: "{corpus}" }}', 97, STEPS):
        seen.clear()
        ref.forward_backward(reference, step)
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter -= LEARNING_RATE * parameter.grad
            counts = {}
            for router, _, (_, _, chosen) in seen:
                counts[router] = counts.get(router, 0) + torch.bincount(chosen.flatten(), minlength=8)
            for router, count in counts.items():
                router.e_score_correction_bias += BIAS_RATE * torch.sign(count.float().mean() - count)
    loads = [(count.max() * 8 / count.sum()).item() for count in counts.values()]
    expected = {name: value for name, value in reference.state_dict().items() if name.endswith("correction_bias")}
    for ranks, mesh, more in ((1, "", ""), (4, "tensor: 2 pipeline: 2", ""), (4, "context: 2 expert: 4", "recompute { policy: BLOCK }")):
        name = f"biases, {ranks} ranks {mesh}".rstrip()
        out = os.path.join(folder, f"glm_out{ranks}{len(mesh)}")
        more += f' export {{ output: "{out}" dtype: BF16 }}'
        config, run_dir = recipe(folder, f"glm_run{ranks}{len(mesh)}", f'from: "{path}"', corpus, rate=LEARNING_RATE, mesh=mesh, more=more)
        trireme("train", config, "--set", f"train_for.steps={STEPS}", "--set", f"optimizer.router_bias_rate={BIAS_RATE}", ranks=ranks)
        ours = read_tensors(out)
        wrong = [key for key, bias in expected.items() if ours[key].dtype != torch.float32 or not torch.equal(ours[key], bias)]
        checks.equal(f"{name}: exported ones that are not the rule's bits in float32", wrong, [])
        last = records(run_dir)[-1]["expert_load"].values()
        # After 20 steps a token whose scores are next to a tie may choose otherwise by round-off: two of them may.
        few_tokens = max(2 / count.max().item() for count in counts.values())
        checks.within(f"{name}: load of the last step", max(abs(a["max_over_mean"] / b - 1) for a, b in zip(last, loads)), few_tokens)
        entropies = [-sum(p * p.log() for p in (count / count.sum()).double() if p > 0).item() for count in counts.values()]
        checks.within(f"{name}: its entropy", max(abs(a["entropy"] / b - 1) for a, b in zip(last, entropies)), few_tokens)
    checks.above("biases that moved", sum(F.relu(bias.abs() - BIAS_RATE).count_nonzero().item() for bias in expected.values()), 0)


def filling(microbatch):
    """Tokens that only fill the sequence: a last segment of nothing but the end of an answer."""
    last = microbatch.segments[-1]
    return last if (microbatch.tokens[-last:] == END_ID).all() else 0


def router_losses(seen, is_token, sequences, tokens, per_token):
    """The losses' definitions: of one sequence of a step of so many sequences and tokens."""
    import torch
    import torch.nn.functional as F

    even = z = 0
    for router, rows, _ in seen:
        logits = F.linear(rows, router.weight)[is_token]
        shares = logits.softmax(-1)
        length, experts = shares.shape
        counts = torch.bincount(shares.topk(per_token).indices.flatten(), minlength=experts)
        even = even + AUX / sequences * experts / (per_token * length**2) * (counts * shares.sum(0)).sum()
        z = z + Z / tokens * logits.logsumexp(-1).square().sum()
    return even, z


def check_losses(checks, ref, probe, trireme, folder, name, reference, data, vocab, length):
    """Gradients and values of the two losses of routers; what only fills a sequence has no part in them."""
    import torch
    import torch.nn.functional as F

    path = os.path.join(folder, "model")
    reference.save_pretrained(path)
    seen = watch_routers(reference)
    (batch,) = read_batches(probe, folder, data, vocab, 1, length)
    reference.zero_grad(set_to_none=True)
    real = [torch.arange(length) < length - filling(m) for m in batch]
    targets, tokens, sums = sum(m.num_targets for m in batch), sum(int(r.sum()) for r in real), [0.0, 0.0]
    for microbatch, is_token in zip(batch, real):
        seen.clear()
        logits = ref.logits_of(reference, microbatch, 0).float()
        losses = router_losses(seen, is_token, len(batch), tokens, reference.config.num_experts_per_tok)
        sums = [a + b.item() for a, b in zip(sums, losses)]
        (F.cross_entropy(logits, microbatch.targets, ignore_index=-100, reduction="sum") / targets + sum(losses)).backward()
    gradients, before = ref.gradients_of(reference), ref.weights_of(reference)
    checks.above(f"{name}: tokens that only fill sequences", sum(map(len, real)) - tokens, 0 if "conversations" in data else -1)
    for ranks, mesh in ((1, ""), (4, "tensor: 2 pipeline: 2"), (4, "context: 2 expert: 4")):
        out = os.path.join(folder, f"losses{ranks}{len(mesh)}")
        more = f'export {{ output: "{out}" dtype: FP32 }} loss {{ router_aux_loss: {AUX} router_z_loss: {Z} }}'
        config, run_dir = recipe(folder, f"losses_run{ranks}{len(mesh)}", f'from: "{path}"', "", mesh=mesh, more=more, length=length)
        with open(config) as file:
            text = file.read()
        with open(config, "w") as file:
            file.write(text.replace('source { path: "" }', data))
        trireme("train", config, ranks=ranks)
        label = f"{name}, {ranks} ranks {mesh}".rstrip()
        compare_gradients(checks, label, before, ref.weights_of(load(out)[0]), gradients)
        record = records(run_dir)[0]
        ours = record["router_aux_loss"], record["router_z_loss"]
        checks.within(f"{label}: values of the losses", max(abs(a / b - 1) for a, b in zip(ours, sums)), VALUES)


def check_pooled(checks, ref, trireme, folder, family, model):
    """Transformers' own loss over all layers and tokens of a batch."""
    import torch
    import torch.nn.functional as F
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    reference = build(family, model, 9)
    path, corpus = os.path.join(folder, "model"), os.path.join(folder, "corpus.bin")
    reference.save_pretrained(path)
    stream = torch.randint(97, (4 * LENGTH + 1,), generator=torch.Generator().manual_seed(4))
    write_tokens(corpus, stream.tolist())
    # One step reads the whole corpus; the order of its sequences does not matter.
    out = reference(input_ids=stream[:-1].view(4, LENGTH), output_router_logits=True)
    experts, per_token = reference.config.num_local_experts if family == "mixtral" else reference.config.num_experts, reference.config.num_experts_per_tok
    aux = AUX * load_balancing_loss_func(out.router_logits, experts, per_token)
    reference.zero_grad(set_to_none=True)
    (F.cross_entropy(out.logits.flatten(0, 1), stream[1:]) + aux).backward()
    gradients, before = ref.gradients_of(reference), ref.weights_of(reference)
    for ranks, mesh, micro in ((1, "", 4), (2, "expert: 2", 2), (4, "context: 2 tensor: 2", 4)):
        label = f"{family}, pooled, {ranks} ranks {mesh}".rstrip()
        trained = os.path.join(folder, f"pooled{ranks}")
        more = f'export {{ output: "{trained}" dtype: FP32 }} loss {{ router_aux_loss: {AUX} router_aux_scope: STEP }} recompute {{ policy: {"BLOCK" if ranks == 2 else "NONE"} }}'
        config, run_dir = recipe(folder, f"pooled_run{ranks}", f'from: "{path}"', corpus, mesh=mesh, more=more)
        trireme("train", config, "--set", f"micro_batch_size={micro}", ranks=ranks)
        compare_gradients(checks, label, before, ref.weights_of(load(trained)[0]), gradients)
        checks.within(f"{label}: value of the loss", abs(records(run_dir)[0]["router_aux_loss"] / aux.item() - 1), VALUES)


def check_parallel_peer(checks, ref, trireme, folder, family, model):
    """Gradients with `expert: 2` are those of Transformers' expert parallelism by all-to-all on two ranks, each with two of the four sequences."""
    import subprocess

    import torch
    from safetensors.torch import load_file, save_file

    reference = build(family, model, 11)
    path, stream_file, theirs = (os.path.join(folder, name) for name in ("model", "stream.safetensors", "gradients.safetensors"))
    reference.save_pretrained(path)
    stream = torch.randint(97, (4 * LENGTH + 1,), generator=torch.Generator().manual_seed(5))
    save_file({"stream": stream, "shape": torch.tensor([4, LENGTH])}, stream_file)
    write_tokens(os.path.join(folder, "corpus.bin"), stream.tolist())
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "expert_parallel_peer.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, script, path, stream_file, theirs], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise RuntimeError(f"Transformers' expert parallelism ended with {done.returncode}:\n{done.stderr[-3000:]}")
    gradients, before = load_file(theirs), ref.weights_of(reference)
    loss = gradients.pop("loss").item()
    for ranks, mesh in ((2, "expert: 2 shard: PARAMETERS"), (4, "expert: 2 tensor: 2 shard: OPTIMIZER")):
        out = os.path.join(folder, f"out{ranks}")
        config, run_dir = recipe(folder, f"run{ranks}", f'from: "{path}"', os.path.join(folder, "corpus.bin"), mesh=mesh, more=f'export {{ output: "{out}" dtype: FP32 }}')
        trireme("train", config, ranks=ranks)
        checks.within(f"{family}, {ranks} ranks {mesh}: loss of expert parallelism of Transformers", abs(first_loss(run_dir) / loss - 1), 1e-6)
        compare_gradients(checks, f"{family}, {ranks} ranks {mesh}, against expert parallelism of Transformers", before, ref.weights_of(load(out)[0]), gradients)


def run(checks, probe, trireme):
    import conversation_oracle as conversation
    import reference as ref
    import torch
    from transformers import AutoTokenizer

    def own(name):
        path = os.path.join(folder, name)
        os.makedirs(path)
        return path

    with tempfile.TemporaryDirectory(prefix="trireme_experts_") as folder:
        check_parallel_peer(checks, ref, trireme, own("olmoe"), "olmoe", dict(num_experts=8, num_experts_per_tok=2, intermediate_size=48, **NO_PAD))
        check_parallel_peer(checks, ref, trireme, own("qwen3_moe_peer"), "qwen3_moe", QWEN)
        check_bias(checks, ref, probe, trireme, own("bias"))
        path = own("corpus")
        write_tokens(os.path.join(path, "corpus.bin"), torch.randint(97, (20 * LENGTH + 1,), generator=torch.Generator().manual_seed(61)).tolist())
        data = f'source {{ path: "{path}/corpus.bin" }}'
        check_losses(checks, ref, probe, trireme, path, "losses of routers", build("qwen3_moe", QWEN, 7), data, 97, LENGTH)
        path = own("conversations")
        conversation.make_model(path, conversation.PLAIN)
        vocab = len(AutoTokenizer.from_pretrained(path))
        with open(os.path.join(path, "chat.jsonl"), "w") as file:
            file.writelines(json.dumps({"messages": messages}) + "\n" for messages in conversation.CONVERSATIONS)
        data = f'conversations {{ path: "{path}/chat.jsonl" tokenizer: "{path}" }}'
        check_losses(checks, ref, probe, trireme, path, "losses of routers, conversations", build("qwen3_moe", dict(QWEN, vocab_size=vocab, **NO_PAD), 8), data, vocab, LENGTH)
        check_pooled(checks, ref, trireme, own("qwen3_moe"), "qwen3_moe", dict(QWEN, num_hidden_layers=3, mlp_only_layers=[0]))
        check_pooled(checks, ref, trireme, own("mixtral"), "mixtral", dict(num_local_experts=4, num_experts_per_tok=2, intermediate_size=48))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trireme", default="build/bin/trireme")
    parser.add_argument("--probe", default="build/bin/trireme_probe", help="the binary of tests/oracle/probe.cc")
    args = parser.parse_args()
    try:
        import safetensors  # noqa: F401
        import torch
        import transformers
    except ImportError as error:
        print(f"skipped: {error}; `launch/setup.sh --tests` installs torch, transformers and safetensors into .venv")
        return SKIPPED
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    transformers.utils.logging.disable_progress_bar()

    from checks import Checks
    from probe import Probe

    checks = Checks()
    run(checks, Probe(args.probe), Program(args.trireme))
    return checks.conclude()


if __name__ == "__main__":
    sys.exit(main())
