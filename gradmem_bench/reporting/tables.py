"""What the columns of a comparison are, and the comparison as a table in the terminal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING

from gradmem_bench.config import format_bytes
from gradmem_bench.reporting.caption import BUDGET_MARK, SWAP_MARK
from gradmem_bench.reporting.comparison import Comparison, Section
from gradmem_bench.reporting.profiles import format_count
from gradmem_bench.reporting.rows import Row
from gradmem_bench.results import Measured, MetricResult, RunRecord

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

NOTHING, NOT_RUN = "–", "not run"

# The parts of a table, see Column, and which of them rather begin a new line of the terminal than fall apart.
_SCORE, _SIZE, _CAPACITY, _VERSUS, _CONTROL, _COST, _TRAINING = 0, 1, 2, (3, 4), 5, 6, 7
_TOGETHER = ((_SCORE, _SIZE, _CAPACITY), _VERSUS, (_CONTROL,), (_COST, _TRAINING))


@dataclass(frozen=True)
class Column:
    """One column of the tables for people."""

    name: str
    header: str
    """The name, as short as a terminal needs it."""
    cell: Callable[[Row], str]
    part: int = _SCORE
    """Columns of a part stay together where a terminal is too narrow for all."""
    style: Callable[[Row], str] = lambda row: ""


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:z.3f}".replace("-", "−")


def with_interval(found: MetricResult | None) -> str:
    """A score with its interval, as far as they are known."""
    if found is None or found.low is None:
        return _number(found.value if found else None)
    return f"{_number(found.value)} [{_number(found.low)}, {_number(found.high)}]"


def metric_column(name: str, title: str, short: str) -> Column:
    return Column(title, short, lambda row: with_interval(row.metric(name)))


def _size(size: Measured, unit: Callable[[float], str]) -> str:
    return f"{'~' if size.min < size.max else ''}{unit(size.mean)}"


def _positions(mean: float) -> str:
    return f"{mean:,.0f}" if mean == int(mean) or mean >= 100 else f"{mean:.1f}"


def figures(value: float | None) -> str:
    """Two or three digits, never an exponent."""
    if value is None:
        return NOTHING
    if 0 < value < 1e-4:
        return "<0.0001"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def _milliseconds(number: Callable[[RunRecord], float]) -> Callable[[Row], str]:
    return lambda row: figures(1000 * row.mean(number))


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best: `42 s`, `17 min`, `8.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _train(row: Row) -> str:
    if not row.seeds:
        return NOTHING
    return f"{row.trained('steps'):,.0f}, {duration(row.trained('seconds'))}"


def _label(row: Row) -> str:
    return f"{row.label} {SWAP_MARK}" if row.swap_failed else row.label


def _state(row: Row) -> str:
    mark = f" {BUDGET_MARK}" if row.over_budget else ""
    return f"{_size(row.size('state_bytes'), format_bytes)}{mark}"


def _control(name: str) -> Callable[[Row], str]:
    """A control's score: of a sample, for which two digits are enough."""

    def cell(row: Row) -> str:
        score = row.mean(lambda record: getattr(record.swap_test, name))
        return NOTHING if score is None else f"{score:.2f}"

    return cell


# ------------------------------------------------------------------------------------ the baseline


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _difference(table: Comparison, name: str) -> Callable[[Row], str]:
    baselines = {one.versus[name].baseline for one in table.rows if name in one.versus}

    def cell(row: Row) -> str:
        if name not in row.versus:
            return "baseline" if row.label in baselines else NOTHING
        found = row.versus[name].difference
        if found.value is None:
            return NOTHING
        if found.low is None:
            return _signed(found.value)
        return f"{_signed(found.value)} [{_signed(found.low)}, {_signed(found.high)}]"

    return cell


