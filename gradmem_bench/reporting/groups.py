"""Which records belong in one table, what sets the others apart, and what each table is called.

Records belong together when their numbers would differ by the method alone: same task, declaration and settings, same
data, same metrics, same backbone; a method that is a language model itself stands beside those on another.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from gradmem_bench.config import fingerprint
from gradmem_bench.errors import UserError
from gradmem_bench.reporting.caption import shared_backbone
from gradmem_bench.reporting.labels import setting_text
from gradmem_bench.reporting.rows import place, plain, recipe
from gradmem_bench.results import RunRecord

_SETTING = "task setting "


def distinct(records: Iterable[RunRecord]) -> tuple[list[RunRecord], dict[str, list[str]]]:
    """Every run once, the last found, where it was found more than once, or made again with the same configuration.

    Returns:
        The records; and by the run id of one of them those that were left out for it though they say something else.
    """
    kept: dict[str, RunRecord] = {}
    unlike: dict[str, list[str]] = {}
    found: dict[str, list[RunRecord]] = {}
    by_id: dict[str, str] = {}
    records = list(records)
    plainly = [plain(record) for record in records]
    said = [
        fingerprint([record.training and record.training.seed, recipe(record, {}), _common(record)])
        for record in plainly
    ]
    # What was asked for in vain is configured as what was not asked for.
    unasked = {
        text: record.config_hash for text, record, one in zip(said, records, plainly, strict=True) if one is record
    }
    for text, record, one in zip(said, records, plainly, strict=True):
        configured = record.config_hash if one is record else unasked.get(text, record.config_hash)
        key = by_id.setdefault(record.run_id, fingerprint([text, configured]))
        found.setdefault(key, []).append(one)
    for key, same in found.items():
        last = kept[key] = same[-1]
        others = [one.run_id for one in same[:-1] if _unlike(one, last)]
        if others:
            unlike[last.run_id] = list(dict.fromkeys(others))
    return list(kept.values()), unlike


def _unlike(one: RunRecord, other: RunRecord) -> bool:
    """Whether two records of a run disagree; of a run that was made again, whether its numbers do, but for times."""
    if one.run_id == other.run_id:
        return one.model_copy(update={"seal": other.seal}) != other
    found = [record.model_dump(include={"task", "footprint", "metrics", "capacity"}) for record in (one, other)]
    steps = [record.training and record.training.steps for record in (one, other)]
    return found[0] != found[1] or steps[0] != steps[1]


def groups_of(records: Iterable[RunRecord]) -> list[list[RunRecord]]:
    """The records that belong together, fewer pairs before more; and so with every number of the task's settings.

    A method with a backbone of its own joins the first others that it can.
    """
    groups: dict[str, list[RunRecord]] = {}
    for record in sorted(records, key=lambda record: record.method.own_backbone):
        key = fingerprint(_common(record))
        if record.method.own_backbone and key not in groups:
            mine = _common(record, backbone=False)
            others = (key for key, group in groups.items() if _common(group[0], backbone=False) == mine)
            key = next(others, key)
        groups.setdefault(key, []).append(record)
    return sorted(groups.values(), key=_sizes)


def _sizes(group: Sequence[RunRecord]) -> list[float]:
    return [value for value in group[0].task.settings.values() if isinstance(value, int | float)]


def refusal(groups: Sequence[Sequence[RunRecord]]) -> UserError:
    """The error that the groups of one task do not make one table: who they are, and all that they differ in."""
    told = [_common(group[0]) for group in groups]
    sets = [_listed([place(record) for record in group], 3, "more") for group in groups]
    texts = (f"{name} ({_listed(_values(told, name), 6, 'others')})" for name in _differing(told))
    return UserError(
        f"The records of task {groups[0][0].task.name} do not belong in one table, since they differ in "
        f"{', '.join(texts)}: {' against '.join(sets)}; --by config makes a table for each."
    )


def _listed(names: Sequence[str], most: int, rest: str) -> str:
    """The names, the last behind an "and"; so many at most."""
    if len(names) > most:
        names = [*names[:most], f"{len(names) - most} {rest}"]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def titles_of(groups: Sequence[Sequence[RunRecord]]) -> list[str]:
    """Task and backbone of each group; where several have the same, what else tells those apart.

    That is every task setting, split and limit that differs, and of versions and hashes as few as will do.
    """
    titles = [f"{group[0].task.name} · {shared_backbone(group).name}" for group in groups]
    told = [_common(group[0]) for group in groups]
    full = []
    for title, mine in zip(titles, told, strict=True):
        same = [other for one, other in zip(titles, told, strict=True) if one == title]
        names = _differing(same)
        chosen = [name for name in names if name.startswith(_SETTING) or name in ("split", "limit")]
        for name in names:
            alike = [other for other in same if _texts(other, chosen) == _texts(mine, chosen)]
            if name not in chosen and len(_values(alike, name)) > 1:
                chosen.append(name)
        texts = [f"{name.removeprefix(_SETTING)} {_brief(mine.get(name))}" for name in chosen]
        full.append(f"{title} · {', '.join(texts)}" if texts else title)
    return full


def _differing(told: Sequence[dict[str, Any]]) -> list[str]:
    return [name for name in dict.fromkeys(name for one in told for name in one) if len(_values(told, name)) > 1]


def _values(told: Sequence[dict[str, Any]], name: str) -> list[str]:
    """The different values of one name, for people."""
    return list({fingerprint(one.get(name)): _brief(one.get(name)) for one in told}.values())


def _texts(one: dict[str, Any], names: Sequence[str]) -> list[str]:
    return [fingerprint(one.get(name)) for name in names]


def _brief(value: Any) -> str:
    text = setting_text(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


def _common(record: RunRecord, backbone: bool = True) -> dict[str, Any]:
    """What all records of a table share, by the name a person knows it by."""
    task, source = record.task, record.task.source
    weights = {"backbone weights": record.backbone.weights_hash, "tokenizer": record.backbone.tokenizer}
    return {
        "task version": task.version,
        **{f"{_SETTING}{key}": value for key, value in task.settings.items()},
        "declaration": task.declaration_hash,
        "split": task.split,
        "data revision": source.revision,
        "data hash": source.content_hash,
        "data location": source.location if source.revision is source.content_hash is None else None,
        "rows in the split": source.rows,
        "limit": task.limit,
        "contexts": task.contexts,
        "queries": task.queries,
        "answer normalisation": task.normalized_answers,
        "the task's own metric": task.own_metric,
        # Only some methods rebuild their context, and older records do not say which queries were seen: that a row
        # lacks the metric does not set it apart.
        **{
            f"version of {name}": metric.version
            for name, metric in record.metrics.items()
            if name not in ("reconstruction_nats_per_token", "unseen_exact_match")
        },
        **(weights if backbone else {}),
    }
