"""Every family's GGUF file in llama.cpp: exported by `trireme` from tiny random models of Transformers. Used by gguf_oracle.py."""

import contextlib
import copy
import os

import gguf
import torch
from families_oracle import sizes_of
from hf_tools import first_loss, load, read_tensors, recipe, same_bytes, write_tokens

ARCHITECTURES = {
    "gemma3_text": "gemma3", "mistral": "llama", "mixtral": "llama", "phi": "phi2", "olmo3": "olmo2", "cohere": "command-r", "glm": "chatglm", "gpt_neox": "gptneox",
    "hunyuan_v1_dense": "hunyuan-dense", "qwen3_moe": "qwen3moe", "qwen2_moe": "qwen2moe", "glm4_moe": "glm4moe", "gpt_oss": "gpt-oss",
    "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2",
}  # fmt: skip
COMMON = dict(
    vocab_size=640, hidden_size=96, intermediate_size=160, num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5,
    bos_token_id=0, eos_token_id=0, pad_token_id=None,
)  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 2000.0, "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0 + 0.05 * i for i in range(6)], "long_factor": [1.0 + 0.5 * i for i in range(6)]}
YARN = {"rope_type": "yarn", "rope_theta": 20000.0, "factor": 4.0, "original_max_position_embeddings": 32}
GRANITE = dict(embedding_multiplier=6.0, attention_multiplier=0.2, residual_multiplier=0.3, logits_scaling=3.0)
EXPERTS = dict(num_hidden_layers=2, moe_intermediate_size=64, num_experts=8, num_experts_per_tok=3)
GPT_OSS = dict(num_hidden_layers=3, head_dim=32, num_local_experts=4, num_experts_per_tok=2, intermediate_size=64, sliding_window=20, rope_parameters=dict(YARN, truncate=False))
LATENT = dict(num_hidden_layers=3, num_key_value_heads=6, q_lora_rank=40, kv_lora_rank=32, qk_nope_head_dim=24, qk_rope_head_dim=16, v_head_dim=20, moe_intermediate_size=64,
              n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=2, first_k_dense_replace=1, routed_scaling_factor=1.5, rms_norm_eps=1e-6)