def _p(name: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        p = row.versus[name].p if name in row.versus else None
        return NOTHING if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"

    return cell


def _verdict(name: str) -> Callable[[Row], str]:
    return lambda row: (row.versus[name].verdict if name in row.versus else None) or NOTHING


_VERDICT_STYLES = {"better": "green", "worse": "red"}


def _versus_columns(table: Comparison) -> list[Column]:
    columns = []
    for part, name in zip(_VERSUS, table.versus, strict=False):
        title = table.title_of(name)
        verdict = _verdict(name)
        columns += [
            Column(
                f"{title} − {table.baseline} [95 % interval]",
                "\n".join([*wrap(f"{title} − {table.baseline}", 24, break_long_words=False), "[95 % interval]"]),
                _difference(table, name),
                part,
            ),
            Column(f"p ({title}, Holm)", "p\n(Holm)", _p(name), part),
            Column(
                f"verdict ({title})",
                "verdict",
                verdict,
                part,
                lambda row, verdict=verdict: _VERDICT_STYLES.get(verdict(row), ""),
            ),
        ]
    return columns


# ----------------------------------------------------------------------------------------- columns


def columns_of(table: Comparison) -> list[Column]:
    """What a terminal shows; a column that no row has a number for is left out."""
    seeds = [Column("seeds", "seeds", lambda row: str(len(row.seeds) or NOTHING))]
    columns = [
        Column("method", "method", _label),
        score_column(table),
        *(seeds if any(len(row.seeds) > 1 for row in table.rows) else []),
        Column("normalised score", "norm.\nscore", lambda row: _number(row.normalized_score)),
        *(_plain_column(name, table) for name in beside(table)),
        Column("state bytes", "state\nbytes", _state, _SIZE),
        Column("READ positions", "READ\npos.", lambda row: _size(row.size("read_positions"), _positions), _SIZE),
        Column("READ KV bytes", "READ KV\nbytes", lambda row: _size(row.size("read_kv_bytes"), format_bytes), _SIZE),
        Column("recalled bits per state byte", "bits/\nbyte", _density, _CAPACITY),
        *_versus_columns(table),
        Column("foreign state", "foreign\nstate", _control("swapped_score"), _CONTROL),
        Column("random state", "random\nstate", _control("random_score"), _CONTROL),
        Column("blank state", "blank\nstate", _control("blank_score"), _CONTROL),
        Column("WRITE ms", "WRITE\nms", _milliseconds(lambda record: record.costs.write_seconds_per_context), _COST),
        Column("WRITE FLOPs", "WRITE\nFLOPs", lambda row: _count(row.flops("write")), _COST),
        Column("READ ms", "READ\nms", _milliseconds(lambda record: record.costs.read_seconds_per_query), _COST),
        Column("READ FLOPs", "READ\nFLOPs", lambda row: _count(row.flops("read")), _COST),
        Column("training steps, time", "training\nsteps, time", _train, _TRAINING),
        Column("training FLOPs", "training\nFLOPs", lambda row: _count(row.trained("flops")), _TRAINING),
    ]
    optional = {"recalled bits per state byte", "foreign state", "random state", "blank state"}
    optional |= {"WRITE FLOPs", "READ FLOPs", "training FLOPs"}
    return [
        column
        for column in columns
        if column.name not in optional or any(column.cell(row) != NOTHING for row in table.rows)
    ]


def score_column(table: Comparison) -> Column:
    """What the table is ranked by, with intervals."""
    title = table.title_of(table.ranked_by)
    return metric_column(table.ranked_by, f"{title} [95 % interval]", f"{title}\n[95 % interval]")


def beside(table: Comparison) -> list[str]:
    """The scores that are shown beside the one that ranks: exact match, where that is not it."""
    return [] if table.ranked_by == "exact_match" else ["exact_match"]


def _plain_column(name: str, table: Comparison) -> Column:
    title = table.title_of(name)
    return Column(
        title, title.replace(" ", "\n"), lambda row: _number(found.value if (found := row.metric(name)) else None)
    )


def _density(row: Row) -> str:
    return figures(row.capacity.bits_per_state_byte.value if row.capacity else None)


def _count(value: float | None) -> str:
    return NOTHING if value is None else format_count(value)


def page_columns(table: Comparison) -> list[Column]:
    """What a page shows, where there is room."""
    extra = [metric_column(name, f"{table.title_of(name)} [95 % interval]", "") for name in beside(table)]
    extra += [
        Column(name, "", lambda row, key=key: _number(found.value if (found := row.metric(key)) else None))
        for key, name in (
            ("teacher_forced_exact_match", "teacher-forced exact match"),
            ("target_bits_per_token", "target bits/token"),
        )
    ]
    density = Column(
        "state bytes per context token",
        "",
        lambda row: figures(row.mean(lambda record: record.footprint.bytes_per_context_token)),
    )
    plain = [column for column in columns_of(table) if column.name not in map(table.title_of, beside(table))]
    place = [column.name for column in plain].index("state bytes")
    bound = [Column("bound", "", lambda row: str(row.bound) if row.role == "method" else "")]
    several = any(section.heading for section in table.sections)
    return [*plain[:1], *(bound if several else []), *plain[1:place], *extra, *plain[place:], density]


# ---------------------------------------------------------------------------------------- terminal

_GAP, _LABEL = 2, 24


def to_rich(table: Comparison, width: int = 80) -> "RenderableType":
    """The table for a terminal of `width` characters, in several parts where one would be too wide."""
    from rich.console import Group
    from rich.text import Text

    method, *rest = columns_of(table)
    headings = [_short(section.heading) for section in table.sections]
    # A longer name is folded.
    room = width - min(_LABEL, max(_width(method, table.rows), *map(len, headings)))
    parts: list[list[Column]] = []
    free = -1
    for numbers in _TOGETHER:
        together = [[column for column in rest if column.part == number] for number in numbers]
        if sum(_needed(columns, table.rows) for columns in together) <= room:
            together = [[column for columns in together for column in columns]]
        for columns in filter(None, together):
            needed = _needed(columns, table.rows)
            if needed <= free:
                parts[-1] += columns
            else:
                parts.append([*columns])
                free = room
            free -= needed
    blank, drawn = Text(""), []
    for index, columns in enumerate(parts):
        sections = table.sections
        if all(column.part in _VERSUS for column in columns):
            # Where nothing is compared, a part of comparisons alone has nothing to show.
            sections = [section for section in sections if any(row.versus for row in section.rows)]
        drawn += [_grid([method, *columns], sections, index == 0), blank]
    if sum(bool(heading) for heading in headings) > 1:
        drawn += [_by_bound(table), blank]
    notes = [Text(line, style="dim") for line in table.caption]
    return Group(Text(table.title, style="bold"), blank, *drawn, *notes)


def _short(heading: str) -> str:
    return heading.replace("at most", "≤")


def _needed(columns: Sequence[Column], rows: Sequence[Row]) -> int:
    return sum(_width(column, rows) + _GAP for column in columns)


def _width(column: Column, rows: Sequence[Row]) -> int:
    return max(len(text) for text in [*column.header.split("\n"), *(column.cell(row) for row in rows)])


def _empty_grid(headers: Sequence[str]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    # The box puts one space of the gap between columns.
    grid = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0), collapse_padding=True)
    for index, header in enumerate(headers):
        # Cells are Text, since rich would take brackets for its markup.
        justify = "right" if index else "left"
        grid.add_column(Text(header), justify=justify, vertical="bottom", no_wrap=index > 0, overflow="fold")
    return grid


