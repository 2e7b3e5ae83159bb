"""A comparison as a table: for the terminal, for a README, for a spreadsheet, for a program."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradmem_bench.config import format_bytes
from gradmem_bench.metrics import METRICS
from gradmem_bench.reporting.comparison import BUDGET_MARK, SWAP_MARK, Comparison, Row, comparison
from gradmem_bench.results import Measured

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Comparison", "Row", "comparison", "to_csv", "to_json", "to_markdown", "to_rich"]

NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """One column of the tables for people."""

    name: str
    header: str
    """The name, as short as a terminal needs it."""
    cell: Callable[[Row], str]
    cost: bool = False
    """Whether it is about time; a terminal too narrow for all shows these in a table of their own."""


def _number(value: float | None, digits: int = 3) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _metric(name: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        found = row.metric(name)
        if found is None or found.low is None:
            return _number(found.value if found else None)
        return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"

    return cell


def _value(name: str) -> Callable[[Row], str]:
    return lambda row: _number(found.value if (found := row.metric(name)) else None)


def _size(size: Measured, unit: Callable[[float], str]) -> str:
    return f"{'~' if size.min < size.max else ''}{unit(size.mean)}"


def _positions(mean: float) -> str:
    return f"{mean:,.0f}" if mean == int(mean) or mean >= 100 else f"{mean:.1f}"


def _figures(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _train(row: Row) -> str:
    training = row.record.training
    return NOTHING if training is None else f"{training.steps:,}, {_duration(training.seconds)}"


def _label(row: Row) -> str:
    return f"{row.label} {SWAP_MARK}" if row.swap_failed else row.label


def _state(row: Row) -> str:
    mark = f" {BUDGET_MARK}" if row.over_budget else ""
    return f"{_size(row.record.footprint.state_bytes, format_bytes)}{mark}"


def _columns(table: Comparison) -> list[Column]:
    """What a terminal shows."""
    f1 = [Column("F1", "F1", _value("f1"))] if table.shows_f1 else []
    own = table.rows[0].record.task.own_metric
    return [
        Column("method", "method", _label),
        Column("exact match [95 % interval]", "exact match\n[95 % interval]", _metric("exact_match")),
        Column("normalised score", "norm.\nscore", lambda row: _number(row.normalized_score)),
        *f1,
        *([Column(f"{own} [95 % interval]", f"{own}\n[95 % interval]", _metric("task_score"))] if own else []),
        Column("state bytes", "state\nbytes", _state),
        Column("READ positions", "READ\npos.", lambda row: _size(row.record.footprint.read_positions, _positions)),
        Column("READ KV bytes", "READ KV\nbytes", lambda row: _size(row.record.footprint.read_kv_bytes, format_bytes)),
        Column(
            "WRITE ms/context",
            "WRITE\nms/context",
            lambda row: _figures(row.record.costs.write_seconds_per_context * 1000),
            cost=True,
        ),
        Column(
            "READ ms/query",
            "READ\nms/query",
            lambda row: _figures(row.record.costs.read_seconds_per_query * 1000),
            cost=True,
        ),
        Column("training steps, time", "training\nsteps, time", _train, cost=True),
    ]


def _page_columns(table: Comparison) -> list[Column]:
    """What a page shows, where there is room."""
    f1 = [Column("F1", "", _metric("f1"))] if table.shows_f1 else []
    method, exact_match, normalized_score, *rest = (column for column in _columns(table) if column.name != "F1")
    return [
        method,
        exact_match,
        normalized_score,
        *f1,
        Column("teacher-forced exact match", "", _metric("teacher_forced_exact_match")),
        Column("target bits/token", "", _metric("target_bits_per_token")),
        *rest,
        Column("state bytes per context token", "", lambda row: _figures(row.record.footprint.bytes_per_context_token)),
    ]


# ----------------------------------------------------------------------------------------- terminal

_GAP = 2


def to_rich(table: Comparison, width: int = 80) -> "RenderableType":
    """The table for a terminal of `width` characters, in two where one would be too wide."""
    from rich.console import Group
    from rich.text import Text

    columns = _columns(table)
    if sum(_width(column, table.rows) + _GAP for column in columns) <= width:
        parts = [columns]
    else:
        parts = [[column for column in columns if not column.cost], [columns[0], *(c for c in columns if c.cost)]]
    blank = Text("")
    drawn = [part for columns in parts for part in (_grid(columns, table.rows), blank)]
    notes = [Text(line, style="dim") for line in table.caption]
    return Group(Text(table.title, style="bold"), blank, *drawn, *notes)


def _width(column: Column, rows: Iterable[Row]) -> int:
    return max(len(text) for text in [*column.header.split("\n"), *(column.cell(row) for row in rows)])


def _grid(columns: Sequence[Column], rows: Sequence[Row]) -> "RenderableType":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    # The box puts one space of the gap between columns.
    grid = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0), collapse_padding=True)
    for index, column in enumerate(columns):
        # Cells are Text, since rich would take brackets for its markup.
        grid.add_column(Text(column.header), justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        role = row.record.method.role
        style = "yellow" if row.swap_failed or row.over_budget else "" if role == "method" else "dim"
        last_of_role = following is not None and following.record.method.role != role
        grid.add_row(*(Text(column.cell(row)) for column in columns), style=style, end_section=last_of_role)
    return grid


# ------------------------------------------------------------------------------------- other formats


def to_markdown(tables: Iterable[Comparison]) -> str:
    """GitHub's Markdown, one heading, table and list of notes a comparison."""
    blocks = []
    for table in tables:
        columns = _page_columns(table)
        lines = [[column.name for column in columns], ["---"] * 2 + ["---:"] * (len(columns) - 2)]
        lines += [[column.cell(row).replace("|", r"\|") for column in columns] for row in table.rows]
        grid = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        notes = "\n".join(f"- {line}" for line in table.caption)
        blocks.append(f"### {table.title}\n\n{grid}\n\n{notes}\n")
    return "\n".join(blocks)


