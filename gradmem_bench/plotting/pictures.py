"""Which records each kind of picture takes."""

from pathlib import Path

from gradmem_bench.config import format_bytes
from gradmem_bench.plotting.against import against, state_bytes, write_flops
from gradmem_bench.plotting.curves import training
from gradmem_bench.plotting.heat_map import steps
from gradmem_bench.plotting.pairs import pairs
from gradmem_bench.plotting.parts import Pictures
from gradmem_bench.reporting.comparison import comparison
from gradmem_bench.reporting.profiles import format_count
from gradmem_bench.reporting.rows import place
from gradmem_bench.results import RunRecord, read_examples

DRAWN = {
    "bytes": "records with a score",
    "pairs": "records of one task and backbone with different numbers of pairs",
    "steps": "records of one method with different inner steps, at training or at evaluation",
    "flops": "records whose WRITE was measured (FLOPs)",
    "training": "folders of runs with their weights, which hold the history of training",
}
"""What each kind of picture needs, for a message."""


def draw(kind: str, records: dict[Path, RunRecord]) -> Pictures:
    """The pictures of a kind, each with the name of its file; none where the records do not have the numbers.

    Args:
        kind: a key of DRAWN.
        records: by the path of their `run.json`.
    """
    folders = {record.run_id: path.parent for path, record in records.items()}
    known = {place(record): record for record in records.values()}
    if kind in ("bytes", "flops", "pairs"):
        # A front through the luckiest seed of each method would be one that no method keeps to.
        tables = comparison(
            records.values(), by="config", examples=lambda record: read_examples(folders[record.run_id])
        )
        if kind == "pairs":
            yield from pairs(tables, known)
        elif kind == "bytes":
            yield from against(tables, known, kind, "state bytes of a context", state_bytes, 4, format_bytes)
        else:
            yield from against(tables, known, kind, "FLOPs of one WRITE", write_flops, 10, format_count)
        return
    tables = comparison(records.values(), by="config")
    if kind == "steps":
        yield from steps(tables, known)
    else:
        yield from training(tables, known, folders)
