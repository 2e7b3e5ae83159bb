"""The page: every table of the leaderboard, its chart and its records, in one HTML file that needs nothing else."""

import json
import os
import re
import shlex
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gradmem_bench.config import Budget, format_bytes
from gradmem_bench.errors import UserError
from gradmem_bench.leaderboard.check import check
from gradmem_bench.output import check_writable
from gradmem_bench.paper import PaperFigure, PaperRow, figures_of
from gradmem_bench.plotting.recipes import inner_steps
from gradmem_bench.reporting.caption import shared_backbone
from gradmem_bench.reporting.comparison import Comparison, Row, comparison
from gradmem_bench.reporting.profiles import format_count
from gradmem_bench.reporting.tables import duration, figures
from gradmem_bench.results import (
    Measured,
    PhaseCosts,
    Quantity,
    RunRecord,
    metric_results,
    metric_title,
    read_examples,
)

TEACHER_FORCED = "teacher_forced_exact_match"
NOTHING = "–"


def build(board: Path, output: Path) -> Path:
    """Writes the page of all records below `board` to `output`, with links to them relative to it.

    Every record is checked first, and its means and intervals are computed from its rows, all by today's methods.

    Raises UserError where there are no records, one is not in order, or the page cannot be written.
    """
    check_writable(output.parent)
    checked = check(board)
    for one in checked:
        if one.problems:
            raise UserError(f"There is no page of {one.path.parent}, which is not in order. {one.problems[0]}")
    examples = {one.record.run_id: read_examples(one.path.parent) for one in checked}
    found = {
        one.path: one.record.model_copy(update={"metrics": metric_results(examples[one.record.run_id])})
        for one in checked
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    here = output.parent.resolve()
    links = {record.run_id: _link(path, here) for path, record in found.items()}
    published = list(figures_of(board))
    compared = comparison(found.values(), by="config", examples=lambda record: examples[record.run_id])
    tables = [_table(number, table, links, published) for number, table in enumerate(compared, start=1)]
    output.write_text(_page(tables, published, len(checked)), encoding="utf-8")
    return output


def _link(path: Path, here: Path) -> str:
    return quote(Path(os.path.relpath(path.resolve(), here)).as_posix())


def _page(tables: list[dict[str, Any]], published: Sequence[PaperFigure], records: int) -> str:
    from jinja2 import Environment, StrictUndefined

    parts = files("gradmem_bench.leaderboard")
    names = ("page.html", "page.css", "chart.js", "page.js")
    text = {name: (parts / name).read_text(encoding="utf-8") for name in names}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    rows = [row for table in tables for row in table["rows"]]
    paper = [row for figure in published for row in figure.rows]

    def values(name: str) -> list[str]:
        return list(dict.fromkeys(row[name] for row in sorted(rows, key=lambda row: row[f"{name}_order"])))

    methods = {row["method"] for row in rows} | {row.method for row in paper}
    tasks = {row["task"] for row in rows} | {row.task for row in paper}
    return environment.from_string(text["page.html"]).render(
        style=text["page.css"],
        # No tag may begin in it: the browser would end the script element there, or hide its end.
        data=json.dumps({"tables": tables}, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
        script=text["chart.js"] + text["page.js"],
        tables=tables,
        paper=[_figure(figure) for figure in published],
        tasks=sorted(tasks),
        # One of those that the filter takes for the same.
        methods=sorted({name.lower(): name for name in sorted(methods)}.values(), key=str.lower),
        backbones=values("backbone"),
        budgets=values("budget"),
        lines=len(rows),
        runs=sum(row["runs"] for row in rows),
        records=records,
        elsewhere=any(row["inner_steps"] and len(set(row["inner_steps"])) > 1 for row in rows),
    )


# -------------------------------------------------------------------------------------------- tables


def _table(number: int, table: Comparison, links: dict[str, str], published: Sequence[PaperFigure]) -> dict[str, Any]:
    record = table.rows[0].record
    reference = [
        _paper_row(row, figure)
        for figure in published
        for row in figure.rows
        if row.value is not None
        and row.metric in (table.ranked_by, TEACHER_FORCED)
        and row.belongs(record.task.name, record.task.settings)
    ]
    return {
        "id": f"table-{number}",
        "title": record.task.name,
        "apart": _apart(table),
        "backbone": shared_backbone(record for row in table.rows for record in row.records).name,
        "metric": table.title_of(table.ranked_by),
        "asked": f"{record.task.queries:,} queries on {record.task.contexts:,} contexts",
        "settings": ", ".join(f"{key} {value}" for key, value in record.task.settings.items()),
        "rows": [_row(f"row-{number}-{index}", row, links) for index, row in enumerate(table.rows, start=1)],
        "missing": [
            f"{', '.join(section.missing)} {section.heading}".rstrip() for section in table.sections if section.missing
        ],
        "paper": reference,
        "caption": list(table.caption),
    }


def _apart(table: Comparison) -> str:
    """The pairs, and what else tells a table from others of its task and backbone."""
    found = table.title.split(" · ", 2)[2:]
    settings = table.rows[0].record.task.settings
    if "pairs" in settings and not "".join(found).startswith("pairs "):
        found.insert(0, f"pairs {settings['pairs']}")
    text = ", ".join(found).replace("limit none", "all contexts")
    return re.sub(r"\blimit (\d+)", r"\1 contexts", text)


def _row(name: str, row: Row, links: dict[str, str]) -> dict[str, Any]:
    """What the template shows of a row and what the chart draws, numbers unrounded beside their texts."""
    record, score = row.record, row.result
    steps, seconds = row.trained("steps"), row.trained("seconds")
    size, positions, kv = (row.size(name) for name in ("state_bytes", "read_positions", "read_kv_bytes"))
    write = 1000 * row.mean(lambda one: one.costs.write_seconds_per_context)
    read = 1000 * row.mean(lambda one: one.costs.read_seconds_per_query)
    budget = record.budget if record.method.role == "method" else None
    return {
        "id": name,
        "label": row.label,
        "method": record.method.name,
        "method_order": record.method.name,
        "role": record.method.role,
        "inner_steps": inner_steps(record),
        "task": record.task.name,
        "task_order": record.task.name,
        "backbone": record.backbone.name,
        "backbone_order": record.backbone.name,
        "budget": str(budget or Budget()),
        "budget_order": [
            (budget and budget.bytes) or 0,
            (budget and budget.positions) or 0,
            budget.state_dtype if budget else "",
        ],
        "score": score.value if score else None,
        "low": score.low if score else None,
        "high": score.high if score else None,
        "score_text": _number(score.value if score else None),
        "interval_text": f"[{_number(score.low)}, {_number(score.high)}]" if score and score.low is not None else "",
        "normalized": row.normalized_score,
        "normalized_text": _number(row.normalized_score),
        "runs": len(row.records),
        "seeds": [_seed(one, row, links) for one in row.records],
        "bytes": size.mean,
        "bytes_text": _size(size),
        "positions": positions.mean,
        "positions_text": _positions(positions),
        "kv": kv.mean,
        "kv_text": _size(kv),
        "write": write,
        "write_text": figures(write),
        "flops": row.flops("write"),
        "flops_text": _count(row.flops("write")),
        "read": read,
        "read_text": figures(read),
        "training": seconds,
        "training_text": NOTHING if seconds is None else f"{steps:,.0f} steps, {duration(seconds)}",
        "warnings": _warnings(row),
        "details": _details(row),
    }


def _seed(record: RunRecord, row: Row, links: dict[str, str]) -> dict[str, Any]:
    """One of a row's runs: what it scored, where its record is, the command that made it."""
    found, link = record.metrics.get(row.ranked_by), links[record.run_id]
    interval = "" if found is None or found.low is None else f" [{_number(found.low)}, {_number(found.high)}]"
    return {
        "seed": None if record.training is None else record.training.seed,
        "score": found.value if found else None,
        "score_text": f"{_number(found.value if found else None)}{interval}",
        "link": link,
        "folder": link.rpartition("/")[0] + "/",
        "command": shlex.join(record.command),
        "details": _run_details(record),
    }


def _warnings(row: Row) -> list[str]:
    failed = [
        f"did not pass the swap test: {record.swap_test.outcome.rstrip('.')}"
        for record in row.records
        if record.swap_test.passed is False
    ]
    return failed + [f"over its budget: {clause}" for clause in row.over_budget]


def _details(row: Row) -> list[tuple[str, str]]:
    """What stands in a row's fold and is the same for all its seeds, as names and texts; nothing that is not known."""
    record, source = row.record, row.record.task.source
    found = [
        ("Method", f"{record.method.implementation}{_list(record.method.parameters)}"),
        ("Paper", record.method.citation),
        ("Data", f"{source.location}, hash {(source.content_hash or source.revision or 'none')[:16]}"),
        ("Backbone", f"{record.backbone.parameter_count:,} parameters, weights {record.backbone.weights_hash[:16]}"),
        ("State stored as", record.footprint.state_dtype),
    ]
    if row.capacity is not None:
        bits, density = row.capacity.recalled_bits, row.capacity.bits_per_state_byte
        total = f" ({figures(bits)} of {row.capacity.values * row.capacity.value_bits:g} bits)" if bits else ""
        found.append(("Recalled bits per state byte", f"{_quantity(density)}{total}"))
    for name, metric in row.metrics.items():
        interval = f" [{_number(metric.low)}, {_number(metric.high)}]" if metric.low is not None else ""
        of_seeds = f", {len(row.records)} seeds" if len(row.records) > 1 else ""
        title = metric_title(name, record.task)
        found.append((title, f"{_number(metric.value)}{interval}, n {metric.n:,}{of_seeds}"))
    return [(name, text) for name, text in found if text]


def _run_details(record: RunRecord) -> list[tuple[str, str]]:
    """What is of one run alone."""
    machine, code, training, costs = record.environment, record.code, record.training, record.costs
    commit = f", commit {code.commit[:10]}{' (changed)' if code.dirty else ''}" if code.commit else ""
    found = [
        ("Environment", f"{machine.device}, {machine.dtype}, {machine.threads} threads, {machine.platform}"),
        ("Libraries", f"Python {machine.python}, torch {machine.torch}, transformers {machine.transformers}"),
        ("Code", f"gradmem-bench {code.version}{commit}"),
        ("Swap test", record.swap_test.outcome),
    ]
    if training is not None:
        flops = f", {format_count(training.flops)} FLOPs" if training.flops else ""
        begun = f"; went on from {training.initial_checkpoint}" if training.initial_checkpoint else ""
        shared = f" of {training.processes} processes" if training.processes > 1 else ""
        found.append(
            (
                "Training",
                f"seed {training.seed}, {training.steps:,} steps, {training.tokens:,} tokens{flops}, "
                f"{duration(training.seconds)}{shared}; {training.tuned_trials} settings tried before{begun}",
            )
        )
    for title, phase in (("WRITE of a context", costs.write), ("READ of a query", costs.read)):
        if phase is not None:
            found.append((title, _phase(phase)))
    for title, other in (("re-reading the text", costs.reread_text), ("keeping the KV cache", costs.keep_kv_cache)):
        if other is not None:
            even = f"{_quantity(other.break_even_flops)} by FLOPs, {_quantity(other.break_even_seconds)} by time"
            found.append((f"Queries until cheaper than {title}", even))
    return [*found, ("Run", f"{record.run_id}, {record.created}")]


def _phase(phase: PhaseCosts) -> str:
    low, high = figures(1000 * phase.seconds_low), figures(1000 * phase.seconds_high)
    flops = "" if phase.flops.value is None else f", {format_count(phase.flops.value)} FLOPs"
    return (
        f"{figures(1000 * phase.seconds)} ms (quartiles {low} to {high}, {phase.batch_size} together, "
        f"{phase.repetitions} times){flops}"
    )


def _quantity(quantity: Quantity) -> str:
    return quantity.reason or NOTHING if quantity.value is None else figures(quantity.value)


def _list(parameters: dict[str, Any]) -> str:
    return "".join(f", {key} {value}" for key, value in parameters.items() if value is not None)


# --------------------------------------------------------------------------------- the paper's numbers


def _figure(figure: PaperFigure) -> dict[str, Any]:
    return {
        "title": figure.title or figure.figure,
        "source": figure.source,
        "rows": [_paper_row(row, figure) for row in figure.rows],
    }


def _paper_row(row: PaperRow, figure: PaperFigure) -> dict[str, Any]:
    return {
        "method": row.method,
        "task": row.task,
        "setting": ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in row.setting.items()),
        "metric": row.metric.replace("_", " "),
        "forced": row.metric == TEACHER_FORCED,
        "value": row.value,
        "value_text": NOTHING if row.value is None else _minus(f"{row.value:.4g}"),
        # Three runs that all came to 100 % are published without a deviation, or with one of zero.
        "bounds_text": ""
        if None in (row.low, row.high) or row.low == row.high
        else _minus(f"[{row.low:.4g}, {row.high:.4g}]"),
        "n": row.n,
        "n_text": NOTHING if row.n is None else f"{row.n:,}",
        "source": row.source or figure.source,
        "note": row.note,
    }


# --------------------------------------------------------------------------------------------- texts


def _number(value: float | None) -> str:
    return NOTHING if value is None else _minus(f"{value:z.3f}")


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _count(value: float | None) -> str:
    return NOTHING if value is None else format_count(value)


def _size(size: Measured) -> str:
    return f"{'~' if size.min < size.max else ''}{format_bytes(size.mean)}"


def _positions(size: Measured) -> str:
    return f"{'~' if size.min < size.max else ''}{size.mean:,.0f}"
