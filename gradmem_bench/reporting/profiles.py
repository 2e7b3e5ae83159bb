"""Profiles for people and programs: what `gradmem-bench profile` prints."""

import json
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from gradmem_bench.config import format_bytes
from gradmem_bench.reporting.labels import setting_text
from gradmem_bench.results import PhaseCosts, ProfileRecord, Quantity

NOTHING = "–"
_PREFIXES = ("", "k", "M", "G", "T", "P")


def format_count(value: float) -> str:
    """A large number for people, in three digits: `1.23 M`, `456 G`."""
    for prefix in _PREFIXES:
        if abs(value) < 999.5 or prefix == _PREFIXES[-1]:
            return f"{value:.3g} {prefix}".rstrip()
        value /= 1000
    raise AssertionError("unreachable")


def to_json(records: Iterable[ProfileRecord]) -> str:
    """All that was measured, in seconds and bytes; null beside a reason is unknown."""
    return json.dumps([record.model_dump(mode="json") for record in records], indent=2, ensure_ascii=False) + "\n"


def to_rich(records: Sequence[ProfileRecord]) -> Group:
    """The costs of every record, and what they are worth against the text and its KV cache; 80 columns are enough."""
    sizes = _grid("method", "state\nbytes", "READ\npos.", "READ KV\nbytes", "WRITE\nFLOPs", "READ\nFLOPs")
    times = _grid("method", "WRITE ms\n[quartiles]", "READ ms\n[quartiles]", "WRITE\npeak", "READ\npeak")
    pays = _grid(
        "method", "pays against", "in FLOPs\nfrom query", "in time\nfrom query", "state bytes\nsaved", "READ KV\nsaved"
    )
    marks: dict[str, str] = {}

    def pay(quantity: Quantity) -> str:
        if quantity.reason is None:
            return format_count(quantity.value)
        return f"{NOTHING} {marks.setdefault(quantity.reason, _mark(len(marks)))}"

    for heading, group in _groups(records):
        for grid in (sizes, times, pays):
            if heading:
                grid.add_row(Text(heading, style="italic"))
        for record in group:
            costs, footprint, label = record.costs, record.footprint, Text(record.method.name)
            sizes.add_row(
                label,
                format_bytes(footprint.state_bytes.mean),
                f"{footprint.read_positions.mean:.4g}",
                format_bytes(footprint.read_kv_bytes.mean),
                _count(costs.write.flops),
                _count(costs.read.flops),
            )
            peaks = (_bytes(phase.peak_bytes) for phase in (costs.write, costs.read))
            times.add_row(label, _milliseconds(costs.write), _milliseconds(costs.read), *peaks)
            for name, other in (("re-reading", costs.reread_text), ("KV cache", costs.keep_kv_cache)):
                if other is not None:
                    breaks = pay(other.break_even_flops), pay(other.break_even_seconds)
                    saved = _bytes(other.state_bytes_saved), _bytes(other.read_kv_bytes_saved)
                    pays.add_row(label if name == "re-reading" else "", name, *breaks, *saved)
    notes = [*_notes(records), *(f"{mark} {reason.rstrip('.')}." for reason, mark in marks.items())]
    blank = Text("")
    return Group(sizes, blank, times, blank, pays, blank, *(Text(line, style="dim") for line in notes))


def _mark(number: int) -> str:
    """a, b, ... z, aa, ab, ..."""
    return (_mark(number // 26 - 1) if number >= 26 else "") + chr(ord("a") + number % 26)


def _groups(records: Sequence[ProfileRecord]) -> Iterable[tuple[str, list[ProfileRecord]]]:
    """The records of each task and budget, under a heading where there are several."""
    groups: dict[tuple[str, str], list[ProfileRecord]] = {}
    for record in records:
        groups.setdefault((record.task, str(record.budget or "no budget")), []).append(record)
    tasks, budgets = ({key[place] for key in groups} for place in (0, 1))
    for (task, budget), group in groups.items():
        yield ", ".join(([task] if len(tasks) > 1 else []) + ([budget] if len(budgets) > 1 else [])), group


def _grid(*headers: str) -> Table:
    grid = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
    for index, header in enumerate(headers):
        grid.add_column(Text(header), justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
    return grid


def _count(quantity: Quantity) -> str:
    return NOTHING if quantity.value is None else format_count(quantity.value)


def _bytes(quantity: Quantity) -> str:
    if quantity.value is None:
        return NOTHING
    return f"{'−' if quantity.value < 0 else ''}{format_bytes(abs(quantity.value))}"


def _milliseconds(phase: PhaseCosts) -> str:
    median, low, high = (1000 * seconds for seconds in (phase.seconds, phase.seconds_low, phase.seconds_high))
    return f"{median:.3g} [{low:.3g}, {high:.3g}]"


def _notes(records: Sequence[ProfileRecord]) -> Iterable[str]:
    for record in {(one.task, one.backbone.name): one for one in records}.values():
        costs, environment = record.costs, record.environment
        yield (
            f"{record.task} on {record.backbone.name} ({record.backbone.parameter_count:,} parameters): contexts of "
            f"{costs.context_tokens:.4g} tokens, answers of up to {costs.answer_tokens}, {costs.batch_size} at a time; "
            f"{environment.device}, {environment.dtype}, {environment.threads} "
            f"thread{'s' * (environment.threads != 1)}."
        )
    settings: dict[str, dict[str, dict[str, None]]] = {}
    for record in records:
        for name, value in record.method.parameters.items():
            settings.setdefault(record.method.name, {}).setdefault(name, {})[setting_text(value)] = None
    for method, values in settings.items():
        told = (f"{name} {'/'.join(texts)}" for name, texts in values.items())
        yield f"{method}: {', '.join(told)}."
    repetitions = [phase.repetitions for one in records for phase in (one.costs.write, one.costs.read)]
    fewest, most = min(repetitions), max(repetitions)
    times = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    yield (
        f"FLOPs and times are of one context or one query; times are medians of {times} runs of the whole batch, "
        "warmed up."
    )
    unknown = {phase.peak_bytes.reason for one in records for phase in (one.costs.write, one.costs.read)} - {None}
    yield from (f"No peak: {reason}." for reason in sorted(unknown))
    yield (
        "It pays against reading the text again before every query, or keeping the context's KV cache, from so many "
        "queries of one context on. What is saved below zero is spent."
    )