GREEDY = dict(LATENT, topk_method="greedy", n_group=None, topk_group=None)
GROUPS = dict(LATENT, n_group=2, topk_group=1)
# Windows are shorter than the text, layers reach beyond a period.
MODELS = [
    ("mistral", dict(num_hidden_layers=2, head_dim=32, sliding_window=None)),
    ("llama", dict(num_hidden_layers=2, head_dim=16, rope_parameters=LINEAR)),
    ("qwen2", dict(num_hidden_layers=2)),
    ("qwen2", dict(num_hidden_layers=2, tie_word_embeddings=True, rope_parameters=LINEAR)),
    ("qwen3", dict(num_hidden_layers=2, head_dim=32, tie_word_embeddings=True)),
    ("smollm3", dict(num_hidden_layers=5, tie_word_embeddings=True)),
    ("smollm3", dict(num_hidden_layers=4, tie_word_embeddings=False, num_key_value_heads=6)),
    ("gemma2", dict(num_hidden_layers=3, head_dim=32, query_pre_attn_scalar=32, sliding_window=20, attn_logit_softcapping=4.0, final_logit_softcapping=6.0)),
    ("gemma3_text", dict(num_hidden_layers=7, head_dim=32, query_pre_attn_scalar=32, sliding_window=20, rope_parameters={
        "full_attention": {"rope_type": "linear", "rope_theta": 50000.0, "factor": 4.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 9000.0}})),
]  # fmt: skip
# Of these, F32 files alone are compared: what rounding does is the same in all.
MORE = [
    ("llama", dict(num_hidden_layers=2, attention_bias=True, mlp_bias=True)),
    ("llama", dict(num_hidden_layers=2, head_dim=32, rope_parameters=YARN)),
    ("qwen3", dict(num_hidden_layers=2, head_dim=32, rope_parameters=dict(YARN, attention_factor=1.1386294361119891, beta_fast=32.0, beta_slow=1.0))),
    ("arcee", dict(num_hidden_layers=2, head_dim=32, rope_parameters=LLAMA3)),
    ("seed_oss", dict(num_hidden_layers=2, head_dim=32, attention_dropout=0.0, residual_dropout=0.0)),
    ("ernie4_5", dict(num_hidden_layers=2, head_dim=32)),
    ("hunyuan_v1_dense", dict(num_hidden_layers=2, head_dim=32, rope_parameters=dict(rope_type="dynamic", rope_theta=10000.0, factor=1.0, alpha=1000.0))),
    ("apertus", dict(num_hidden_layers=2, rope_parameters=dict(LLAMA3, rope_theta=10000.0), attention_bias=True)),
    ("exaone4", dict(num_hidden_layers=64, hidden_size=24, num_attention_heads=2, num_key_value_heads=1, intermediate_size=32, sliding_window=20)),
    ("exaone4", dict(num_hidden_layers=2, sliding_window=None, layer_types=["full_attention"] * 2, rope_parameters=dict(LLAMA3, rope_theta=10000.0))),
    ("gemma", dict(num_hidden_layers=2, head_dim=32, num_key_value_heads=1)),
    ("glm", dict(num_hidden_layers=2, head_dim=16)),
    ("glm4", dict(num_hidden_layers=2, head_dim=32, attention_bias=True)),
    ("olmo", dict(num_hidden_layers=2, clip_qkv=0.6)),
    ("olmo2", dict(num_hidden_layers=2)),
    ("olmo3", dict(num_hidden_layers=4, sliding_window=20, layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"], rope_parameters={
        "full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0}})),
    ("granite", dict(GRANITE, num_hidden_layers=2, attention_bias=True, mlp_bias=True)),
    ("cohere", dict(num_hidden_layers=2, logit_scale=0.25)),
    ("cohere", dict(num_hidden_layers=64, hidden_size=32, num_attention_heads=2, num_key_value_heads=1, intermediate_size=32, use_qk_norm=True, logit_scale=2.0)),
    ("cohere2", dict(num_hidden_layers=5, logit_scale=0.5, sliding_window=20)),
    ("cohere2", dict(num_hidden_layers=3, sliding_window=20, layer_types=["full_attention", "sliding_attention", "full_attention"])),
    ("phi", dict(num_hidden_layers=2)),
    ("phi3", dict(num_hidden_layers=2, original_max_position_embeddings=512)),
    ("phi3", dict(num_hidden_layers=2, original_max_position_embeddings=32, tie_word_embeddings=True, rope_parameters=dict(LONGROPE, partial_rotary_factor=0.75))),
    ("gpt2", dict(num_hidden_layers=2)),
    ("gpt_neox", dict(num_hidden_layers=2)),
    ("gpt_neox", dict(num_hidden_layers=2, use_parallel_residual=False)),
    ("falcon", dict(num_hidden_layers=2, multi_query=True)),
    ("falcon", dict(num_hidden_layers=2, new_decoder_architecture=True, num_kv_heads=2)),
    ("bloom", dict(num_hidden_layers=2)),
    ("starcoder2", dict(num_hidden_layers=2, sliding_window=None)),
    ("stablelm", dict(num_hidden_layers=2, use_qkv_bias=True)),
    ("stablelm", dict(num_hidden_layers=2, use_parallel_residual=True, qk_layernorm=True)),
    ("nemotron", dict(num_hidden_layers=2, attention_bias=True, mlp_bias=True)),
    ("qwen3_moe", dict(EXPERTS, head_dim=32, norm_topk_prob=True)),
    ("qwen2_moe", dict(EXPERTS, shared_expert_intermediate_size=96)),
    ("mixtral", dict(num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=2, intermediate_size=64)),
    ("olmoe", dict(num_hidden_layers=2, num_experts=8, num_experts_per_tok=2, intermediate_size=64, num_key_value_heads=6)),
    ("glm4_moe", dict(num_hidden_layers=3, head_dim=16, moe_intermediate_size=64, n_routed_experts=8, num_experts_per_tok=3, n_group=2, topk_group=1, n_shared_experts=2,
                      routed_scaling_factor=1.5, use_qk_norm=True, attention_bias=True)),
    ("granitemoe", dict(GRANITE, num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=2, intermediate_size=64)),
    ("gpt_oss", GPT_OSS),
    ("deepseek_v2", dict(GREEDY, rope_parameters=dict(YARN, mscale=0.707, mscale_all_dim=0.707))),
    ("deepseek_v2", dict(GREEDY, num_hidden_layers=27, hidden_size=32, num_attention_heads=2, num_key_value_heads=2, q_lora_rank=None, moe_intermediate_size=32)),
    ("deepseek_v3", dict(GROUPS, rope_parameters=dict(YARN, mscale=1.0, mscale_all_dim=1.0))),
    ("deepseek_v3", dict(LATENT, n_group=1, topk_group=1, norm_topk_prob=False, tie_word_embeddings=True)),
]  # fmt: skip
# What llama.cpp would compute otherwise, and what is said.
REFUSED = [
    ("qwen3_moe", dict(EXPERTS, head_dim=32), '"qwen3moe" always has norm_topk_prob true'),
    ("qwen3_moe", dict(EXPERTS, norm_topk_prob=True, mlp_only_layers=[0]), "mlp_only_layers lists 1 without"),
    ("qwen2_moe", dict(EXPERTS, norm_topk_prob=True, shared_expert_intermediate_size=96), '"qwen2moe" always has norm_topk_prob false'),
    ("olmoe", dict(num_hidden_layers=2, num_experts=4, num_experts_per_tok=2, clip_qkv=0.5, num_key_value_heads=6), "always has clip_qkv 0"),
    ("olmoe", dict(num_hidden_layers=2, num_experts=4, num_experts_per_tok=2), "as many key-value heads as heads"),
    ("mixtral", dict(num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=2, sliding_window=20), "has no sliding window"),
    ("starcoder2", dict(num_hidden_layers=2, sliding_window=20), "has no sliding window"),
    ("starcoder2", dict(num_hidden_layers=2, sliding_window=None, use_bias=False), '"starcoder2" always has attention_bias true'),
    ("phi3", dict(num_hidden_layers=2, sliding_window=20), "has no sliding window"),
    ("exaone4", dict(num_hidden_layers=4, sliding_window=20), '"exaone4" always has sliding_window 0'),
    ("cohere", dict(num_hidden_layers=2, use_qk_norm=True), '"command-r" always has use_qk_norm false'),
    ("cohere", dict(num_hidden_layers=2, tie_word_embeddings=False), "has no head apart from the embedding"),
    ("olmo2", dict(num_hidden_layers=2, tie_word_embeddings=True), "needs a head apart from the embedding"),
    ("olmo2", dict(num_hidden_layers=2, attention_bias=True), '"olmo2" would have attention_bias false'),
    ("falcon", dict(num_hidden_layers=2, multi_query=False, parallel_attn=False, num_kv_heads=None), '"falcon" always has parallel_attn true'),
    ("gpt2", dict(num_hidden_layers=2, activation_function="gelu"), '"gpt2" always has hidden_act "gelu_new", the model has "gelu"'),
    ("phi", dict(num_hidden_layers=2, qk_layernorm=True), '"phi2" always has use_qk_norm false'),
    ("arcee", dict(num_hidden_layers=2, mlp_bias=True), '"arcee" would have mlp_bias false'),
    ("helium", dict(num_hidden_layers=2, head_dim=16), 'the family "helium" has no architecture'),
    ("opt", dict(num_hidden_layers=2, hidden_size=64, num_attention_heads=4), 'the family "opt" has no architecture'),
    ("qwen2", dict(num_hidden_layers=2, rope_parameters=dict(YARN, beta_fast=16.0)), "yarn_beta_fast is 16, but llama.cpp takes 32"),
    ("llama", dict(num_hidden_layers=2, rope_parameters=dict(YARN, attention_factor=1.5)), "yarn_attn_factor is 1.5, but llama.cpp takes 1.1386"),
    ("llama", dict(num_hidden_layers=2, rope_parameters=dict(YARN, mscale=0.7, mscale_all_dim=0.9)), "has no rope_scaling YARN of this kind"),
    ("qwen2", dict(num_hidden_layers=2, rope_parameters=dict(YARN, truncate=False)), '"qwen2" has yarn with truncate true'),
    ("gpt_oss", dict(GPT_OSS, rope_parameters=YARN), '"gpt-oss" has yarn with truncate false'),
    ("gpt_oss", dict(GPT_OSS, swiglu_limit=5.0), '"gpt-oss" always has swiglu_limit 7, the model has 5'),
    ("gpt_oss", dict(GPT_OSS, swiglu_alpha=1.5), '"gpt-oss" always has swiglu_alpha 1.702, the model has 1.5'),
    ("gpt_oss", dict(GPT_OSS, attention_bias=False), '"gpt-oss" always has attention_bias true'),
    ("gpt_oss", dict(GPT_OSS, layer_types=["full_attention", "sliding_attention", "full_attention"]), "in the model, layer 0 differs"),
    ("gpt_oss", dict(GPT_OSS, tie_word_embeddings=True), "needs a head apart from the embedding"),
    ("deepseek_v2", dict(GREEDY, rms_norm_eps=1e-5), 'rms_norm_eps is 1e-05, but architecture "deepseek2" is read with 1e-06 only'),
    ("deepseek_v2", dict(GROUPS, topk_method="group_limited_greedy"), 'n_group is 2, but architecture "deepseek2" is read with 1 only'),
    ("deepseek_v2", dict(GREEDY, q_lora_rank=None), "q_lora_rank is 0 with 3 layers"),
    ("deepseek_v2", dict(GREEDY, rope_parameters=YARN), "yarn_log_multiplier is 0 for a factor of 4"),
    ("deepseek_v2", dict(GREEDY, rope_parameters=LINEAR), "rope.scaling.factor is 4, by which llama.cpp scales the scores, too"),
    ("deepseek_v3", dict(GROUPS, num_hidden_layers=26), "q_lora_rank is 40 with 26 layers"),
    ("deepseek_v3", dict(GROUPS, rope_interleave=False), '"deepseek2" always has rope_interleave true'),
    ("deepseek_v3", dict(GROUPS, attention_bias=True), '"deepseek2" always has attention_bias false'),
    ("deepseek_v3", dict(GROUPS, rope_parameters=dict(YARN, mscale=1.0, mscale_all_dim=0.8)), "has no rope_scaling YARN of this kind"),
]  # fmt: skip


# Gates so large that GELU's table is hardly used. Small ones differ by steps of the table.
BEYOND_TABLE = 1024.0


def build(family, sizes, gates):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(17)
    common = COMMON if hasattr(AutoConfig.for_model(family), "rms_norm_eps") else {k: v for k, v in COMMON.items() if k != "rms_norm_eps"}
    config = AutoConfig.for_model(family, **sizes_of(family, {**common, **sizes}))
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.dim() == 1 and name.endswith("weight")
            one = 1.0 if is_norm and "gemma" not in family and family != "nemotron" else 0.0
            # Coarse enough that 1 + w, which Gemma's norms are stored as, is exact.
            values = torch.randn_like(parameter) * 0.1 + one
            # gpt-oss's limits are reached.
            larger = gates if "gate_proj" in name else 4.0 if "gate_up_proj" in name and family == "gpt_oss" else 1.0
            parameter.copy_((values * 2**20).round() / 2**20 * larger)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn_like(buffer) * 0.1)
    return model


def is_gelu(module):
    return "gelu" in type(module).__name__.lower()


@contextlib.contextmanager
def half_precision_gelu(model):
    """llama.cpp looks GELU, by its tanh formula, up in a table of 16-bit numbers, between -10 and 10."""

    def table(x):
        inside = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x.abs() < 10, inside, torch.relu(x))

    changed = [module for module in model.modules() if is_gelu(module)]
    for module in changed:
        module.forward = table
    yield
    for module in changed:
        del module.forward


