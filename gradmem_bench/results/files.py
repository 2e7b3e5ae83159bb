"""The files in a run's folder.

`run.json` is the record. The examples are in `examples.jsonl` while the evaluation runs (a header line, then one row a
line, each written as it is made) and in `examples.parquet` after it.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gradmem_bench.config import validated
from gradmem_bench.errors import Notice, UserError
from gradmem_bench.results.schema import SCHEMA_VERSION, ExampleRow, RunRecord

_MAY_BE_MISSING = (float | None, str | None, bool | None)

# pyarrow is imported where it is used: listing records must stay quick.


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes beside `path` and moves it there, so that a killed run leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


class WrittenAgain(UserError):
    """Another program wrote `examples.parquet` again and left out what says which schema its rows are of.

    Attributes:
        rows: what it holds, read by today's schema.
    """

    def __init__(self, message: str, rows: list[ExampleRow]) -> None:
        super().__init__(message)
        self.rows = rows


def _check_schema(found: Any, path: Path) -> None:
    if found != SCHEMA_VERSION:
        raise UserError(f"{path} has schema version {found}, but this gradmem-bench reads version {SCHEMA_VERSION}.")


# ------------------------------------------------------------------------------------------- records


def write_record(record: RunRecord, folder: Path) -> Path:
    """Writes `folder/run.json` atomically, with keys in the schema's order, and returns its path."""
    path = folder / "run.json"
    _replace(path, lambda part: part.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8"))
    return path


def read_record(path: Path) -> RunRecord:
    """The record in the file `path`; raises UserError naming it when it is damaged or of another schema."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}): it is no run.json, or a damaged one, whose run has to be made again."
        ) from None
    if not isinstance(values, dict) or "schema_version" not in values:
        raise UserError(f"{path} is not the record of a run: it has no 'schema_version'.")
    _check_schema(values["schema_version"], path)
    return validated(RunRecord, values, str(path))


def find_records(paths: Sequence[Path]) -> dict[Path, RunRecord]:
    """The records in `paths` (files, or folders searched for `run.json`) by the file's path, each file once.

    One in a folder that cannot be read is left out, with a warning that names it; a file that was named is not.

    Raises UserError for a path that does not exist, and for a named file as `read_record` does.
    """
    files: dict[Path, Path] = {}
    named = {path.resolve() for path in paths if path.is_file()}
    for path in paths:
        if not path.exists():
            raise UserError(f"There is no run at {path}: a run.json, or a folder with some below it, was expected.")
        for file in sorted(path.rglob("run.json")) if path.is_dir() else [path]:
            files.setdefault(file.resolve(), file)
    records = {}
    for resolved, file in files.items():
        try:
            records[file] = read_record(file)
        except UserError as error:
            if resolved in named:
                raise
            warnings.warn(f"{str(error).rstrip('.')}. It is left out.", Notice, stacklevel=2)
    return records


def ancestors(records: Mapping[Path, RunRecord]) -> dict[str, RunRecord]:
    """The records that trainings of `records`, by their files, went on from, as far as they lie beside them.

    Returns:
        Folder's name -> record, theirs and those that they went on from in turn.
    """
    found: dict[str, RunRecord] = {}
    left = list(records.items())
    while left:
        file, record = left.pop()
        begun = record.training and record.training.initial_checkpoint
        beside = begun and file.parent.parent / begun.partition("/")[0] / "run.json"
        if beside and beside.is_file() and beside.parent.name not in found:
            try:
                found[beside.parent.name] = read_record(beside)
            except UserError:
                # It was not asked for.
                continue
            left.append((beside, found[beside.parent.name]))
    return found


# ------------------------------------------------------------------------------------------ examples


class ExampleLog:
    """The rows of an evaluation, on disk as they are made; opened again, it goes on where it stopped.

    Args:
        folder: the run's folder.
        key: what the rows depend on (configuration and checkpoint); rows left under another key raise UserError.

    Attributes:
        rows: example id -> row, of all that are on disk.
    """

    def __init__(self, folder: Path, key: str = "") -> None:
        self._folder, self._key = folder, key
        found, rows = _read(folder)
        if rows and found != key:
            raise UserError(
                f"{folder} holds examples of another configuration or checkpoint (key '{found}', not '{key}'): "
                "remove it or choose another folder."
            )
        self.rows: dict[str, ExampleRow] = {row.example_id: row for row in rows}
        lines = [json.dumps({"schema_version": SCHEMA_VERSION, "key": key}), *(row.model_dump_json() for row in rows)]
        path = folder / "examples.jsonl"
        _replace(path, lambda part: part.write_text("\n".join(lines) + "\n", encoding="utf-8"))
        self._file = path.open("a", encoding="utf-8")

    def append(self, rows: Iterable[ExampleRow]) -> None:
        """Hands a batch of rows to the operating system; rows whose id is there already are left out."""
        for row in rows:
            if row.example_id not in self.rows:
                self.rows[row.example_id] = row
                self._file.write(row.model_dump_json() + "\n")
        self._file.flush()

    def finish(self) -> Path:
        """Writes `examples.parquet` in the log's place and returns its path; nothing can be appended after."""
        self._file.close()
        path = self._folder / "examples.parquet"
        _write_table(list(self.rows.values()), self._key, path)
        (self._folder / "examples.jsonl").unlink()
        return path


def read_examples(folder: Path) -> list[ExampleRow]:
    """The example rows in a run's folder, of an evaluation that is still running too.

    Raises UserError on damage; where another program wrote the file again, a WrittenAgain with what can be read of it.
    """
    if not any((folder / name).exists() for name in ("examples.jsonl", "examples.parquet")):
        raise UserError(f"There are no examples in {folder}: an examples.parquet was expected.")
    return _read(folder)[1]


def _read(folder: Path) -> tuple[str, list[ExampleRow]]:
    """The key and the rows that `folder` holds; an evaluation killed within `finish` leaves both files, alike."""
    if (folder / "examples.jsonl").exists():
        return _read_lines(folder / "examples.jsonl")
    if (folder / "examples.parquet").exists():
        return _read_table(folder / "examples.parquet")
    return "", []


def _read_lines(path: Path) -> tuple[str, list[ExampleRow]]:
    # A kill may leave half a line at the end; what stands before the last line break is whole.
    lines = path.read_bytes().rpartition(b"\n")[0].split(b"\n")
    if lines == [b""]:
        return "", []
    try:
        head = json.loads(lines[0])
        schema, key = head["schema_version"], head["key"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not the log of an evaluation: its first line has no schema version.") from None
    _check_schema(schema, path)
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            rows.append(ExampleRow.model_validate_json(line))
        except ValidationError as error:
            problem = error.errors()[0]
            key_name = ".".join(str(part) for part in problem["loc"]) or "the line"
            raise UserError(f"{path}, line {number} is damaged: {key_name}: {problem['msg'].lower()}.") from None
    return key, rows


def _write_table(rows: list[ExampleRow], key: str, path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    types = {
        str: pa.string(),
        str | None: pa.string(),
        bool: pa.bool_(),
        bool | None: pa.bool_(),
        int: pa.int64(),
        float: pa.float64(),
        float | None: pa.float64(),
        list[str]: pa.list_(pa.string()),
    }
    columns = [(name, types[field.annotation]) for name, field in ExampleRow.model_fields.items()]
    schema = pa.schema(columns, metadata={"schema_version": str(SCHEMA_VERSION), "key": key})
    table = pa.Table.from_pylist([row.model_dump() for row in rows], schema=schema)
    _replace(path, lambda part: parquet.write_table(table, part))


def _read_table(path: Path) -> tuple[str, list[ExampleRow]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged, it is not Parquet: {str(error).splitlines()[0]}") from None
    metadata = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
    if not metadata.get("schema_version", "").isdigit():
        rows = _rows_without_schema(table.to_pylist())
        if rows is None:
            raise UserError(f"{path} does not hold examples of a run: its metadata have no schema version.")
        raise WrittenAgain(
            f"{path} was written again by another program: its metadata have no schema version, which gradmem-bench "
            "writes with the rows; the file that the run left was expected.",
            rows,
        )
    _check_schema(int(metadata["schema_version"]), path)
    return metadata["key"], [validated(ExampleRow, row, str(path)) for row in table.to_pylist()]


def _rows_without_schema(found: list[dict[str, Any]]) -> list[ExampleRow] | None:
    """Rows as pandas writes them, its index beside them and NaN where nothing was; `None` where they are of no run."""
    fields = ExampleRow.model_fields

    def kept(name: str, value: Any) -> Any:
        missing = isinstance(value, float) and isnan(value) and fields[name].annotation in _MAY_BE_MISSING
        return None if missing else value

    try:
        return [
            ExampleRow.model_validate({name: kept(name, value) for name, value in row.items() if name in fields})
            for row in found
        ]
    except ValidationError:
        return None
