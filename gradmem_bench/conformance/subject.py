"""What the laws are tried on: a method on one small backbone, built anew for every trial, and what it is asked."""

import copy
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from gradmem_bench import checkpoints
from gradmem_bench.backbone import Backbone
from gradmem_bench.batch import Batch, Tokens
from gradmem_bench.config import BackboneConfig, StrictModel
from gradmem_bench.loading import load_backbone
from gradmem_bench.methods.base import MemoryMethod
from gradmem_bench.registry import recipe_folder
from gradmem_bench.state import MemoryState
from gradmem_bench.tasks.base import Task
from gradmem_bench.tasks.declaration import load_task

# Large weights: attention then looks at some positions far more than at others, and a mistake in a mask shows.
_SHAPE = {"heads": 4, "max_positions": 512, "init_std": 0.2}
BACKBONES = (
    BackboneConfig(name="gpt2-2x32", **_SHAPE),
    BackboneConfig(name="neox-2x32", **_SHAPE),
    BackboneConfig(name="llama-2x32", kv_heads=2, **_SHAPE),
)
"""One small random model of each family; the Llama shares each key-value head between two heads."""
RECURRENT = (BackboneConfig(name="mamba-2x32", init_std=0.3, state_size=4),)
"""For a method that is a recurrent language model itself."""

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_SEED = 3
_MOVED = 0.05


def backbone_config(name: str) -> BackboneConfig:
    """What `--backbone` names: one of these, another random shape with weights as large, or a hub id or folder."""
    found = next((config for config in (*BACKBONES, *RECURRENT) if config.name == name), None)
    if found is None and re.fullmatch(r"[a-z0-9]+-\d+x\d+", name) and not Path(name).exists():
        found = BackboneConfig(name=name, max_positions=_SHAPE["max_positions"], init_std=_SHAPE["init_std"])
    return found or BackboneConfig(name=name)


@dataclass(frozen=True)
class Asked:
    """Contexts and one query with its target about each, in token ids."""

    contexts: list[list[int]]
    queries: list[list[int]]
    targets: list[list[int]]

    def batch(self) -> Batch:
        parts = (Tokens.from_lists(rows) for rows in (self.contexts, self.queries, self.targets))
        return Batch(*parts, torch.arange(len(self.contexts)))


@dataclass(frozen=True)
class Subject:
    """A method on one backbone.

    Args:
        folder: where its weights are saved.
    """

    method_class: type[MemoryMethod]
    parameters: StrictModel
    config: BackboneConfig
    folder: Path

    @cached_property
    def task(self) -> Task:
        """Key-value retrieval: its tokenizer serves the random backbones."""
        return load_task(recipe_folder("task") / "kv_retrieval.yaml")

    @cached_property
    def pristine(self) -> Backbone:
        """The backbone as it was before any method had it."""
        return load_backbone(self.config, self.task.tokenizer(), "cpu", _SEED)

    @cached_property
    def shape(self) -> Backbone:
        """The backbone without weights, on which the harness plans."""
        return load_backbone(self.config, self.task.tokenizer(), "meta", _SEED)

    def build(self, parameters: StrictModel | None = None, seed: int = 0) -> MemoryMethod:
        """A new method on a new copy of the backbone, its own weights moved so that none is where it starts."""
        shared = {id(self.pristine.tokenizer): self.pristine.tokenizer}
        backbone = copy.deepcopy(self.pristine, shared)
        torch.manual_seed(seed)
        method = self.method_class(backbone, self.parameters if parameters is None else parameters)
        with torch.no_grad():
            for name, parameter in method.named_parameters():
                if not name.startswith("backbone."):
                    parameter += _MOVED * torch.randn_like(parameter)
        return method.eval()

    def trained(self) -> MemoryMethod:
        """One that took an optimiser step, as a training does."""
        method = self.build().train()
        parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
        if parameters:
            optimizer = torch.optim.AdamW(parameters, lr=1e-3)
            method.loss(self.asked(1).batch()).total.backward()
            optimizer.step()
            optimizer.zero_grad()
        return method.eval()

    def save(self, method: MemoryMethod) -> Path:
        """The method's weights in a file, as a run saves them."""
        path = self.folder / f"{self.config.name.replace('/', '-')}.safetensors"
        checkpoints.save(path, checkpoints.trained_tensors(method), {})
        return path

    def asked(self, seed: int | str, lengths: Sequence[int] = (11, 23, 8), queries: int | str | None = None) -> Asked:
        """Random texts of so many symbols as contexts, each with a query and an answer.

        Args:
            queries: the seed of queries and targets; `None` is that of the contexts.
        """

        def texts(name: str, lengths: Sequence[int]) -> list[str]:
            draw = random.Random(name)
            return ["".join(draw.choices(_ALPHABET, k=length)) for length in lengths]

        other = seed if queries is None else queries
        count = len(lengths)
        encode = self.pristine.encode
        return Asked(
            self.pristine.encode_contexts(texts(f"contexts {seed}", lengths)),
            encode(texts(f"queries {other}", [2 + row % 4 for row in range(count)])),
            encode(texts(f"targets {other}", [3 - row % 2 for row in range(count)])),
        )


