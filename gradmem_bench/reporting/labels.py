"""What a run is called: its method, and as little as tells it from the method's other runs."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradmem_bench.config import Budget

if TYPE_CHECKING:
    from gradmem_bench.reporting.rows import Row
    from gradmem_bench.results import RunRecord


def labels(rows: "Sequence[Row]", seed_first: bool) -> list[str]:
    """The methods' names; several rows of a method under one bound are told apart by as little as will do.

    With `seed_first` the seed is told wherever it varies.
    """
    found = []
    for row in rows:
        same = [other for other in rows if (_name(other), other.bound) == (_name(row), row.bound)]
        told = [_distinctions(other, seed_first) for other in same]
        names = dict.fromkeys(name for values in told for name in values)
        mine, parts = _distinctions(row, seed_first), []
        for name in names:
            alike = [values for values in told if all(_of(values, part) == _of(mine, part) for part in parts)]
            if len({_of(values, name) for values in alike}) > 1 or (
                name == "seed" and seed_first and len({_of(values, name) for values in told}) > 1
            ):
                parts.append(name)
        # Seed last, as in "gradmem (inner_steps 5, seed 1)".
        parts.sort(key=lambda name: name == "seed")
        short = short_names(names)
        texts = [
            mine[name] if name == "run" else f"{short[name]} {_of(mine, name)}"
            for name in parts
            # Evaluated as it was trained: that goes without saying, beside rows with another K.
            if not (name.endswith(".evaluation_inner_steps") and _of(mine, name) == "none")
        ]
        found.append(f"{_name(row)} ({', '.join(texts)})" if texts else _name(row))
    return found


def settings_of(record: "RunRecord") -> dict[str, str]:
    """All that `rows.recipe` counts, in the order in which it is told; parameters and training's with their section."""
    training = record.training
    return {
        "state_dtype": record.footprint.state_dtype,
        **{f"{record.method.name}.{key}": setting_text(value) for key, value in record.method.parameters.items()},
        **{f"training.{key}": setting_text(value) for key, value in (training.config if training else {}).items()},
        "training.from": _begun(record),
        # Of the floor and the ceiling; a method's rows stand under theirs.
        "bound": str((record.budget or Budget()).bound),
        "dtype": record.environment.dtype,
        "class": record.method.implementation,
        "package": setting_text(record.method.package),
        "source": (record.method.source_hash or "none")[:12],
        "gradmem-bench": record.code.version,
    }


def short_names(names: Iterable[str]) -> dict[str, str]:
    """The names of settings without their section, as `--set` takes them; with it where two would read the same."""
    names = list(names)
    count = Counter(name.rpartition(".")[2] for name in names)
    return {name: short if count[short := name.rpartition(".")[2]] == 1 else name for name in names}


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
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _name(row: "Row") -> str:
    return row.record.method.name


def _of(values: Mapping[str, str], name: str) -> str:
    # A parameter that only some records know reads like one that was not given.
    return values.get(name, "none")


def _distinctions(row: "Row", seed_first: bool) -> dict[str, str]:
    """What may tell one row of a method from another, in the order in which it is tried.

    All that `rows.recipe` counts is among it, so that only runs of one recipe are named by their run id.
    """
    record = row.record
    seed = {"seed": ", ".join(map(str, row.seeds)) or "none"}
    return {
        **(seed if seed_first else {}),
        "backbone": record.backbone.name,
        **settings_of(record),
        "steps": "0" if record.training is None else str(record.training.steps),
        "training.from": ", ".join(dict.fromkeys(map(_begun, row.records))),
        "weights": record.backbone.weights_hash[:12],
        **seed,
        "run": record.run_id,
    }


def _begun(record: "RunRecord") -> str:
    """The run, or the file, whose weights training went on from."""
    begun = record.training and record.training.initial_checkpoint
    return begun.partition("/")[0] if begun else "scratch"
