"""Configurations: strict pydantic models, and the YAML loader that reads what a person meant.

Stock PyYAML keeps the last of two equal keys without a word and reads `1e-4` as a string; here the
first is an error and the second a number.
"""

import json
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from gradmem_bench.errors import UserError, did_you_mean


class StrictModel(BaseModel):
    """A frozen configuration that knows no key but its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], values: dict[str, Any], where: str) -> Model:
    """`values` as a `model`; raises UserError with one sentence that names the key in `where`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = error.errors()
        # A misspelt key is a missing one as well; the spelling is what helps.
        problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    *parents, key = problem["loc"] or [""]
    name = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    # A list is what a person writes for it.
    message = f"{message[:1].lower()}{message[1:]}".replace("a valid tuple", "a list")
    if problem["type"] == "extra_forbidden":
        known = _keys(model, parents)
        raise UserError(f"{where} has no key '{name}'.{did_you_mean(str(key), known)}")
    if problem["type"] == "missing":
        raise UserError(f"{where} lacks the key '{name}'.")
    if not name:
        raise UserError(f"{where} is refused: {message}.")
    raise UserError(f"{where}: '{name}' is {problem['input']!r}, but: {message}.")


def _keys(model: Any, parents: list[str | int]) -> list[str]:
    """The keys that the model at `parents` inside `model` takes, as a person writes them."""
    for part in parents:
        fields = {info.alias or name: info for name, info in model.model_fields.items()}
        # An index, or a key of a mapping, leads into what the field before it holds.
        if part in fields:
            model = next(_models(fields[part].annotation), None)
            if model is None:
                return []
    return [info.alias or name for name, info in model.model_fields.items()]


def _models(annotation: Any) -> Iterator[Any]:
    """The models inside `X | None`, `tuple[X, ...]`, `dict[str, X]`."""
    if hasattr(annotation, "model_fields"):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


# ---------------------------------------------------------------------------------------------- YAML


class FunctionReference(str):
    """The text behind lm-eval's `!function` tag: `module.path.name`, imported only when it is called."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """In C, where PyYAML was built with it: a command reads every recipe there is."""


_Loader.add_constructor("!function", lambda loader, node: FunctionReference(loader.construct_scalar(node)))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, name: str = "value") -> Any:
    """The value of YAML `text`; raises UserError naming `name` and the line when it is not YAML."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        # On the nodes, before aliases and `<<` are put in their place: those may well repeat a key.
        _check_keys(node, name, set())
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        # What ends too early is missed behind the last line.
        last = len(text.splitlines())
        line = f", line {min(error.problem_mark.line + 1, last)}" if error.problem_mark else ""
        raise UserError(f"{name}{line} is not valid YAML: {error.problem}.") from None
    except (yaml.reader.ReaderError, ValueError) as error:
        # A character that YAML does not allow; a date such as 2026-13-01.
        reason = getattr(error, "reason", error)
        raise UserError(f"{name} is not valid YAML: {reason}.") from None


