"""Where the rows of a data set come from: a local file where there is one, else the hub."""

import json
import lzma
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradmem_bench.errors import Unreachable, UserError
from gradmem_bench.hashing import file_hash

DATA_VARIABLE = "GRADMEM_BENCH_DATA"
"""The environment variable that names the data folder: `<data folder>/<hub id>/<split>.jsonl`."""
SUFFIXES = (".jsonl", ".jsonl.xz", ".parquet")
"""The local files that are looked for, in this order."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """The rows of one split of a data set, as they were found."""

    rows: list[Row]
    location: str
    """Hub id, or the file relative to the data folder."""
    revision: str | None
    """The hub commit that was loaded; `None` for local files."""
    content_hash: str | None
    """SHA-256 of the local file; `None` for the hub."""


def local_file(dataset: str, split: str) -> Path | None:
    """The file of a split below the data folder, or `None` where there is no such file or no data folder."""
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        return None
    files = [Path(folder) / dataset / f"{split}{suffix}" for suffix in SUFFIXES]
    return next((file for file in files if file.is_file()), None)


def read_local(file: Path, location: str) -> Rows:
    """The rows of a local JSONL (also compressed with xz) or Parquet file.

    Row i of a JSONL file is its line i + 1. Raises UserError, naming the file and the line, when it is missing,
    damaged, empty, holds no objects, or lacks a column of the first row in a later one.
    """
    if not file.is_file():
        raise UserError(f"There is no data file {file}.")
    rows = _parquet_rows(file) if file.suffix == ".parquet" else _json_rows(file)
    if not rows:
        raise UserError(f"The data file {file} holds no rows.")
    columns = rows[0].keys()
    for number, row in enumerate(rows, start=1):
        if missing := sorted(columns - row.keys()):
            raise UserError(f"{file}, line {number}: the column '{missing[0]}' of the first line is missing here.")
    return Rows(rows, location, None, file_hash(file))


def _json_rows(file: Path) -> list[Row]:
    rows: list[Row] = []
    number = 0
    try:
        with lzma.open(file, "rb") if file.suffix == ".xz" else file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError(
                        f"{file}, line {number}: a JSON object was expected, and this is a {type(row).__name__}."
                    )
                rows.append(row)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {number} is not a JSON object: {error.msg} at column {error.colno}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}, line {number} is not UTF-8 text.") from None
    except (lzma.LZMAError, EOFError) as error:
        raise UserError(f"{file} is damaged after line {number}: {error}.") from None
    return rows


def _parquet_rows(file: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} is no Parquet file, or is damaged: {error}.") from None


def load_from_hub(dataset: str, name: str | None, split: str, revision: str | None, looked_at: Sequence[str]) -> Rows:
    """The rows of a split of a hub data set, and the commit that was really loaded (from the cache when offline).

    Args:
        looked_at: the local places that had no such file, for the message.
    Raises:
        Unreachable: the hub cannot be reached and its cache has no such data, or there is no such data set or split.
    """
    import datasets

    from gradmem_bench.hub import wait_briefly

    wait_briefly()
    try:
        builder = datasets.load_dataset_builder(dataset, name, revision=revision)
        builder.download_and_prepare()
        rows = builder.as_dataset(split=split).to_list()
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise Unreachable(
            f"The split '{split}' of {dataset} is neither a local file ({'; '.join(looked_at)}) nor could it be "
            f"loaded from the hub ({reason}): set {DATA_VARIABLE} to a folder that holds "
            f"{dataset}/{f'{name}/' if name else ''}{split}.jsonl, or go online."
        ) from None
    # A hub data set's builder is named by the commit its files were resolved to.
    return Rows(rows, dataset, builder.hash, None)