@contextlib.contextmanager
def rounded_ramp(model):
    """llama.cpp rounds the ends of YaRN's ramp in gpt-oss, too, whose configuration says that they are not."""
    if model.config.model_type != "gpt_oss":
        yield
        return
    config, rotation = copy.deepcopy(model.config), model.model.rotary_emb
    config.rope_parameters = {**config.rope_parameters, "truncate": True}
    model.model.rotary_emb = type(rotation)(config)
    yield
    model.model.rotary_emb = rotation


def rms(a, b):
    return float(((a - b) ** 2).mean() ** 0.5)


def check_model(checks, trireme, folder, train_tokenizer, text, llama_cpp, number, family, sizes, gates, kinds):
    label = f"{family} {number}"
    path = lambda name: os.path.join(folder, f"family{number}{name}")  # noqa: E731
    model = build(family, sizes, gates)
    model.save_pretrained(path(""))
    trained = train_tokenizer(os.path.join(path(""), "tokenizer.json"), 636)
    for kind in kinds:
        trireme("export", path(""), "--format", "gguf", "--dtype", kind, "--output", path(f"-{kind}.gguf"))
    fields = gguf.GGUFReader(path("-F32.gguf")).fields
    checks.equal(f"{label}: architecture", fields["general.architecture"].contents(), ARCHITECTURES.get(family, family))
    trireme("export", path("-F32.gguf"), "--output", path("-back"))
    checks.equal(f"{label}: tensors changed by a GGUF file in between", same_bytes(read_tensors(path("-back")), read_tensors(path(""))), [])
    back, complaints = load(path("-back"))
    checks.equal(f"{label}: Transformers' complaints about the way back", complaints, [])
    ids = trained.encode(text).ids[:100]
    with torch.no_grad():
        worst = (back(torch.tensor([ids])).logits - model(torch.tensor([ids])).logits).abs().max().item()
    checks.within(f"{label}: logits after the way back", worst, 0)
    if not llama_cpp:
        return
    for kind in kinds if gates == 1.0 else ("F32",):
        stored = model
        if kind != "F32":
            trireme("export", path(f"-{kind}.gguf"), "--dtype", "f32", "--output", path(f"-{kind}"))
            stored, _ = load(path(f"-{kind}"))
        with half_precision_gelu(stored), rounded_ramp(stored):
            difference, rounding = llama_cpp.difference_and_rounding(path(f"-{kind}.gguf"), stored, kind, trained, ids)
        # As in check_models of gguf_oracle.py.
        bound = 4 * 2**-20 if kind == "F32" else 2 * rounding
        if kind == "F32" and gates == 1.0 and any(is_gelu(module) for module in stored.modules()):
            exact = llama_cpp.log_probabilities(stored, ids)
            with half_precision_gelu(stored):
                bound = rms(llama_cpp.log_probabilities(stored, ids), exact)
        checks.within(f"{label}: {kind}: log-probabilities of llama.cpp against Transformers", difference, bound)


