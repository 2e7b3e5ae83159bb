"""What tells trainings and evaluations apart in a picture, and what makes two records the same one."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from statistics import fmean

from gradmem_bench.reporting.labels import settings_of, short_names
from gradmem_bench.reporting.rows import recipe
from gradmem_bench.results import RunRecord

Known = Mapping[str, RunRecord]
"""Records by the folder they are kept in (see `gradmem_bench.reporting.rows.place`)."""


_TRAINING = "training."
_LAST = (f"{_TRAINING}from", f"{_TRAINING}tuned_trials")


def inner_steps(record: RunRecord) -> tuple[int, int] | None:
    """K at training and at evaluation; `None` where the method takes no inner steps."""
    trained = record.method.parameters.get("inner_steps")
    if trained is None:
        return None
    evaluated = record.method.parameters.get("evaluation_inner_steps")
    return trained, trained if evaluated is None else evaluated


def training_recipe(record: RunRecord, known: Known) -> str:
    """A fingerprint of all that a person decided but the seed and the K of the evaluation."""
    return recipe(_evaluated_at(record, None), known)


def as_trained(record: RunRecord) -> bool:
    """Whether it was evaluated at the K that it was trained with, or takes no inner steps."""
    steps = inner_steps(record)
    return steps is None or steps[0] == steps[1]


def by_seed(records: Iterable[RunRecord], metric: str) -> dict[int | None, float]:
    """The score of each seed of one recipe; a seed that was run several times counts once, at the mean of its runs."""
    found: dict[int | None, list[float]] = {}
    for record in records:
        found.setdefault(record.training and record.training.seed, []).append(record.metrics[metric].value)
    return {seed: fmean(scores) for seed, scores in found.items()}


def labels(
    records: Sequence[RunRecord],
    known: Known,
    places: Sequence[Hashable] | None = None,
    training_places: Sequence[Hashable] | None = None,
    evaluations: bool = True,
) -> list[str]:
    """The method of each record, with as few settings as tell it from others of that method at the same place.

    Args:
        places: of each record, where in the picture it could be taken for another; by default all are in one place.
            What the state is stored as, and K at training, are told wherever they vary, whatever the places.
        training_places: the same for the settings of the training, where those are told in fewer places.
        evaluations: whether K at evaluation may be told.
    """
    places = [None] * len(records) if places is None else places
    training_places = places if training_places is None else training_places
    found = [_settings(record, known, evaluations) for record in records]
    methods = [record.method.name for record in records]
    told = {}
    for method in set(methods):
        mine = [index for index, other in enumerate(methods) if other == method]
        told[method] = _told(*([values[index] for index in mine] for values in (found, places, training_places)))
    texts = [_text(one, told[method]) for one, method in zip(found, methods, strict=True)]
    return [f"{method} ({text})" if text else method for method, text in zip(methods, texts, strict=True)]


def differences(records: Sequence[RunRecord], known: Known) -> list[str]:
    """Of each training of one method its inner steps, then every setting in which not all of them are alike."""
    found = [_settings(record, known, evaluations=False) for record in records]
    every = dict.fromkeys(name for one in found for name in one)
    varying = [name for name in every if name != _steps_name(records[0]) and len({one.get(name) for one in found}) > 1]
    steps = [str(inner_steps(record)[0]) for record in records]
    texts = [_text(one, [name for name in varying if name not in _LAST]) for one in found]
    pairs = list(zip(steps, texts, strict=True))
    # What goes with every K, or is no setting at all, is told only where nothing else tells.
    if len(set(pairs)) < len(pairs):
        pairs = [(k, _text(one, varying)) for k, one in zip(steps, found, strict=True)]
    return [f"{k}, {text}" if text else k for k, text in pairs]


def _evaluated_at(record: RunRecord, steps: int | None) -> RunRecord:
    if "evaluation_inner_steps" not in record.method.parameters:
        return record
    parameters = record.method.parameters | {"evaluation_inner_steps": steps}
    return record.model_copy(update={"method": record.method.model_copy(update={"parameters": parameters})})


def _steps_name(record: RunRecord) -> str:
    return f"{record.method.name}.inner_steps"


def _settings(record: RunRecord, known: Known, evaluations: bool) -> dict[str, str]:
    """What tells trainings and evaluations apart, in the order in which it is told."""
    steps = inner_steps(record)
    evaluated = steps[1] if evaluations and steps is not None and steps[0] != steps[1] else None
    told = settings_of(_evaluated_at(record, evaluated))
    folder = told[f"{_TRAINING}from"]
    if folder in known:
        # Every seed has a checkpoint of its own; what they share is the recipe.
        others = {name: other for name, other in known.items() if name != folder}
        told[f"{_TRAINING}from"] = recipe(known[folder], others)[:8]
    first = ["state_dtype", _steps_name(record), f"{record.method.name}.evaluation_inner_steps"]
    rest = [name for name in told if name not in (*first, *_LAST)]
    return {name: told[name] for name in (*first, *rest, *_LAST) if name in told}


def _told(settings: Sequence[Mapping[str, str]], places: Sequence, training_places: Sequence) -> list[str]:
    told: list[str] = []
    for name in dict.fromkeys(name for one in settings for name in one):
        here = training_places if name.startswith(_TRAINING) else places
        everywhere = name == "state_dtype" or name.endswith(".inner_steps")
        groups: dict[Hashable, set[str]] = {}
        for one, place in zip(settings, here, strict=True):
            where = () if everywhere else (place, *(one.get(other, "none") for other in told))
            groups.setdefault(where, set()).add(one.get(name, "none"))
        if any(len(values) > 1 for values in groups.values()):
            told.append(name)
    return told


def _text(settings: Mapping[str, str], names: Sequence[str]) -> str:
    """What is not set is not told."""
    short = short_names(names)
    shown = ((short[name], settings.get(name, "none")) for name in names)
    return ", ".join(
        value if name == "state_dtype" else f"{name} {value}"
        for name, value in shown
        if value not in ("none", "[]", "scratch")
    )