def _check_keys(node: yaml.Node, name: str, visited: set[int]) -> None:
    """Raises UserError where a mapping has a key twice. A node that has an anchor is met again, and not looked at."""
    if id(node) in visited or isinstance(node, yaml.ScalarNode):
        return
    visited.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        parts = node.value
    else:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        seen = set()
        for key in keys:
            if (key.tag, key.value) in seen:
                raise UserError(
                    f"{name}, line {key.start_mark.line + 1}: the key '{key.value}' stands here a second time."
                )
            seen.add((key.tag, key.value))
        parts = [part for pair in node.value for part in pair]
    for part in parts:
        _check_keys(part, name, visited)


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, laid over those of the files that it names under `include:`.

    A key replaces the included one whole, a mapping too: lm-eval reads the same files that way.

    Raises:
        UserError: a file is missing, is not YAML, repeats a key, holds no mapping, or includes itself.
    """
    return _load_yaml(path, ())


def _load_yaml(path: Path, including: tuple[Path, ...]) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"There is no file {path}{f', which {including[-1]} includes' if including else ''}.")
    if path.resolve() in [other.resolve() for other in including]:
        raise UserError(f"{path} includes itself, by way of {including[-1]}.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}, but a mapping of keys to values was expected.")
    included = values.pop("include", [])
    included = [included] if isinstance(included, str) else included
    if not (isinstance(included, list) and all(isinstance(other, str) for other in included)):
        raise UserError(f"{path}: 'include' is {included!r}, but a file name or a list of them was expected.")
    merged: dict[str, Any] = {}
    for other in included:
        merged |= _load_yaml(path.parent / other, (*including, path))
    return merged | values


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`: mappings are merged key by key, everything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return merged


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`["a.b=1e-4", "c=[1, 2]"]` as a nested mapping, the values read as YAML (what `--set` takes)."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise UserError(f"--set takes key=value, for example inner_steps=5; '{assignment}' is not of that form.")
        value = parse_yaml(text, f"--set {key}")
        for part in reversed(key.split(".")):
            value = {part: value}
        values = merge(values, value)
    return values


# -------------------------------------------------------------------------------------------- budgets

_UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3}


def parse_bytes(text: str) -> int:
    """`4KiB`, `1.5 MiB` or `673` in bytes; raises UserError when it is no such size or not positive."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise UserError(f"'{text}' is not a size in bytes; write for example 673, 4KiB or 1.5MiB.")
    size = float(match[1]) * _UNITS[match[2].upper()]
    if size < 1 or size != int(size):
        raise UserError(f"'{text}' is not a whole, positive number of bytes.")
    return int(size)


def format_bytes(size: float) -> str:
    """A size for people: `673 B`, `4 KiB`, `2.95 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            # From 999.5 on, three digits would be written 1e+03.
            return f"{size:.3g} {unit}" if size < 999.5 else f"{size:.0f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


StateDtype = Literal["float32", "bfloat16", "int8", "int4"]
"""How a state's floating-point tensors are stored (see gradmem_bench/state.py)."""


class Budget(StrictModel):
    """What one context's state may cost, `None` being no bound, and how it is stored to cost no more."""

    bytes: int | None = Field(default=None, ge=1)
    """State bytes per context, as serialised, without the file header."""
    positions: int | None = Field(default=None, ge=1)
    """Positions that may stand before the query at READ."""
    state_dtype: StateDtype = "float32"
    """Dtype in which the state's floating-point tensors are serialised, where it is narrower than their own."""

    @property
    def bound(self) -> "Budget":
        """What a state may cost alone, however it is stored."""
        return self.model_copy(update={"state_dtype": "float32"})

    def __str__(self) -> str:
        parts = [] if self.bytes is None else [format_bytes(self.bytes)]
        parts += [] if self.positions is None else [f"{self.positions} position{'s' * (self.positions > 1)}"]
        parts += [] if self.state_dtype == "float32" else [self.state_dtype]
        return ", ".join(parts) or "none"


# ----------------------------------------------------------------------------- what a run is made of


class BackboneConfig(StrictModel):
    """Which causal LM, and, for a random one, its shape."""

    name: str
    """A hub id, a local folder, or a small random model as FAMILY-LAYERSxWIDTH (`llama-2x64`, `mamba-4x128`)."""
    revision: str | None = None
    """The hub revision of the weights; `None` takes the newest, and the record says which that was."""
    tokenizer: str | None = None
    """A hub id or a folder for a random model's tokenizer; `None` takes the task's own, else GPT-2's."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads of a random model; `None` is one for each 32 of width up to 256, then one for each 64."""
    kv_heads: int | None = Field(default=None, ge=1)
    """Key-value heads of a random Llama; `None` is as many as heads (no grouping)."""
    max_positions: int = Field(default=1024, ge=8)
    """Positions of a random model with attention."""
    state_size: int | None = Field(default=None, ge=1)
    """Numbers that a random Mamba's scan keeps of each inner channel; `None` is 16."""
    conv_kernel: int | None = Field(default=None, ge=2)
    """Tokens that a random Mamba's convolution sees at a time; `None` is 4."""
    expand: int | None = Field(default=None, ge=1)
    """Inner channels of a random Mamba, in multiples of its width; `None` is 2."""
    init_std: float | None = Field(default=None, gt=0)
    """Standard deviation of a random model's initial weights; `None` is its family's own, 0.1 for Mamba, else 0.02."""