def _grid(columns: Sequence[Column], sections: Sequence[Section], with_missing: bool) -> "Table":
    from rich.text import Text

    grid = _empty_grid([column.header for column in columns])
    for section in sections:
        if section.heading:
            grid.add_row(Text(_short(section.heading), style="italic"))
        for row in section.rows:
            style = "yellow" if row.swap_failed or row.over_budget else "" if row.role == "method" else "dim"
            grid.add_row(*(Text(column.cell(row), style=column.style(row)) for column in columns), style=style)
        for method in section.missing if with_missing else ():
            grid.add_row(Text(method), NOT_RUN, *[NOTHING] * (len(columns) - 2), style="dim")
        if section is not sections[-1]:
            grid.add_section()
    return grid


def _by_bound(table: Comparison) -> "Table":
    """The scores of every method under every bound."""
    from rich.text import Text

    sections = [section for section in table.sections if section.heading]
    bounds = [str(section.rows[0].bound) for section in sections]
    title = table.title_of(table.ranked_by)
    grid = _empty_grid([title, *(f"≤ {bound}" if bound != "none" else "no bound" for bound in bounds)])
    scores = {(row.label, index): row.score for index, section in enumerate(sections) for row in section.rows}
    for label in dict.fromkeys(label for label, _ in scores):
        cells = [_number(scores.get((label, index))) for index in range(len(sections))]
        grid.add_row(Text(label), *cells)
    return grid
