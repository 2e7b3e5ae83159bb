"""A run that was checked is filed: its record, sealed, and its example rows. Weights are not published."""

import shutil
from pathlib import Path

from gradmem_bench.errors import UserError
from gradmem_bench.leaderboard.check import problems
from gradmem_bench.results import RunRecord, read_examples, read_record, seal, write_record


def add(run: Path, board: Path) -> tuple[RunRecord, Path]:
    """Files the run in the folder `run` under `board/TASK/METHOD-HASH` and returns its record and where it lies.

    Raises UserError where something in the run is not in order, or another run lies there.
    """
    path = run / "run.json" if run.is_dir() else run
    record = read_record(path)
    found = problems(path.parent, record)
    if found:
        more = f" There {'are' if len(found) > 2 else 'is'} {len(found) - 1} more of this kind." if found[1:] else ""
        raise UserError(f"{path.parent} is not filed. {found[0]}{more}")
    if record.seal is None:
        record = record.model_copy(update={"seal": seal(read_examples(path.parent), record.task)})
    folder = board / record.task.name / f"{record.method.name}-{record.config_hash[:8]}"
    there = folder / "run.json"
    if there.exists() and (other := read_record(there)).run_id != record.run_id:
        raise UserError(
            f"{path.parent} is not filed: {folder} holds another run of this configuration, {other.run_id}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    if folder.resolve() != path.parent.resolve():
        shutil.copyfile(path.parent / "examples.parquet", folder / "examples.parquet")
    write_record(record, folder)
    return record, folder