def check_ranks(checks, trireme, folder, train_tokenizer):
    """Files read and written by four ranks: stacks of experts, fused and reordered rows."""
    meshes = ["tensor: 2 pipeline: 2 expert: 2", "tensor: 2 pipeline: 2", "tensor: 2 data_shard: 2"]
    for family, mesh in (("qwen3_moe", meshes[0]), ("gpt_oss", meshes[0]), ("deepseek_v3", meshes[2]), ("gpt_neox", meshes[1]), ("phi3", meshes[2])):
        path = os.path.join(folder, f"ranks_{family}")
        build(family, next(sizes for name, sizes in MORE if name == family), 1.0).save_pretrained(path)
        train_tokenizer(os.path.join(path, "tokenizer.json"), 636)
        trireme("export", path, "--format", "gguf", "--dtype", "f32", "--output", path + ".gguf")
        write_tokens(path + ".bin", [(i * 7919) % 600 for i in range(2000)])
        losses = []
        for source, ranks, parallel in ((path, 1, ""), (path + ".gguf", 4, mesh)):
            more = f'export {{ format: GGUF dtype: FP32 output: "{path}-run{ranks}.gguf" }}'
            config, run_dir = recipe(folder, f"ranks_{family}_run{ranks}", f'from: "{source}"', path + ".bin", rate=0, mesh=parallel, more=more, length=64)
            trireme("train", config, ranks=ranks)
            losses.append(first_loss(run_dir))
        checks.within(f"{family}: loss of 4 ranks from the GGUF file", abs(losses[1] / losses[0] - 1), 1e-6)
        ours, theirs = ({t.name: t.data.tobytes() for t in gguf.GGUFReader(file).tensors} for file in (path + "-run4.gguf", path + ".gguf"))
        checks.equal(f"{family}: tensors of the file that 4 ranks write", [n for n in {*ours, *theirs} if ours.get(n) != theirs.get(n)], [])


