"""A comparison for a README, a paper, a spreadsheet, a program."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from gradmem_bench.metrics import METRICS
from gradmem_bench.reporting.comparison import Comparison, Section
from gradmem_bench.reporting.labels import settings_of
from gradmem_bench.reporting.rows import Row
from gradmem_bench.reporting.tables import NOT_RUN, NOTHING, columns_of, page_columns, score_column
from gradmem_bench.results import Alternative, PhaseCosts, Quantity, RunRecord


def to_markdown(tables: Iterable[Comparison]) -> str:
    """GitHub's Markdown, one heading, table and list of notes a comparison."""
    blocks = []
    for table in tables:
        columns = page_columns(table)
        left = sum(column.name in ("method", "bound") or "interval]" in column.name for column in columns[:3])
        lines = [[column.name for column in columns], ["---"] * left + ["---:"] * (len(columns) - left)]
        for section in table.sections:
            lines += [[column.cell(row).replace("|", r"\|") for column in columns] for row in section.rows]
            bound = str(section.rows[0].bound)
            for method in section.missing:
                known = {"method": method, "bound": bound, score_column(table).name: NOT_RUN}
                lines.append([known.get(column.name, NOTHING) for column in columns])
        grid = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        notes = "\n".join(f"- {line}" for line in table.caption)
        blocks.append(f"### {table.title}\n\n{grid}\n\n{notes}\n")
    return "\n".join(blocks)


# ------------------------------------------------------------------------------------------- LaTeX

_LATEX = str.maketrans(
    {character: rf"\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"$\sim$", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
    | {"†": r"\dag{}", "‡": r"\ddag{}", "–": "--", "−": "$-$", "×": r"$\times$", "·": r"$\cdot$", "’": "'"}
)


def to_latex(tables: Iterable[Comparison]) -> str:
    """One `table` with booktabs' rules and the notes below it a comparison."""
    blocks = [r"% \usepackage{booktabs}"]
    for table in tables:
        columns = columns_of(table)
        headers = [" ".join(column.header.split()).replace("/ ", "/") for column in columns]
        lines = [rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}", r"\toprule", _latex_line(headers)]
        for section in table.sections:
            lines.append(r"\midrule")
            if section.heading:
                lines.append(
                    rf"\multicolumn{{{len(columns)}}}{{l}}{{\textit{{{section.heading.translate(_LATEX)}}}}} \\"
                )
            lines += [_latex_line([column.cell(row) for column in columns]) for row in section.rows]
            empty = [NOTHING] * (len(columns) - 2)
            lines += [_latex_line([method, NOT_RUN, *empty]) for method in section.missing]
        lines += [r"\bottomrule", r"\end{tabular}"]
        title = table.title.translate(_LATEX)
        notes = [rf"{line.translate(_LATEX)}\par" for line in table.caption]
        blocks.append(
            "\n".join(
                [r"\begin{table}", r"\centering", rf"\caption{{{title}}}", *lines, r"\par\smallskip", r"\footnotesize"]
                + [*notes, r"\end{table}"]
            )
        )
    return "\n\n".join(blocks) + "\n"


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cell.translate(_LATEX) for cell in cells) + r" \\"


# ------------------------------------------------------------------------------- every number, flat


def _flat(row: Row) -> dict[str, Any]:
    """Every number of a row and what it depends on, unrounded, in seconds and bytes; means over the seeds."""
    record = row.record
    task, backbone = record.task, record.backbone
    values: dict[str, Any] = {
        "task": task.name,
        "task_version": task.version,
        "split": task.split,
        "method": record.method.name,
        "label": row.label,
        "role": row.role,
        "n_queries": task.queries,
        "n_contexts": task.contexts,
        "truncated_contexts": max(one.task.truncated_contexts for one in row.records),
        "ranked_by": row.ranked_by,
        "own_metric": task.own_metric or None,
        "normalized_score": row.normalized_score,
    }
    for name in METRICS:
        found = row.metric(name)
        values[name] = found.value if found else None
        values[f"{name}_low"] = found.low if found else None
        values[f"{name}_high"] = found.high if found else None
        values[f"{name}_n"] = found.n if found else None
        values[f"{name}_interval"] = found.reason or found.method if found else None
    for name in ("exact_match", "f1", "task_score"):
        values |= _versus(row, name)
    for name in ("state_bytes", "read_positions", "read_kv_bytes"):
        for statistic, value in row.size(name):
            values[f"{name}_{statistic}"] = value
    budget = record.budget.model_dump() if record.budget else {}
    return values | {
        "budget_bytes": budget.get("bytes"),
        "budget_positions": budget.get("positions"),
        "over_budget": bool(row.over_budget),
        "context_tokens": record.footprint.context_tokens,
        "state_dtype": row.state_dtype,
        "settings": " ".join(f"{name}={value}" for name, value in settings_of(record).items()),
        "bytes_per_context_token": row.mean(lambda one: one.footprint.bytes_per_context_token),
        "swap_test_passed": _swap_test(row),
        "foreign_state_score": row.mean(lambda one: one.swap_test.swapped_score),
        "random_state_score": row.mean(lambda one: one.swap_test.random_score),
        "blank_state_score": row.mean(lambda one: one.swap_test.blank_score),
        "write_seconds_per_context": row.mean(lambda one: one.costs.write_seconds_per_context),
        "read_seconds_per_query": row.mean(lambda one: one.costs.read_seconds_per_query),
        "batch_size": record.costs.batch_size,
        **_phases(row),
        **_capacity(row),
        "n_seeds": len(row.seeds),
        "seeds": " ".join(map(str, row.seeds)),
        "exact_match_by_seed": _by_seed(one.metrics["exact_match"].value for one in row.records),
        "score_by_seed": _by_seed(row.by_seed()),
        **{
            f"train_{name}": row.trained(name)
            for name in (
                "steps",
                "queries",
                "tokens",
                "flops",
                "seconds",
                "processes",
                "tuned_trials",
                "trained_parameters",
            )
        },
        "backbone": backbone.name,
        "backbone_weights_hash": backbone.weights_hash,
        "data_location": task.source.location,
        "data_revision": task.source.revision,
        "data_hash": task.source.content_hash,
        "device": _each(one.environment.device for one in row.records),
        "dtype": _each(one.environment.dtype for one in row.records),
        "code_version": _each(one.code.version for one in row.records),
        "code_commit": _each(one.code.commit for one in row.records),
        "code_dirty": _any(one.code.dirty for one in row.records),
        "config_hashes": " ".join(one.config_hash for one in row.records),
        "run_ids": " ".join(one.run_id for one in row.records),
    }