def _flat(row: Row) -> dict[str, Any]:
    """Every number of a row and what it depends on, unrounded, in seconds and bytes."""
    record = row.record
    task, backbone, training, environment = record.task, record.backbone, record.training, record.environment
    values: dict[str, Any] = {
        "task": task.name,
        "task_version": task.version,
        "split": task.split,
        "method": record.method.name,
        "label": row.label,
        "role": record.method.role,
        "n_queries": task.queries,
        "n_contexts": task.contexts,
        "truncated_contexts": task.truncated_contexts,
        "normalized_score": row.normalized_score,
    }
    for name in METRICS:
        found = row.metric(name)
        values[name] = found.value if found else None
        values[f"{name}_low"] = found.low if found else None
        values[f"{name}_high"] = found.high if found else None
        values[f"{name}_n"] = found.n if found else None
    for name in ("state_bytes", "read_positions", "read_kv_bytes"):
        for statistic, value in getattr(record.footprint, name):
            values[f"{name}_{statistic}"] = value
    return values | {
        "budget_bytes": record.budget.bytes if record.budget else None,
        "budget_positions": record.budget.positions if record.budget else None,
        "over_budget": bool(row.over_budget),
        "context_tokens": record.footprint.context_tokens,
        "bytes_per_context_token": record.footprint.bytes_per_context_token,
        "swap_test_passed": record.swap_test.passed,
        "write_seconds_per_context": record.costs.write_seconds_per_context,
        "read_seconds_per_query": record.costs.read_seconds_per_query,
        "batch_size": record.costs.batch_size,
        **{
            f"train_{name}": getattr(training, name) if training else None
            for name in ("steps", "queries", "tokens", "flops", "seconds", "seed", "tuned_trials", "trained_parameters")
        },
        "backbone": backbone.name,
        "backbone_weights_hash": backbone.weights_hash,
        "data_location": task.source.location,
        "data_revision": task.source.revision,
        "data_hash": task.source.content_hash,
        "device": environment.device,
        "dtype": environment.dtype,
        "code_version": record.code.version,
        "code_commit": record.code.commit,
        "code_dirty": record.code.dirty,
        "config_hash": record.config_hash,
        "run_id": record.run_id,
    }


def to_csv(tables: Iterable[Comparison]) -> str:
    """All rows under one header, unrounded; what is unknown is empty."""
    rows = [_flat(row) for table in tables for row in table.rows]
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def to_json(tables: Iterable[Comparison]) -> str:
    """A list of tables, each with `title`, `rows` (unrounded; null is unknown) and `caption`."""
    values = [
        {"title": table.title, "rows": [_flat(row) for row in table.rows], "caption": table.caption} for table in tables
    ]
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
