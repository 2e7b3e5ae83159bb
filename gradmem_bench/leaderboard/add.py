"""A run that was checked is filed: its record, sealed, and its example rows. Weights are not published."""

import shutil
from difflib import get_close_matches
from pathlib import Path

from gradmem_bench.errors import UserError
from gradmem_bench.leaderboard.check import problems
from gradmem_bench.output import check_writable
from gradmem_bench.results import RunRecord, read_examples, read_record, seal, write_record


def runs_in(path: Path) -> list[Path]:
    """Every `run.json` at or below `path`, sorted; raises UserError, naming the nearest that there is, without any."""
    found = [path] if path.is_file() else sorted(path.rglob("run.json"))
    if found:
        return found
    above = path.parent
    while not above.is_dir():
        above = above.parent
    # A run's folder, one of runs on a task, one of such: no deeper, since it may be any folder that is searched.
    depths = ("run.json", "*/run.json", "*/*/run.json")
    beside = {one.name: one for one in sorted(above.iterdir()) if any(next(one.glob(depth), None) for depth in depths)}
    near = get_close_matches(path.name, beside, n=1, cutoff=0.6)
    others = [str(one) for one in beside.values()]
    way = f" There are runs in {', '.join(others[:3])}{', and in others' if others[3:] else ''}." if others else ""
    way = f" Did you mean '{beside[near[0]]}'?" if near else way
    raise UserError(f"There is no run at {path}: a run.json, or a folder with some below it, was expected.{way}")


def remarks(record: RunRecord) -> list[str]:
    """What is in order, and yet makes a record say less than others, as sentences."""
    found = []
    if record.task.limit is not None:
        contexts = f"{record.task.contexts:,} context{'s' * (record.task.contexts != 1)}"
        found.append(f"It has {contexts}, by --limit: records with another limit do not stand in its table.")
    if record.method.role == "method" and record.swap_test.passed is None:
        found.append(f"Swap test {record.swap_test.outcome}.")
    return found


def add(run: Path, board: Path) -> tuple[RunRecord, Path, bool]:
    """Files the run with the record `run`, a file, under `board/TASK/METHOD-HASH`.

    Returns the record, that folder, and whether its record was not there already. A run that lies below `board`, in a
    folder of its task, stays where it is.

    Raises UserError where something in the run is not in order, another run lies there, or it cannot be written there.
    """
    record = read_record(run)
    folder = board / record.task.name / f"{record.method.name}-{record.config_hash[:8]}"
    if run.resolve().is_relative_to(board.resolve()) and run.parent.parent.name == record.task.name:
        folder = run.parent
    check_writable(folder, "--board")
    found = problems(run.parent, record)
    if found:
        more = f" There {'are' if len(found) > 2 else 'is'} {len(found) - 1} more of this kind." if found[1:] else ""
        raise UserError(f"{run.parent} is not filed. {found[0]}{more}")
    if record.seal is None or record.seal.record_hash is None:
        record = record.model_copy(update={"seal": seal(read_examples(run.parent), record)})
    there = folder / "run.json"
    other = read_record(there) if there.exists() else None
    if other is not None and other.run_id != record.run_id:
        raise UserError(
            f"{run.parent} is not filed: {folder} holds another run of this configuration, {other.run_id}. Remove that "
            "folder to put this run in its place; another training beside it is a run with another --seed."
        )
    folder.mkdir(parents=True, exist_ok=True)
    if folder.resolve() != run.parent.resolve():
        shutil.copyfile(run.parent / "examples.parquet", folder / "examples.parquet")
    write_record(record, folder)
    return record, folder, other != record