def _each(values: Iterable[str | None]) -> str | None:
    """What the seeds have, each once and in their order."""
    return "; ".join(dict.fromkeys(value for value in values if value is not None)) or None


def _any(values: Iterable[bool | None]) -> bool | None:
    """Whether one of the seeds' is; unknown where none is known."""
    known = [value for value in values if value is not None]
    return any(known) if known else None


def _by_seed(scores: Iterable[float | None]) -> str:
    """Scores in the order of the seeds; where one of several is unknown, `nan` keeps its place."""
    known = ["nan" if score is None else str(score) for score in scores]
    return "" if known == ["nan"] else " ".join(known)


def _versus(row: Row, name: str) -> dict[str, Any]:
    versus = row.versus.get(name)
    found = versus.difference.model_dump() if versus else {}
    prefix = f"{name}_difference"
    return {
        prefix: found.get("value"),
        f"{prefix}_low": found.get("low"),
        f"{prefix}_high": found.get("high"),
        f"{prefix}_p": found.get("p"),
        f"{prefix}_p_holm": versus and versus.p,
        f"{prefix}_verdict": versus and versus.verdict,
        f"{prefix}_test": found.get("test") or None,
        f"{prefix}_reason": found.get("reason"),
        f"{prefix}_baseline": versus and versus.baseline,
    }


def _phases(row: Row) -> dict[str, Any]:
    """What was measured of WRITE and READ, each apart from the evaluation; the reasons are the first seed's."""

    def mean(read: Callable[[RunRecord], PhaseCosts | Alternative | None], name: str) -> float | None:
        def number(record: RunRecord) -> float | None:
            found = read(record)
            value = None if found is None else getattr(found, name)
            return value.value if isinstance(value, Quantity) else value

        return row.mean(number)

    values: dict[str, Any] = {}
    for phase in ("write", "read"):
        read = partial(_part, phase)
        for name in ("flops", "seconds", "seconds_low", "seconds_high", "peak_bytes"):
            values[f"{phase}_phase_{name}"] = mean(read, name)
        found = read(row.record)
        values[f"{phase}_phase_batch_size"] = found and found.batch_size
        values[f"{phase}_phase_repetitions"] = found and found.repetitions
        values[f"{phase}_phase_flops_reason"] = row.record.costs.flops(phase).reason
        values[f"{phase}_phase_peak_bytes_reason"] = found and found.peak_bytes.reason
    for other in ("reread_text", "keep_kv_cache"):
        for name in ("break_even_flops", "break_even_seconds", "state_bytes_saved", "read_kv_bytes_saved"):
            values[f"{other}_{name}"] = mean(partial(_part, other), name)
            found = _part(other, row.record)
            values[f"{other}_{name}_reason"] = found and getattr(found, name).reason
    return values


def _part(name: str, record: RunRecord) -> PhaseCosts | Alternative | None:
    return getattr(record.costs, name)


def _capacity(row: Row) -> dict[str, Any]:
    found = row.capacity
    names = ("values", "value_bits", "recalled_bits", "recalled_bits_low", "recalled_bits_high")
    values = {("context_values" if name == "values" else name): found and getattr(found, name) for name in names}
    density = found and found.bits_per_state_byte
    return values | {
        "recalled_bits_per_state_byte": density and density.value,
        "recalled_bits_per_state_byte_reason": density and density.reason,
    }


def _swap_test(row: Row) -> bool | None:
    """The worst outcome of the seeds."""
    outcomes = {record.swap_test.passed for record in row.records}
    return False if False in outcomes else None if None in outcomes else True


def _missing(section: Section) -> Iterator[dict[str, Any]]:
    """Rows without numbers, for the methods that were not run under the section's bound."""
    known = _flat(section.rows[0])
    shared = (
        "task",
        "task_version",
        "split",
        "n_queries",
        "n_contexts",
        "budget_bytes",
        "budget_positions",
        "backbone",
    )
    for method in section.missing:
        about = {name: known[name] for name in shared} | {"method": method, "label": method, "role": "method"}
        yield {name: about.get(name) for name in known}


def _all(table: Comparison) -> list[dict[str, Any]]:
    return [
        values for section in table.sections for values in (*(_flat(row) for row in section.rows), *_missing(section))
    ]


def to_csv(tables: Iterable[Comparison]) -> str:
    """All rows under one header, unrounded; what is unknown is empty."""
    rows = [values for table in tables for values in _all(table)]
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def to_json(tables: Iterable[Comparison]) -> str:
    """A list of tables, each with title, baseline, ranking metric, rows (unrounded; null is unknown) and caption."""
    values = [
        {
            "title": table.title,
            "baseline": table.baseline,
            "ranked_by": table.ranked_by,
            "rows": _all(table),
            "caption": table.caption,
        }
        for table in tables
    ]
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