def check_mxfp4(checks, trireme, folder, train_tokenizer):
    """Experts as published files have them: quantized by the package gguf, their values are those that it dequantizes to."""
    path = os.path.join(folder, "mxfp4")
    build("gpt_oss", GPT_OSS, 1.0).save_pretrained(path)
    train_tokenizer(os.path.join(path, "tokenizer.json"), 636)
    trireme("export", path, "--format", "gguf", "--dtype", "f32", "--output", path + "-f32.gguf")
    reader, writer = gguf.GGUFReader(path + "-f32.gguf"), gguf.GGUFWriter(path + ".gguf", "gpt-oss")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    kind, values = gguf.GGMLQuantizationType.MXFP4, {}
    for tensor in reader.tensors:
        data = tensor.data
        if tensor.name.endswith("_exps.weight"):
            codes = gguf.quantize(data, kind)
            values[tensor.name] = torch.from_numpy(gguf.dequantize(codes, kind).reshape(data.shape))
            writer.add_tensor(tensor.name, codes, raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    trireme("export", path + ".gguf", "--output", path + "-back")
    back, wrong = read_tensors(path + "-back"), []
    for layer in range(GPT_OSS["num_hidden_layers"]):
        gate, up, down = (values[f"blk.{layer}.ffn_{part}_exps.weight"].mT for part in ("gate", "up", "down"))
        together = torch.stack((gate, up), -1).reshape(*gate.shape[:2], -1)
        for name, expected in (("gate_up_proj", together), ("down_proj", down)):
            if not torch.equal(back[f"model.layers.{layer}.mlp.experts.{name}"].float(), expected):
                wrong.append(f"{layer} {name}")
    checks.equal("MXFP4 in GGUF: experts whose values differ from those of the package gguf", wrong, [])


def check_adapter(checks, trireme, folder):
    """An adapter as llama.cpp's converter writes it: B in the order of the base's rows."""
    from gguf_program import permuted
    from peft_oracle import wrap

    for family, why in (("granite", None), ("phi3", "is no tensor of its own"), ("qwen3_moe", None), ("deepseek_v3", "applies no adapter to blk.0.attn_q_a.weight")):
        path = os.path.join(folder, f"lora_{family}")
        model = build(family, next(sizes for name, sizes in MORE if name == family), 1.0)
        model.save_pretrained(path)
        targets = {"phi3": ["qkv_proj"], "deepseek_v3": ["q_a_proj", "o_proj"]}.get(family, ["q_proj", "k_proj", "v_proj", "o_proj"])
        wrapped = wrap(model, dict(r=4, lora_alpha=8, target_modules=targets), 5)
        wrapped.save_pretrained(path + "-adapter")
        said = trireme("export", path, "--adapter", path + "-adapter", "--format", "gguf-lora", "--output", path + ".gguf", fails=why is not None)
        if why:
            checks.equal(f"{family}: an adapter is refused, which {why}: {'' if why in said else said}", why in said, True)
            continue
        state = read_tensors(path + "-adapter")
        heads = {"q": model.config.num_attention_heads, "k": model.config.num_key_value_heads} if family == "granite" else {}
        wrong = []
        for tensor in gguf.GGUFReader(path + ".gguf").tensors:
            _, layer, part, _, which = tensor.name.split(".")  # blk.0.attn_q.weight.lora_b
            letter = {"attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "o"}[part]
            value = state.pop(f"base_model.model.model.layers.{layer}.self_attn.{letter}_proj.{which[:-1]}{which[-1].upper()}.weight").numpy()
            if which == "lora_b" and letter in heads:
                value = permuted(value, heads[letter])
            if tensor.data.tobytes() != value.tobytes():
                wrong.append(tensor.name)
        checks.equal(f"{family}: tensors of the adapter's file that differ from PEFT's, and those that it lacks", [wrong, sorted(state)], [[], []])


def check(checks, trireme, folder, train_tokenizer, text, llama_cpp, only=""):
    check_ranks(checks, trireme, folder, train_tokenizer)
    check_mxfp4(checks, trireme, folder, train_tokenizer)
    check_adapter(checks, trireme, folder)
    every = ("F32", "BF16", "Q8_0")
    cases = [(family, sizes, 1.0, every) for family, sizes in MODELS] + [(family, sizes, BEYOND_TABLE, every) for family, sizes in MODELS if "gemma" in family]
    cases += [(family, sizes, 1.0, ("F32",)) for family, sizes in MORE]
    for number, (family, sizes, gates, kinds) in enumerate(cases):
        if only in family:
            check_model(checks, trireme, folder, train_tokenizer, text, llama_cpp, number, family, sizes, gates, kinds)
    for number, (family, sizes, why) in enumerate(REFUSED):
        if only not in family:
            continue
        path = os.path.join(folder, f"refused{number}")
        build(family, sizes, 1.0).save_pretrained(path)
        said = trireme("export", path, "--format", "gguf", "--output", path + ".gguf", fails=True)
        checks.equal(f"{family}: a refusal says that {why}: {said if why not in said else ''}", why in said, True)
