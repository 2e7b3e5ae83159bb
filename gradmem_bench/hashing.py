"""Hashes of files of data, code and weights: what stands behind a name may change."""

import inspect
from collections.abc import Iterable
from functools import cache
from hashlib import file_digest
from pathlib import Path


def file_hash(file: Path) -> str:
    """SHA-256 of what is in `file`, as 64 hex digits; it is read once, until it is written anew."""
    file = file.resolve()
    status = file.stat()
    return _digest(file, status.st_mtime_ns, status.st_size)


@cache
def _digest(file: Path, modified: int, size: int) -> str:
    # `modified` and `size` are there for the cache alone.
    with file.open("rb") as content:
        return file_digest(content, "sha256").hexdigest()


def source_hashes(files: Iterable[Path]) -> list[str]:
    """SHA-256 of each file of code that is not built in, 16 digits: with another body it is other code."""
    own = [file for file in files if not file.resolve().is_relative_to(Path(__file__).parent.resolve())]
    return [file_hash(file)[:16] for file in own]


def class_hash(own: type) -> str | None:
    """The same of the file that holds a class; `None` of one that is built in."""
    return next(iter(source_hashes([Path(inspect.getfile(own))])), None)