# --------------------------------------------------------------------------------- what is compared


@torch.no_grad()
def write(method: MemoryMethod, contexts: Sequence[list[int]]) -> list[bytes]:
    """The states of contexts, as bytes."""
    return method.write(Tokens.from_lists(contexts, method.backbone.device)).to_bytes()


@torch.no_grad()
def answers(
    method: MemoryMethod,
    states: Sequence[bytes] | MemoryState,
    queries: Sequence[list[int]],
    targets: Sequence[list[int]],
) -> list[Tensor]:
    """Nats of each query's target tokens, (t,), behind what READ makes of the state of the same row."""
    device = method.backbone.device
    state = states if isinstance(states, MemoryState) else MemoryState.from_bytes(states, device)
    asked, wanted = Tokens.from_lists(queries, device), Tokens.from_lists(targets, device)
    losses, _ = method.backbone.token_losses(method.read(state), asked, wanted)
    return [row[: len(target)].float().cpu() for row, target in zip(losses, targets, strict=True)]


@torch.no_grad()
def rebuilt(method: MemoryMethod, states: Sequence[bytes], contexts: Sequence[list[int]]) -> list[Tensor]:
    """The reconstruction loss of each context, (1,); nothing for a method that has none."""
    device = method.backbone.device
    losses = method.reconstruction_loss(MemoryState.from_bytes(states, device), Tokens.from_lists(contexts, device))
    return [] if losses is None else list(losses.float().cpu()[:, None])


def tensors(state: bytes) -> dict[str, Tensor]:
    """One state's tensors, without the batch's dimension."""
    return {name: tensor[0] for name, tensor in MemoryState.from_bytes([state]).tensors.items()}


def scales(states: Sequence[bytes]) -> dict[str, float]:
    """How far the states of several contexts lie apart, for each tensor: the yardstick of what is the same."""
    found: dict[str, float] = {}
    rows = [tensors(state) for state in states]
    for name in rows[0]:
        parts = [row[name].double() for row in rows]
        width = min((len(part) for part in parts if part.dim()), default=0)
        same = torch.stack([part[:width] if part.dim() else part for part in parts])
        spread = float((same.amax(dim=0) - same.amin(dim=0)).max()) if same.numel() else 0.0
        size = max((float(part.abs().max()) for part in parts if part.numel()), default=0.0)
        # States that are all alike are measured by themselves.
        found[name] = spread or size or 1.0
    return found


def difference(one: bytes, other: bytes, scale: dict[str, float]) -> str | None:
    """Where two states differ by more than rounding does, in words; `None` where they are the same."""
    left, right = tensors(one), tensors(other)
    if left.keys() != right.keys():
        return f"the tensors {sorted(left)} and {sorted(right)}"
    for name, tensor in left.items():
        if tensor.shape != right[name].shape:
            return f"'{name}' has the shapes {tuple(tensor.shape)} and {tuple(right[name].shape)}"
        # A quantised number may fall to either side of a boundary.
        allowed = scale.get(name, 1.0) * (1e-3 if tensor.is_floating_point() else 1e-2)
        apart = float((tensor.double() - right[name].double()).abs().max()) if tensor.numel() else 0.0
        if not apart <= allowed:
            return f"'{name}' differs by up to {apart:.3g}"
    return None


def gap(one: Sequence[Tensor], other: Sequence[Tensor], tolerance: float = 1e-3) -> str | None:
    """Where two lists of answers differ, in words; `None` where they are the same."""
    for row, (left, right) in enumerate(zip(one, other, strict=True)):
        apart = (left - right).abs()
        worst = int(apart.argmax())
        if not float(apart[worst]) <= tolerance * max(1.0, float(left[worst].abs())):
            return f"a token of row {row + 1} costs {float(left[worst]):.3f} and {float(right[worst]):.3f} nats"
    return None


def what(value: object) -> str:
    """A value in words: its type, and its length or its number."""
    if isinstance(value, Tensor):
        return f"the number {float(value):g}" if value.dim() == 0 else f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if hasattr(value, "__len__") else "")