class Stage(StrictModel):
    """One step of a curriculum: the task with other settings, until a score or a number of steps."""

    task: dict[str, Any]
    """Task settings laid over the task's own, for example `{pairs: 2}`."""
    until: float = Field(default=0.9, gt=0, le=1)
    """The validation score on this stage's own task at which the next stage begins."""
    steps: int | None = Field(default=None, ge=1)
    """The most optimiser steps to spend here; the next stage then begins whatever the score."""


class TrainingConfig(StrictModel):
    """One training, in full; what differs between two rows of a table is visible here."""

    steps: int = Field(default=2000, ge=0)
    """Optimiser steps in all, curriculum included."""
    seconds: float | None = Field(default=None, gt=0)
    """Seconds of training after which it stops, whatever its steps; a schedule that ends at zero does so by then."""
    batch_size: int = Field(default=64, ge=1)
    """Contexts in one optimiser step."""
    queries_per_context: int | None = Field(default=None, ge=1)
    """Queries asked of each written context; `None` asks all."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Of AdamW, behind the warm-up."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps in which the learning rate rises to its own; `None` is a tenth of all steps, at most 100."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """What the learning rate does after the warm-up; cosine and linear end at zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Norm to which the gradient of all weights together is clipped."""
    accumulation_steps: int = Field(default=1, ge=1)
    """Micro-batches that `batch_size` is split into."""
    evaluate_every: int = Field(default=200, ge=1)
    """Optimiser steps between two validations; each also writes a checkpoint."""
    validation_contexts: int = Field(default=128, ge=1)
    """Contexts of the validation split that are scored each time."""
    patience: int | None = Field(default=None, ge=1)
    """Validations without a better score after which training stops; `None` never stops early."""
    stop_at: float | None = Field(default=None, gt=0)
    """The validation score at which training stops, once the curriculum is through: a share of answers that are right,
    up to 1, or in pretraining bits per byte."""
    tuned_trials: int = Field(default=0, ge=0)
    """How many configurations were tried to find this one: told to the reader of the table, and nothing else."""
    curriculum: tuple[Stage, ...] = ()
    """Easier settings of the task to go through first."""


class MethodRecipe(StrictModel):
    """A method as `--method` names it: the class, its parameters and how it is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True)

    name: str
    implementation: str = Field(alias="class")
    """`module:Class`, a MemoryMethod."""
    description: str = ""
    citation: str = ""
    parameters: dict[str, Any] = {}
    """Checked against the class's own `Parameters`."""
    training: dict[str, Any] = {}
    """What this method changes in the task's training, every key of which `gradmem-bench show TASK` explains."""
    backbone: dict[str, Any] = {}
    """The backbone of a method that is a language model itself, in place of the task's."""

    @field_validator("implementation")
    @classmethod
    def _names_a_class(cls, value: str) -> str:
        if not re.fullmatch(r"[\w.]+:\w+", value):
            raise ValueError("expected module:Class, for example my_package.methods:MyMethod")
        return value


class PretrainingRecipe(StrictModel):
    """A backbone as `--preset` names it: its shape, and how it is trained on plain text."""

    name: str
    description: str = ""
    backbone: dict[str, Any]
    """The random model that training begins with (see BackboneConfig)."""
    sequence_tokens: int = Field(default=512, ge=2)
    """Tokens predicted in one sequence; documents follow one another in it, each behind an end-of-text token."""
    training: dict[str, Any] = {}
    """See TrainingConfig; `batch_size` and `validation_contexts` are in sequences."""


def fingerprint(value: Any) -> str:
    """16 hex digits of the SHA-256 of `value` as canonical JSON: the identity of a configuration."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return sha256(text.encode()).hexdigest()[:16]
