"""Calls trireme_probe: writes its recipe, weights and tokens, reads its results."""

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass, field

import torch
from safetensors import safe_open
from safetensors.torch import save_file

ENVIRONMENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


@dataclass
class Microbatch:
    """A stream of T tokens cut into segments, each a sequence or a piece of a document."""

    tokens: torch.Tensor  # [T] int64
    targets: torch.Tensor  # [T] int64; -100: no loss
    segments: list  # lengths; their sum is T

    @property
    def positions(self):
        return torch.cat([torch.arange(n) for n in self.segments])

    @property
    def cu_seqlens(self):
        return torch.tensor([0] + self.segments).cumsum(0).to(torch.int32)

    @property
    def num_targets(self):
        return int((self.targets >= 0).sum())


@dataclass
class Request:
    recipe: str  # textproto
    weights: dict  # canonical name -> fp32 tensor; None: from the seed
    steps: list  # of lists of microbatches, all data ranks' in order
    ranks: int = 1
    flags: list = field(default_factory=list)
    overrides: list = field(default_factory=list)


def random_microbatch(vocab, segments, generator):
    """Random tokens; a segment's last token has no target."""
    stream = torch.randint(vocab, (sum(segments),), generator=generator)
    targets = torch.roll(stream, -1)
    targets[torch.tensor(segments).cumsum(0) - 1] = -100
    return Microbatch(stream, targets, list(segments))


def read_sharded(folder):
    """Whole tensors from a folder of files whose keys are rectangles at DCP_SHARDING_INFO's offsets."""
    pieces = {}
    for name in sorted(os.listdir(folder)):
        with safe_open(os.path.join(folder, name), "pt") as file:
            offsets = json.loads(file.metadata()["DCP_SHARDING_INFO"])
            for key in file.keys():
                pieces.setdefault(key, []).append((offsets[key]["saved_offsets"], file.get_tensor(key)))
    tensors = {}
    for key, parts in pieces.items():
        shape = [max(o[d] + t.shape[d] for o, t in parts) for d in range(parts[0][1].dim())]
        whole = torch.full(shape, float("nan") if parts[0][1].is_floating_point() else 0, dtype=parts[0][1].dtype)
        for offset, tensor in parts:
            whole[tuple(slice(o, o + n) for o, n in zip(offset, tensor.shape))] = tensor
        written = sum(tensor.numel() for _, tensor in parts)
        if written != whole.numel():
            raise RuntimeError(f"{folder}: the ranks wrote {written} of the {whole.numel()} elements of {key}, each must stand once")
        tensors[key] = whole
    return tensors


def write_request(folder, request):
    os.makedirs(os.path.join(folder, "weights"))
    if request.weights is not None:
        save_file({k: v.contiguous() for k, v in request.weights.items()}, os.path.join(folder, "weights", "model.safetensors"))
    tensors = {}
    for s, step in enumerate(request.steps):
        for m, microbatch in enumerate(step):
            for name in ("tokens", "targets", "positions", "cu_seqlens"):
                tensors[f"{s}.{m}.{name}"] = getattr(microbatch, name).clone()
    save_file(tensors, os.path.join(folder, "batches.safetensors"))
    with open(os.path.join(folder, "recipe.textproto"), "w") as file:
        file.write(request.recipe)


class Probe:
    def __init__(self, binary):
        self.binary = os.path.abspath(binary)

    def call(self, config, folder, ranks=1, flags=(), overrides=()):
        command = [self.binary, config, "--folder", folder, *flags]
        for override in overrides:
            command += ["--set", override]
        if ranks > 1:
            command = ["mpirun", "--bind-to", "none", "--oversubscribe", "-np", str(ranks)] + command
        threads = str(max(1, len(os.sched_getaffinity(0)) // ranks))
        environment = {"OMP_NUM_THREADS": threads, **os.environ, **ENVIRONMENT}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}")
        with open(os.path.join(folder, "result.json")) as file:
            return json.load(file)

    def run(self, request, folder=None):
        """result.json, with "gradients", "updated" and "rope" as tensors. The folder is removed unless given."""
        if folder is None:
            with tempfile.TemporaryDirectory(prefix="trireme_oracle_") as temporary:
                return self.run(request, os.path.join(temporary, "probe"))
        write_request(folder, request)
        result = self.call(os.path.join(folder, "recipe.textproto"), folder, request.ranks, request.flags, request.overrides)
        for name in ("gradients", "updated"):
            if os.path.isdir(os.path.join(folder, name)):
                result[name] = read_sharded(os.path.join(folder, name))
        with safe_open(os.path.join(folder, "rope.safetensors"), "pt") as file:
            result["rope"] = {key: file.get_tensor(key) for key in file.keys()}
        return result
