"""What a row is called: its method, and as little as tells it from the method's other rows."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradmem_bench.config import Budget

if TYPE_CHECKING:
    from gradmem_bench.reporting.rows import Row
    from gradmem_bench.results import RunRecord

_TAKEN = {"backbone", "state_dtype", "steps", "from", "bound", "dtype", "weights", "class", "package", "source"}
_TAKEN |= {"gradmem-bench", "seed", "run"}
"""What is told beside settings: a setting of such a name is told with its section."""


def labels(rows: "Sequence[Row]", seed_first: bool) -> list[str]:
    """The methods' names; several rows of a method under one bound are told apart by as little as will do.

    With `seed_first` the seed is told wherever it varies.
    """
    found = []
    for row in rows:
        same = [other for other in rows if (_name(other), other.bound) == (_name(row), row.bound)]
        told = [_distinctions(other, seed_first) for other in same]
        mine, parts = _distinctions(row, seed_first), []
        for name in dict.fromkeys(name for values in told for name in values):
            alike = [values for values in told if all(_of(values, part) == _of(mine, part) for part in parts)]
            if len({_of(values, name) for values in alike}) > 1 or (
                name == "seed" and seed_first and len({_of(values, name) for values in told}) > 1
            ):
                parts.append(name)
        # Seed last, as in "gradmem (inner_steps 5, seed 1)".
        parts.sort(key=lambda name: name == "seed")
        texts = [mine[name] if name == "run" else f"{name} {_of(mine, name)}" for name in parts]
        found.append(f"{_name(row)} ({', '.join(texts)})" if texts else _name(row))
    return found


def setting_text(value: Any) -> str:
    """The value of a setting, written as `--set` takes it; `none` where there is none."""
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {setting_text(one)}' for key, one in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(setting_text, value))}]"
    return str(value)


def _name(row: "Row") -> str:
    return row.record.method.name


def _of(values: Mapping[str, str], name: str) -> str:
    # A parameter that only some records know reads like one that was not given.
    return values.get(name, "none")


def _distinctions(row: "Row", seed_first: bool) -> dict[str, str]:
    """What may tell one row of a method from another, in the order in which it is tried.

    All that `rows.recipe` counts is among it, so that only runs of one recipe are named by their run id.
    """
    record, training = row.record, row.record.training
    seed = {"seed": ", ".join(map(str, row.seeds)) or "none"}
    budget = record.budget or Budget()
    parameters = _settings(_TAKEN, record.method.name, record.method.parameters)
    return {
        **(seed if seed_first else {}),
        "backbone": record.backbone.name,
        "state_dtype": row.state_dtype,
        **parameters,
        "steps": "0" if training is None else str(training.steps),
        **_settings(_TAKEN | set(parameters), "training", {} if training is None else training.config),
        "from": ", ".join(dict.fromkeys(map(_begun, row.records))),
        # Of the floor and the ceiling; a method's rows stand under theirs.
        "bound": str(budget.bound),
        "dtype": record.environment.dtype,
        "weights": record.backbone.weights_hash[:12],
        "class": record.method.implementation,
        "package": setting_text(record.method.package),
        "source": (record.method.source_hash or "none")[:12],
        "gradmem-bench": record.code.version,
        **seed,
        "run": record.run_id,
    }


def _settings(taken: set[str], section: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Settings by the names that `--set` takes: with their section only where the name is taken."""
    return {f"{section}.{key}" if key in taken else key: setting_text(value) for key, value in values.items()}


def _begun(record: "RunRecord") -> str:
    """The run, or the file, whose weights training went on from."""
    begun = record.training and record.training.initial_checkpoint
    return begun.partition("/")[0] if begun else "scratch"
