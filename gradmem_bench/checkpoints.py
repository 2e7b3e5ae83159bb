"""Checkpoints: one safetensors file each, replaced in one step, so that a kill leaves the old one or the new one."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gradmem_bench.errors import UserError

SCHEMA_VERSION = 1
METHOD_FILE = "method.safetensors"


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters under their names, each tied one once."""
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def save(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Writes `tensors` and the JSON-able `about` to `path`, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    header = {"schema_version": str(SCHEMA_VERSION), "about": json.dumps(about)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=header)
    os.replace(temporary, path)


def share(source: Path, path: Path) -> None:
    """Puts the checkpoint `source` at `path` too: under a second name, or as a copy where the file system has none."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, path)


def load(path: Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save` wrote; raises UserError when the file is missing, damaged, or of another schema."""
    about = read_about(path)
    # Of several processes on a CPU accelerate calls each one's device by a number, which safetensors does not know.
    with safe_open(path, "pt", device="cpu" if device.startswith("cpu") else device) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, about


def read_about(path: Path) -> dict[str, Any]:
    """The `about` of a checkpoint, without its tensors."""
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}.")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"The checkpoint {path} is damaged or no safetensors file ({error}).") from None
    if header.get("schema_version") != str(SCHEMA_VERSION):
        found = header.get("schema_version", "none")
        raise UserError(f"The checkpoint {path} has schema {found}, but this version reads schema {SCHEMA_VERSION}.")
    try:
        return json.loads(header["about"])
    except (KeyError, ValueError):
        raise UserError(f"The checkpoint {path} is damaged: its header does not say what it holds.") from None


def check_shapes(module: nn.Module, path: Path) -> None:
    """Raises UserError naming the first parameter of `module` that the checkpoint does not fit; reads no tensor."""
    with safe_open(path, "pt") as file:
        _compare(module, {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, path)


def _compare(module: nn.Module, shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    if fault := misfit(shapes_of(module), shapes):
        raise UserError(f"The checkpoint {path} does not fit: {fault}.")


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of every parameter, by its name."""
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def misfit(here: dict[str, tuple[int, ...]], there: dict[str, tuple[int, ...]]) -> str | None:
    """The first parameter that has not the same shape in both, as a clause; `None` where all have."""
    for name in sorted(here.keys() | there.keys()):
        mine, theirs = here.get(name, "nothing"), there.get(name, "nothing")
        if mine != theirs:
            return f"'{name}' is {theirs} there and {mine} here"
    return None


def restore(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copies tensors into the module's parameters; raises UserError naming the first that does not match."""
    _compare(module, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, path)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(tensors[name])


def method_file(checkpoint: Path) -> Path:
    """The file behind `--load`: the file itself, or the one in a run's folder."""
    return checkpoint / METHOD_FILE if checkpoint.is_dir() else checkpoint
